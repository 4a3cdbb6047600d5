"""Loss, perplexity and bits per byte of texts."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from flax import nnx

from starcoder_jax.data.documents import Document
from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.progress import Progress
from starcoder_jax.training.windows import Window, WindowLosses, overlapping_windows

# Targets of all windows that are run at once: bounds the memory of activations.
_BATCH_TARGETS = 8192


@dataclasses.dataclass(frozen=True)
class TextLoss:
    """What a text costs: minus log of its probability, and of its end, in nats."""

    path: str
    num_bytes: int
    num_tokens: int  # its end included
    nats: float


def text_losses(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    length: int,
    progress: Progress,
) -> list[TextLoss]:
    """Scores texts as training does its held-out files: in windows that overlap by half.

    Args:
        model: on one device, or on the mesh in use.
        tokenizer: the model's.
        documents: the texts.
        length: tokens of a window.
        progress: shows how it goes.

    Raises:
        ValueError: the model has fewer learned positions, or none of the tokens that end a text.
    """
    check_window(model, length)
    nats = np.zeros(len(documents))
    tokens = tokenizer.encode_batch([document.text for document in documents])

    def windows() -> Iterator[Window]:
        for index, ids in enumerate(tokens):
            yield from overlapping_windows(index, ids, tokenizer.end_of_text_id, length)
            advance(1)

    with progress.stage("scoring", len(documents)) as advance:
        for window, values in score(model, length, windows()):
            nats[window.file] += values[window.first_target :].sum(dtype=np.float64)
    return [
        TextLoss(document.path, document.num_bytes, len(ids) + 1, float(cost))
        for document, ids, cost in zip(documents, tokens, nats, strict=True)
    ]


def check_window(model: Decoder, length: int) -> None:
    """Checks that a model can run windows of so many targets.

    Raises:
        ValueError: it has fewer learned positions.
    """
    config = model.config
    if length < 1 or (config.positions == "learned" and length > config.max_length):
        raise ValueError(
            f"--window={length} must be at least 1, and at most the model's {config.max_length} "
            "learned positions"
        )


def score(
    model: Decoder, length: int, windows: Iterable[Window]
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yields windows of at most `length` targets with the loss of each in nats, float32 [n]."""
    graph, state = nnx.split(model)
    losses = WindowLosses(graph, model.spec, length, max(_BATCH_TARGETS // length, 1))
    yield from losses(nnx.to_pure_dict(state), windows)


def metrics(losses: Sequence[TextLoss]) -> dict[str, float]:
    """Over all texts: `loss` in nats a token, its exponential `perplexity`, `bits_per_byte`.

    Bits per byte compare models of any vocabulary; the other two those of the same alone.
    """
    nats = math.fsum(loss.nats for loss in losses)
    mean = nats / sum(loss.num_tokens for loss in losses)
    num_bytes = sum(loss.num_bytes for loss in losses)
    return {
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "loss": mean,
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
    }
