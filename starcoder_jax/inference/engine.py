"""Completes many prompts at once: requests come and go between the steps of one batch."""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.inference.sampling import Needs, Rows, Sampling, next_tokens
from starcoder_jax.inference.text import TextStream
from starcoder_jax.model.cache import Cache, Prompts, empty_cache
from starcoder_jax.model.decoder import Decoder, Layers
from starcoder_jax.model.spec import token_axes

_SHORTEST_PROMPT = 32  # prompts are padded to powers of two from here on: few shapes are compiled
_PREFILL_TOKENS = 16_384  # run at once, to bound the memory of activations


class Completion:
    """One sample of a request; `Engine.step` fills it in.

    Attributes:
        prompt_tokens: length of the prompt.
        token_ids: what was generated so far, without the special token that ended it.
        text: what is certain of it; it only grows. It holds no half character, and nothing that may
            still turn out to be a stop string.
        finish_reason: None while it runs; "stop" (a special token or a stop string), "length" or
            "cancelled".
    """

    def __init__(self, prompt: np.ndarray, sampling: Sampling, sample: int, tokenizer: Tokenizer):
        self.prompt_tokens = len(prompt)
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._prompt, self._sampling, self._sample = prompt, sampling, sample
        self._special_ids = frozenset(tokenizer.special_tokens.values())
        self._stream = TextStream(tokenizer, sampling.stop)
        self._started = 0  # tokens that are on their way or there

    @property
    def text(self) -> str:
        """See the class."""
        return self._stream.text

    def _feed(self, token: int) -> None:
        if token in self._special_ids:
            return self._finish("stop")
        self.token_ids.append(token)
        self._stream.feed(token)
        if self._stream.stopped:
            self._finish("stop")
        elif len(self.token_ids) == self._sampling.max_tokens:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        self._stream.finish()  # which may find a stop string in what was held back
        self.finish_reason = "stop" if self._stream.stopped else reason


class Engine:
    """Decodes up to `slots` sequences at once, each at its own place.

    A step adds a token to every sequence, and starts waiting requests where there is room. The
    device works on one step while the tokens of the step before are read. For one thread.

    Args:
        model: on one device or on the mesh in use; `unstacked` makes it fast.
        tokenizer: the model's.
        slots: sequences at once, rounded up to a multiple of the ways in which the mesh splits a
            batch.
        max_length: tokens of a prompt and its completion; None: the model's context. Memory for
            `slots` times as many keys and values is taken at once.

    Raises:
        ValueError: the model has fewer learned positions, or the mesh splits sequences.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        slots: int = 8,
        max_length: int | None = None,
    ):
        config, spec = model.config, model.spec
        if max_length is None:
            max_length = config.max_length
        if config.positions == "learned" and max_length > config.max_length:
            raise ValueError(
                f"max_length={max_length}, but the model has {config.max_length} learned positions"
            )
        mesh = jax.typeof(model.embedding[...]).sharding.mesh
        if mesh.shape.get("sequence", 1) > 1:
            raise ValueError(
                f"mesh.sequence={mesh.shape['sequence']} splits sequences, and one token cannot be "
                "split: decode with mesh.sequence=1"
            )
        self._ways = math.prod(mesh.shape[name] for name in token_axes(spec))
        self.slots = -(-slots // self._ways) * self._ways
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._graph, self._params = nnx.split(model)
        is_stacked = isinstance(model.layers, Layers)
        self._cache = empty_cache(config, self.slots, max_length, spec, stacked=is_stacked)
        # The newest of each slot, which are not in the cache yet.
        self._tokens = jnp.zeros(self.slots, jnp.int32, out_sharding=spec("batch"))
        # Tokens of each slot, for repetition penalties; None until one is asked for.
        self._seen: jax.Array | None = None
        self._rows = Rows.empty(self.slots)
        self._rows_there = jax.tree.map(jnp.array, self._rows)  # the same, on the devices
        self._owners: list[Completion | None] = [None] * self.slots
        self._waiting: collections.deque[Completion] = collections.deque()
        # Tokens that were not read yet, oldest first, and whose they are.
        self._unread: collections.deque[tuple[jax.Array, list[tuple[int, Completion]]]]
        self._unread = collections.deque()

    @property
    def busy(self) -> bool:
        """Whether anything that was submitted has not ended."""
        return bool(self._waiting or self._unread or any(self._owners))

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values, over all devices."""
        return self._cache.nbytes

    def submit(
        self, prompt: np.ndarray, sampling: Sampling, *, samples: int = 1
    ) -> list[Completion]:
        """Puts a request in line.

        Args:
            prompt: int32 [length].
            sampling: how to go on.
            samples: how many times; those that start together share the run of the prompt.

        Raises:
            ValueError: the prompt is empty, or too long.
        """
        if not len(prompt):
            raise ValueError("the prompt is empty: give at least one token")
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_tokens={sampling.max_tokens} are more "
                f"than the {self.max_length} tokens there is room for"
            )
        completions = [
            Completion(prompt, sampling, sample, self._tokenizer) for sample in range(samples)
        ]
        self._waiting.extend(completions)
        return completions

    def cancel(self, completion: Completion) -> None:
        """Ends a completion, if it has not ended."""
        if completion.finish_reason is None:
            completion._finish("cancelled")
            if completion in self._waiting:
                self._waiting.remove(completion)
            self._release(completion)

    def step(self) -> list[Completion]:
        """Adds a token to every sequence.

        Returns:
            The completions that have got one, or have ended.
        """
        started = self._start_waiting() + self._continue()
        # With nothing new on its way, there is nothing to wait for.
        keep = 1 if started else 0
        changed: dict[Completion, None] = {}
        while len(self._unread) > keep:
            tokens, owners = self._unread.popleft()
            values = np.asarray(tokens.addressable_data(0))
            for index, completion in owners:
                if completion.finish_reason is None:
                    completion._feed(int(values[index]))
                    changed[completion] = None
                    if completion.finish_reason is not None:
                        self._release(completion)
        return list(changed)

    def run(self) -> None:
        """Steps until all is done."""
        while self.busy:
            self.step()

    def _continue(self) -> int:
        """Starts a step of the sequences there are."""
        owners = [(slot, owner) for slot, owner in enumerate(self._owners) if owner is not None]
        if not owners:
            return 0
        self._cache, logits = _decode(self._params, self._cache, self._tokens, **self._static)
        needs = Needs.of([owner._sampling for _, owner in owners])
        seen = self._seen if needs.penalty else None
        tokens, seen = _choose(logits, self._cache.lengths, None, seen, self._rows_there, needs)
        self._tokens = _like(tokens, self._tokens)
        self._seen = seen if needs.penalty else self._seen
        self._sent(tokens, owners, dict(owners))
        return len(owners)

    def _start_waiting(self) -> int:
        """Starts what waits, as far as there are slots."""
        free = [slot for slot, owner in enumerate(self._owners) if owner is None]
        count = min(len(free), len(self._waiting))
        starting = [self._waiting.popleft() for _ in range(count)]
        by_length = collections.defaultdict(list)
        for completion in starting:
            by_length[self._padded(completion.prompt_tokens)].append(completion)
        for length, group in by_length.items():
            most = max(1, _PREFILL_TOKENS // length)
            for first in range(0, len(group), most):
                batch = group[first : first + most]
                self._start(length, batch, [free.pop(0) for _ in batch])
        return count

    def _start(self, length: int, batch: list[Completion], slots: list[int]) -> None:
        """Runs the prompts of completions, and gives them slots."""
        prompts = {id(completion._prompt): completion._prompt for completion in batch}
        places = {key: place for place, key in enumerate(prompts)}
        tokens = np.zeros((self._power(len(prompts)), length), np.int32)
        lengths = np.ones(len(tokens), np.int32)
        for place, prompt in enumerate(prompts.values()):
            tokens[place, : len(prompt)] = prompt
            lengths[place] = len(prompt)
        size = self._power(len(batch))
        sources = np.zeros(size, np.int32)
        targets = np.full(size, self.slots, np.int32)  # of padding: no slot
        rows = Rows.empty(size)
        for place, (completion, slot) in enumerate(zip(batch, slots, strict=True)):
            sources[place] = places[id(completion._prompt)]
            targets[place] = slot
            rows.set(place, completion._sampling, completion._sample)
            self._rows.set(slot, completion._sampling, completion._sample)
            self._owners[slot] = completion
        self._rows_there = jax.tree.map(jnp.array, self._rows)
        logits, keys = _prefill(self._params, tokens, lengths, **self._static)
        needs = Needs.of([completion._sampling for completion in batch])
        seen = self._prompts_seen(batch, size) if needs.penalty else None
        first, seen = _choose(logits, lengths, sources, seen, rows, needs)
        self._cache, self._tokens = _insert(
            self._cache, self._tokens, keys, first, sources, targets
        )
        if needs.penalty:
            self._seen = self._seen.at[targets].set(seen, mode="drop")
        self._sent(first, list(enumerate(batch)), dict(zip(slots, batch, strict=True)))

    def _sent(self, tokens, owners, slots) -> None:
        """Notes tokens that are on their way; a slot whose last one this is comes free."""
        self._unread.append((tokens, owners))
        for slot, completion in slots.items():
            completion._started += 1
            if completion._started == completion._sampling.max_tokens:
                self._owners[slot] = None

    def _prompts_seen(self, batch, size) -> np.ndarray:
        """The tokens of the prompts, bool [size, vocab]."""
        vocab = self._tokenizer.vocab_size
        if self._seen is None:
            self._seen = jnp.zeros((self.slots, vocab), bool)
        seen = np.zeros((size, vocab), bool)
        for row, completion in zip(seen, batch, strict=False):
            row[completion._prompt] = True
        return seen

    @property
    def _static(self) -> dict[str, Any]:
        """What the programs of the model are compiled for."""
        return {"graph": self._graph, "num_ids": self._tokenizer.vocab_size}

    def _release(self, completion: Completion) -> None:
        if completion in self._owners:
            self._owners[self._owners.index(completion)] = None

    def _padded(self, length: int) -> int:
        padded = _SHORTEST_PROMPT
        while padded < length:
            padded *= 2
        return min(padded, self.max_length)

    def _power(self, count: int) -> int:
        """The smallest power of two from `count` on, times the ways that split a batch."""
        return self._ways * 2 ** max(0, math.ceil(math.log2(count / self._ways)))


# Programs of the model know nothing of sampling: they are large, and its kinds are many.


@functools.partial(jax.jit, static_argnames=("graph", "num_ids"))
def _prefill(params, tokens, lengths, *, graph, num_ids) -> tuple[jax.Array, Prompts]:
    """Runs prompts, int32 [n, length]: logits of the first tokens, [n, num_ids], and their keys."""
    model = nnx.merge(graph, params)
    on_mesh = model.spec("batch", "length")
    if on_mesh is not None:
        tokens, lengths = jax.reshard(tokens, on_mesh), jax.reshard(lengths, model.spec("batch"))
    hidden, prompts = model.prefill(tokens, lengths)
    return _whole(model.logits(hidden))[:, :num_ids], prompts


@functools.partial(jax.jit, static_argnames=("graph", "num_ids"), donate_argnames=("cache",))
def _decode(params, cache, tokens, *, graph, num_ids) -> tuple[Cache, jax.Array]:
    """One more token in every slot: the cache, and logits of the next, [slots, num_ids]."""
    model = nnx.merge(graph, params)
    hidden, cache = model.decode(tokens, cache)
    return cache, _whole(model.logits(hidden))[:, :num_ids]


@functools.partial(jax.jit, static_argnames=("needs",), donate_argnames=("seen",))
def _choose(logits, positions, sources, seen, rows, needs) -> tuple[jax.Array, jax.Array | None]:
    """Tokens, int32 [n], and `seen` with them.

    Args:
        logits, positions: of the tokens.
        sources: int32 [n], rows of logits and positions to use; None: all.
        seen: bool [n, vocab]; None without penalties.
        rows: n of them.
        needs: of these.
    """
    positions = _whole(positions)
    if sources is not None:
        logits, positions = logits[sources], positions[sources]
    tokens = next_tokens(logits, positions, seen, rows, needs)
    if seen is not None:
        seen = seen.at[jnp.arange(len(tokens)), tokens].set(True)
    return tokens, seen


@functools.partial(jax.jit, donate_argnames=("cache",))
def _insert(cache, tokens, prompts, first, sources, slots) -> tuple[Cache, jax.Array]:
    """Puts prompt `sources[i]` and its first token into slot `slots[i]`, if there is one."""

    def insert(cache, tokens, prompts, first):
        cache = cache.insert(slots, prompts.take(sources))
        return cache, tokens.at[slots].set(first, mode="drop")

    if not _sharding(tokens).mesh.empty:
        # Rows move between devices here; how, is left to the compiler.
        shardings = jax.tree.map(_sharding, (cache, tokens))
        insert = jax.sharding.auto_axes(insert, out_sharding=shardings)
    return insert(cache, tokens, prompts, first)


def _sharding(x: jax.Array) -> jax.sharding.NamedSharding:
    return jax.typeof(x).sharding


def _whole(x: jax.Array) -> jax.Array:
    """The array on every device."""
    return x if _sharding(x).mesh.empty else jax.reshard(x, jax.P(*[None] * x.ndim))


def _like(x: jax.Array, other: jax.Array) -> jax.Array:
    """x, split as the other array is."""
    return x if _sharding(other).mesh.empty else jax.reshard(x, _sharding(other).spec)
