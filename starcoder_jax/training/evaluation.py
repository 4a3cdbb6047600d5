"""Held-out evaluation: loss, loss of infilled middles, and bits per byte beside `xz -9e`."""

import dataclasses
import functools
import lzma
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from starcoder_jax.data.fim import FimConfig
from starcoder_jax.data.store import TokenStore
from starcoder_jax.inference.completion import complete, infill_prompt
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.spec import Spec, unsharded
from starcoder_jax.training.config import EvaluationConfig
from starcoder_jax.training.loss import LossConfig, token_cross_entropy
from starcoder_jax.training.report import HeldOutFile, InfillSample
from starcoder_jax.training.step import Params, graph_definition

# Of a middle to infill; longer ones are cut so that prefix and suffix keep most of the context.
_MAX_MIDDLE_LINES = 5


@dataclasses.dataclass(frozen=True)
class _File:
    path: str
    content: bytes
    tokens: np.ndarray  # int32, without <|endoftext|>
    xz_bits: int


@dataclasses.dataclass(frozen=True)
class _Window:
    """Tokens [length + 1] to run, which of their targets count, and for which file."""

    file: int
    tokens: np.ndarray
    first_target: int  # targets before this one were scored by the window before


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of one evaluation.

    Attributes:
        metrics: `eval/loss` and, if the model infills, `eval/infill_loss` (nats a token);
            `eval/bits_per_byte` and `eval/xz_bits_per_byte` (over all bytes of all files).
        files: the same, file by file.
        sample: a middle that the model filled in; None if it does not infill.
    """

    metrics: dict[str, float]
    files: list[HeldOutFile]
    sample: InfillSample | None


class Evaluator:
    """Evaluates states of one run on the same held-out files.

    Args:
        store: its `validation` splits are used, in stored order: a random sample.
        tasks: whose files.
        config: of the model.
        evaluation: which files, how many at once.
        fim: tokens for infilling; no infilling is evaluated if its rate is 0.
        sequence_length: tokens of a window. Longer files are run in windows that overlap by half,
            so that every token is predicted from at least half a window of context, if the file
            has that much before it.
        batch_size: windows at once, rounded up to a multiple of `ways`.
        ways: in how many parts the mesh splits a batch.
        spec: of the model.
    """

    def __init__(
        self,
        store: TokenStore,
        tasks: Sequence[str],
        config: DecoderConfig,
        evaluation: EvaluationConfig,
        fim: FimConfig,
        sequence_length: int,
        batch_size: int,
        ways: int = 1,
        spec: Spec = unsharded,
    ):
        self._tokenizer = store.tokenizer
        self._fim = fim if fim.rate > 0 else None
        self._length = sequence_length
        self._batch_size = -(-batch_size // ways) * ways
        self._ways = ways
        self._sample_tokens = evaluation.sample_tokens
        self._graph = graph_definition(config, spec)
        self._files = [file for task in tasks for file in _read_files(store, task, evaluation)]
        self._losses = jax.jit(functools.partial(_window_losses, self._graph, spec))

    def __call__(self, params: Params) -> Evaluation | None:
        """Evaluates parameters; None if there are no held-out files."""
        if not self._files:
            return None
        nats = np.zeros(len(self._files))
        for window, losses in self._run(params, self._windows()):
            nats[window.file] += losses[window.first_target :].sum(dtype=np.float64)
        targets = sum(len(file.tokens) + 1 for file in self._files)
        files = [
            HeldOutFile(file.path, len(file.content), float(bits), file.xz_bits)
            for file, bits in zip(self._files, nats / math.log(2), strict=True)
        ]
        num_bytes = sum(file.num_bytes for file in files)
        metrics = {
            "eval/loss": nats.sum() / targets,
            "eval/bits_per_byte": sum(file.model_bits for file in files) / num_bytes,
            "eval/xz_bits_per_byte": sum(file.xz_bits for file in files) / num_bytes,
        }
        sample = None
        if self._fim is not None:
            windows = list(self._infill_windows())
            scored = list(self._run(params, iter(windows)))
            if scored:
                total = sum(losses[w.first_target :].sum(dtype=np.float64) for w, losses in scored)
                count = sum(len(w.tokens) - 1 - w.first_target for w, _ in scored)
                metrics["eval/infill_loss"] = total / count
            sample = self._sample(params)
        return Evaluation({k: float(v) for k, v in metrics.items()}, files, sample)

    def _windows(self) -> Iterator[_Window]:
        """Every file between two <|endoftext|>, in windows that overlap by half."""
        end = self._tokenizer.end_of_text_id
        stride = max(self._length // 2, 1)
        for index, file in enumerate(self._files):
            stream = np.concatenate([[end], file.tokens, [end]]).astype(np.int32)
            scored = 0  # targets of the stream that have their loss
            start = 0
            while scored < len(stream) - 1:
                tokens = stream[start : start + self._length + 1]
                yield _Window(index, tokens, first_target=scored - start)
                scored = start + len(tokens) - 1
                start += stride

    def _run(self, params: Params, windows: Iterator[_Window]):
        """Yields each window with the loss of its targets, float32 [targets]."""
        shape = (self._batch_size, self._length + 1)
        while batch := [window for _, window in zip(range(shape[0]), windows, strict=False)]:
            tokens = np.zeros(shape, np.int32)
            for row, window in enumerate(batch):
                tokens[row, : len(window.tokens)] = window.tokens
            losses = _to_host(self._losses(params, tokens))
            for row, window in enumerate(batch):
                yield window, losses[row, : len(window.tokens) - 1]

    def _infill_windows(self) -> Iterator[_Window]:
        """For each file that a window holds, prefix, suffix and then the middle to score."""
        for index, file in enumerate(self._files):
            prefix, middle, suffix = _cut(file.content.decode("utf-8"), seed=index)
            if not middle:
                continue
            target = self._tokenizer.encode(middle)
            prompt = self._prompt(prefix, suffix, self._length - len(target))
            if prompt is not None:
                end = [self._tokenizer.end_of_text_id]
                tokens = np.concatenate([prompt, target, end]).astype(np.int32)
                yield _Window(index, tokens[: self._length + 1], first_target=len(prompt) - 1)

    def _prompt(self, prefix: str, suffix: str, room: int) -> np.ndarray | None:
        """Prefix-suffix-middle order; keeps what is nearest to the middle. None: no room."""
        room -= 3  # the special tokens
        if room < 2:
            return None
        before, after = self._tokenizer.encode(prefix), self._tokenizer.encode(suffix)
        after = after[: max(room // 2, room - len(before))]
        before = before[len(before) - min(len(before), room - len(after)) :]
        return infill_prompt(self._tokenizer, self._fim, before, after)

    def _sample(self, params: Params) -> InfillSample | None:
        """Fills in the middle of the first file that allows it."""
        stop_ids = frozenset(self._tokenizer.special_tokens.values())
        for index, file in enumerate(self._files):
            prefix, middle, suffix = _cut(file.content.decode("utf-8"), seed=index)
            prompt = self._prompt(prefix, suffix, self._length - self._sample_tokens)
            if len(middle.strip()) < 8 or len(prefix) < 200 or prompt is None:
                continue
            new = complete(
                nnx.merge(self._graph, params),
                prompt,
                self._sample_tokens,
                stop_ids=stop_ids,
                num_ids=self._tokenizer.vocab_size,
                rows=self._ways,
            )
            completion = self._tokenizer.decode(new)
            return InfillSample(file.path, prefix[-600:], middle, suffix[:400], completion)
        return None


def xz_bits(content: bytes) -> int:
    """Bits of the file that `xz -9e` makes of this content, container included."""
    return 8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def _read_files(store: TokenStore, task: str, evaluation: EvaluationConfig) -> Iterator[_File]:
    split = store.split(task, "validation")
    found = 0
    for index in range(split.num_documents):
        info = split.document_info(index)
        if found == evaluation.max_files:
            return
        if info["tokens"] > evaluation.max_file_tokens:
            continue
        tokens = split.document_tokens(index)
        content = store.tokenizer.decode_bytes(tokens)
        found += 1
        yield _File(info["path"], content, tokens, xz_bits(content))


def _cut(text: str, seed: int) -> tuple[str, str, str]:
    """Prefix, middle and suffix of a text: the middle is a few whole lines somewhere inside."""
    lines = text.splitlines(keepends=True)
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, _MAX_MIDDLE_LINES + 1))
    start = int(rng.integers(0, max(len(lines) - count, 0) + 1))
    parts = lines[:start], lines[start : start + count], lines[start + count :]
    return tuple("".join(part) for part in parts)


def _window_losses(graph: nnx.GraphDef, spec: Spec, params: Params, tokens: jax.Array) -> jax.Array:
    """Cross-entropy of every target of tokens [batch, length + 1]: float32 [batch, length]."""
    model = nnx.merge(graph, params)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if (sharding := spec("batch", "length")) is not None:
        inputs, targets = jax.reshard(inputs, sharding), jax.reshard(targets, sharding)
    hidden = model.hidden_states(inputs)
    losses = token_cross_entropy(hidden, model.head, targets, LossConfig(), spec)
    return losses if sharding is None else jax.reshard(losses, jax.P(None, None))


def _to_host(x: jax.Array) -> np.ndarray:
    """A replicated array, as every process has it."""
    return np.asarray(x.addressable_data(0))
