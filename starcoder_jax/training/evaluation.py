"""Held-out evaluation: loss, loss of infilled middles, and bits per byte beside `xz -9e`."""

import dataclasses
import lzma
import math
from collections.abc import Iterator, Sequence

import numpy as np
from flax import nnx

from starcoder_jax.data.fim import FimConfig
from starcoder_jax.data.store import TokenStore
from starcoder_jax.inference.infilling import FimTokens, infill_prompt
from starcoder_jax.inference.uncached import complete
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.spec import Spec, unsharded
from starcoder_jax.training.config import EvaluationConfig
from starcoder_jax.training.report import HeldOutFile, InfillSample
from starcoder_jax.training.step import Params, graph_definition
from starcoder_jax.training.windows import Window, WindowLosses, overlapping_windows

# Of a middle to infill; longer ones are cut so that prefix and suffix keep most of the context.
_MAX_MIDDLE_LINES = 5
_SHORTEST_PROMPT = 5  # tokens: three special ones, and one on each side of the gap


@dataclasses.dataclass(frozen=True)
class _File:
    path: str
    content: bytes
    tokens: np.ndarray  # int32, without <|endoftext|>
    xz_bits: int


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
        self._fim_tokens = None
        if fim.rate > 0:
            names = fim.prefix_token, fim.middle_token, fim.suffix_token
            self._fim_tokens = FimTokens(*map(store.tokenizer.special_id, names))
        self._length = sequence_length
        self._ways = ways
        self._sample_tokens = evaluation.sample_tokens
        self._graph = graph_definition(config, spec)
        self._files = [file for task in tasks for file in _read_files(store, task, evaluation)]
        batch_size = -(-batch_size // ways) * ways
        self._losses = WindowLosses(self._graph, spec, sequence_length, batch_size)

    def __call__(self, params: Params) -> Evaluation | None:
        """Evaluates parameters; None if there are no held-out files."""
        if not self._files:
            return None
        nats = np.zeros(len(self._files))
        for window, losses in self._losses(params, self._windows()):
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
        if self._fim_tokens is not None:
            windows = list(self._infill_windows())
            scored = list(self._losses(params, windows))
            if scored:
                total = sum(losses[w.first_target :].sum(dtype=np.float64) for w, losses in scored)
                count = sum(len(w.tokens) - 1 - w.first_target for w, _ in scored)
                metrics["eval/infill_loss"] = total / count
            sample = self._sample(params)
        return Evaluation({k: float(v) for k, v in metrics.items()}, files, sample)

    def _windows(self) -> Iterator[Window]:
        end = self._tokenizer.end_of_text_id
        for index, file in enumerate(self._files):
            yield from overlapping_windows(index, file.tokens, end, self._length)

    def _infill_windows(self) -> Iterator[Window]:
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
                yield Window(index, tokens[: self._length + 1], first_target=len(prompt) - 1)

    def _prompt(self, prefix: str, suffix: str, room: int) -> np.ndarray | None:
        """Prefix-suffix-middle order; keeps what is nearest to the middle. None: no room."""
        if room < _SHORTEST_PROMPT:
            return None
        return infill_prompt(
            self._tokenizer, prefix, suffix, max_tokens=room, tokens=self._fim_tokens
        )

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
