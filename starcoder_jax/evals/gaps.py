"""What a text costs that was taken out, with and without what comes after it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.evals.passk import mean_and_error
from starcoder_jax.evals.perplexity import check_window, score
from starcoder_jax.evals.problems import Problem
from starcoder_jax.inference.infilling import ORDERS, infill_prompt
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.progress import Progress
from starcoder_jax.training.windows import Window

LEFT_TO_RIGHT = "left-to-right"


@dataclasses.dataclass(frozen=True)
class GapLoss:
    """What the text of a gap costs: minus log of its probability, in nats.

    Attributes:
        task_id: of the problem.
        num_bytes: of the text, UTF-8.
        nats: by context: "psm" and "spm", the two orders of infilling, and "left-to-right".
    """

    task_id: str
    num_bytes: int
    nats: Mapping[str, float]


def gap_losses(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    length: int,
    progress: Progress,
) -> list[GapLoss]:
    """Scores the canonical solutions of infilling problems, each in three contexts.

    The white space before the gap counts as a part of it: a model that was never trained to infill
    then meets no border of tokens that it does not know. The end of the answer does not count: it
    is a token of its own after an infilling, and a line break otherwise.

    Args:
        model: on one device, or on the mesh in use.
        tokenizer: the model's.
        problems: each with prompt, suffix and canonical solution.
        length: tokens of context and answer together, at most, the same in all three contexts. What
            is farthest from the gap is dropped.
        progress: shows how it goes.

    Raises:
        ValueError: the model has fewer learned positions, its vocabulary no infilling tokens, or
            an answer leaves no room for a context.
    """
    check_window(model, length)
    contexts = (*ORDERS, LEFT_TO_RIGHT)
    nats = np.zeros((len(problems), len(contexts)))

    def windows() -> Iterator[Window]:
        for index, problem in enumerate(problems):
            before, answer = _parts(problem)
            ids = tokenizer.encode(answer)
            # The last token of the answer is a target only: it takes no place in the window.
            room = length + 1 - len(ids)
            for place, context in enumerate(contexts):
                shown = _context(tokenizer, before, problem, context, room)
                tokens = np.concatenate([shown, ids]).astype(np.int32)
                yield Window(index * len(contexts) + place, tokens, len(shown) - 1)
            advance(1)

    with progress.stage("scoring", len(problems)) as advance:
        for window, values in score(model, length, windows()):
            nats.flat[window.file] = values[window.first_target :].sum(dtype=np.float64)
    return [
        GapLoss(
            problem.task_id,
            len(_parts(problem)[1].encode("utf-8", "surrogatepass")),
            dict(zip(contexts, costs.tolist(), strict=True)),
        )
        for problem, costs in zip(problems, nats, strict=True)
    ]


def metrics(losses: Sequence[GapLoss]) -> dict[str, float]:
    """Over all gaps: bits per byte in each context, and what the suffix saves of them.

    `psm/saved` and `spm/saved` are the bits per byte of "left-to-right" less those of the order:
    above zero where the model makes use of what comes after the gap. Errors are standard errors
    over gaps; those of what is saved are of paired differences.
    """
    values = {}
    for context in losses[0].nats:
        cost = [loss.nats[context] for loss in losses]
        name = f"{context}/bits_per_byte"
        values[name], values[f"{name}_stderr"] = _bits_per_byte(losses, cost)
    for order in ORDERS:
        saved = [loss.nats[LEFT_TO_RIGHT] - loss.nats[order] for loss in losses]
        name = f"{order}/saved"
        values[name], values[f"{name}_stderr"] = _bits_per_byte(losses, saved)
    return values


def _parts(problem: Problem) -> tuple[str, str]:
    """What stands before the gap, and the answer with the white space that leads to it."""
    before = problem.prompt.rstrip()
    return before, problem.prompt[len(before) :] + problem.solutions["canonical"]


def _context(
    tokenizer: Tokenizer, before: str, problem: Problem, context: str, room: int
) -> np.ndarray:
    """The tokens before the answer: int32 [n], 1 <= n <= room."""
    if room < 1:
        raise ValueError(
            f"{problem.task_id}: the answer alone is longer than the window: give a larger --window"
        )
    if context == LEFT_TO_RIGHT:
        tokens = tokenizer.encode(before)[-room:]
        # What comes before every text.
        return tokens if len(tokens) else np.array([tokenizer.end_of_text_id], np.int32)
    return infill_prompt(tokenizer, before, problem.suffix, order=context, max_tokens=room)


def _bits_per_byte(losses: Sequence[GapLoss], nats: Sequence[float]) -> tuple[float, float]:
    """The ratio of sums, and its standard error to first order."""
    sizes = np.array([loss.num_bytes for loss in losses], np.float64)
    bits = np.array(nats) / math.log(2)
    ratio = float(bits.sum() / sizes.sum())
    return ratio, mean_and_error((bits - ratio * sizes) / sizes.mean())[1]
