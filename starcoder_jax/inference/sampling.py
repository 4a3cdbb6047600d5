"""How the next token is chosen."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 128  # tokens whose weights are summed up first, when one is drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a request is completed.

    Attributes:
        max_tokens: new tokens at most.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps this many of the most likely tokens; None: all.
        top_p: keeps the most likely tokens that together have this probability (Holtzman et al.
            2020, arXiv:1904.09751, section 3.1).
        min_p: keeps tokens at least this likely, measured by the most likely one (Nguyen et al.
            2024, arXiv:2407.01082).
        repetition_penalty: divides the logits above 0 of tokens that are in the prompt or the
            completion, and multiplies those below 0 (Keskar et al. 2019, arXiv:1909.05858, section
            4.1).
        stop: the text ends before the first of these.
        seed: of the request. A sample depends on it, on its number among the request's samples, and
            on nothing that is decoded beside it.

    The order is that of transformers: penalty, temperature, top_k, top_p, min_p.

    Raises:
        ValueError: a value is out of range.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0 <= self.temperature < np.inf, "at least 0")
        _check("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or None")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0 < penalty < np.inf, "above 0; 1 is none")
        _check("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop={self.stop!r} must be a tuple of strings that are not empty")


def _check(name: str, value: object, is_good: bool, range_: str) -> None:
    if not is_good:
        raise ValueError(f"{name}={value} is out of range: it must be {range_}")


class Needs(NamedTuple):
    """What a batch asks of a program; each of them is compiled when it is first used."""

    drawing: bool = False  # some temperature is above 0
    filters: bool = False  # top_k, top_p or min_p
    penalty: bool = False

    @classmethod
    def of(cls, requests: Sequence[Sampling]) -> "Needs":
        """What these ask for together."""
        drawn = [request for request in requests if request.temperature > 0]
        return cls(
            drawing=bool(drawn),
            filters=any(r.top_k or r.top_p < 1 or r.min_p > 0 for r in drawn),
            penalty=any(r.repetition_penalty != 1 for r in requests),
        )


class Rows(NamedTuple):
    """The fields of `Sampling`, one of each for a row, and which sample it is."""

    temperature: np.ndarray  # float32 [batch], like all that are not said otherwise
    top_k: np.ndarray  # float32; infinite: all
    top_p: np.ndarray
    min_p: np.ndarray
    repetition_penalty: np.ndarray
    seed: np.ndarray  # uint32
    sample: np.ndarray  # uint32

    @classmethod
    def empty(cls, batch: int) -> "Rows":
        """Rows that ask for nothing."""
        rows = cls(*(np.zeros(batch, np.uint32 if i > 4 else np.float32) for i in range(7)))
        for index in range(batch):
            rows.set(index, Sampling(), 0)
        return rows

    def set(self, index: int, sampling: Sampling, sample: int) -> None:
        """Fills in one row."""
        top_k = np.inf if sampling.top_k is None else sampling.top_k
        filters = (top_k, sampling.top_p, sampling.min_p)
        values = (sampling.temperature, *filters, sampling.repetition_penalty, sampling.seed)
        for column, value in zip(self, (*values, sample), strict=True):
            column[index] = value


def next_tokens(
    logits: jax.Array,
    positions: jax.Array,
    seen: jax.Array | None,
    rows: Rows,
    needs: Needs,
) -> jax.Array:
    """Chooses a token for every row.

    Args:
        logits: float32 [batch, vocab].
        positions: int32 [batch], of the tokens to choose: part of what they are drawn by.
        seen: bool [batch, vocab], tokens to be penalized; used if needs.penalty.
        rows: of the batch.
        needs: static; what rows ask for beyond it is not done.

    Returns:
        int32 [batch].
    """
    if needs.penalty:
        penalty = rows.repetition_penalty[:, None]
        penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, penalized, logits)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # The first of the largest: argmax, which on CPUs takes four times as long.
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    likeliest = jnp.min(jnp.where(logits == largest, ids, len(ids)), axis=-1)
    if not needs.drawing:
        return likeliest
    is_drawn = rows.temperature > 0
    temperature = jnp.where(is_drawn, rows.temperature, 1)[:, None]
    weights = jnp.exp((logits - largest) / temperature)  # the likeliest token's is 1
    if needs.filters:
        weights = _filtered(weights, rows)
    keys = jax.vmap(_key)(rows.seed, rows.sample, positions)
    drawn = _draw(weights, jax.vmap(jax.random.uniform)(keys))
    return jnp.where(is_drawn, drawn, likeliest)


def _key(seed: jax.Array, sample: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)


def _filtered(weights: jax.Array, rows: Rows) -> jax.Array:
    """Weights, with 0 for the tokens that top_k, top_p and min_p leave out."""
    floor = _largest_floor(weights, jnp.ones_like(weights), rows.top_k)
    weights = jnp.where(weights >= floor, weights, 0)
    total = jnp.sum(weights, axis=-1)
    floor = _largest_floor(weights, weights, rows.top_p * total)
    floor = jnp.where(rows.top_p[:, None] < 1, floor, 0)
    return jnp.where(weights >= jnp.maximum(floor, rows.min_p[:, None]), weights, 0)


def _largest_floor(weights: jax.Array, masses: jax.Array, target: jax.Array) -> jax.Array:
    """The largest value such that the weights from it on have a mass of at least the target.

    Found bit by bit, 31 sums instead of sorting the vocabulary: floats that are not negative are
    ordered as their bits are.

    Args:
        weights: float32 [batch, vocab], from 0 to 1.
        masses: float32 [batch, vocab].
        target: float32 [batch].

    Returns:
        float32 [batch, 1]; 0 if all weights together have less.
    """

    def with_bit(i, floor):
        higher = floor | (jnp.int32(1) << (30 - i))
        value = jax.lax.bitcast_convert_type(higher, jnp.float32)[:, None]
        mass = jnp.sum(jnp.where(weights >= value, masses, 0), axis=-1)
        return jnp.where(mass >= target, higher, floor)

    floor = jax.lax.fori_loop(0, 31, with_bit, jnp.zeros_like(target, jnp.int32))
    return jax.lax.bitcast_convert_type(floor, jnp.float32)[:, None]


def _draw(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """A token of each row, as likely as its weight: where the running sum passes a random share.

    Args:
        weights: float32 [batch, vocab], of which one is above 0.
        uniform: float32 [batch], in [0, 1).

    Returns:
        int32 [batch].
    """
    batch, vocab = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -vocab % _BLOCK))).reshape(batch, -1, _BLOCK)
    running = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)  # [batch, blocks]
    total = running[:, -1]
    share = jnp.minimum(uniform * total, jnp.nextafter(total, 0))  # the product may round up to it
    block = jnp.argmax(running > share[:, None], axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    before = jnp.take_along_axis(running, block[:, None], axis=1)[:, 0] - jnp.sum(inside, axis=-1)
    passed = (before[:, None] + jnp.cumsum(inside, axis=-1) > share[:, None]) & (inside > 0)
    # Sums that are rounded otherwise may leave the share unpassed: then it is the block's last.
    last = _BLOCK - 1 - jnp.argmax(inside[:, ::-1] > 0, axis=-1)
    place = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    return (block * _BLOCK + place).astype(jnp.int32)
