"""The loss of every token of texts of any length, in windows that overlap."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from starcoder_jax.model.spec import Spec
from starcoder_jax.training.loss import LossConfig, token_cross_entropy
from starcoder_jax.training.step import Params


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens [length + 1] to run, which of their targets count, and for which file."""

    file: int
    tokens: np.ndarray
    first_target: int  # targets before this one were scored by the window before


def overlapping_windows(
    file: int, tokens: np.ndarray, end_of_text_id: int, length: int
) -> Iterator[Window]:
    """A file between two <|endoftext|>, in windows that overlap by half.

    Every token, and the <|endoftext|> after them, is a target that counts once, predicted from at
    least half a window of context, if the file has that much before it.

    Args:
        file: number of the file.
        tokens: int32 [n], without <|endoftext|>.
        end_of_text_id: of that token.
        length: targets of a window at most.
    """
    stream = np.concatenate([[end_of_text_id], tokens, [end_of_text_id]]).astype(np.int32)
    stride = max(length // 2, 1)
    scored = start = 0  # targets of the stream that have their loss
    while scored < len(stream) - 1:
        window = stream[start : start + length + 1]
        yield Window(file, window, first_target=scored - start)
        scored = start + len(window) - 1
        start += stride


class WindowLosses:
    """Computes the loss of targets, in batches of one shape.

    Args:
        graph: of the model.
        spec: of the model.
        length: targets of a window at most.
        batch_size: windows at once; a multiple of the ways in which the mesh splits a batch.
    """

    def __init__(self, graph: nnx.GraphDef, spec: Spec, length: int, batch_size: int):
        self._shape = (batch_size, length + 1)
        self._losses = jax.jit(functools.partial(_window_losses, graph, spec))

    def __call__(
        self, params: Params, windows: Iterable[Window]
    ) -> Iterator[tuple[Window, np.ndarray]]:
        """Yields each window with the loss of its targets in nats, float32 [targets]."""
        windows = iter(windows)
        while batch := [window for _, window in zip(range(self._shape[0]), windows, strict=False)]:
            tokens = np.zeros(self._shape, np.int32)
            for row, window in enumerate(batch):
                tokens[row, : len(window.tokens)] = window.tokens
            losses = _to_host(self._losses(params, tokens))
            for row, window in enumerate(batch):
                yield window, losses[row, : len(window.tokens) - 1]


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
