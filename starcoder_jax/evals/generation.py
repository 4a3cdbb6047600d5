"""Asks a model for answers to the problems of a benchmark."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.evals.problems import Problem
from starcoder_jax.evals.samples import Sample
from starcoder_jax.inference.engine import Completion, Engine
from starcoder_jax.inference.infilling import infill_prompt
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.model.decoder import Decoder, unstacked

# Samples of a problem that are drawn, and written down, together. What they are depends on it, so
# that it must not depend on the machine.
GROUP = 8

_BUCKET = 128  # of lengths, so that few are compiled


@dataclasses.dataclass
class _Group:
    """The samples `first` to `first + len(answers)` of a problem."""

    problem: Problem
    first: int
    answers: list[Sample | None]


@dataclasses.dataclass
class _Answer:
    """What a completion is for: a sample of a group."""

    group: _Group
    place: int
    problem: Problem
    about: dict[str, object]

    @property
    def index(self) -> int:
        """Of the sample, among those of its problem."""
        return self.group.first + self.place


def make_engine(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: Iterable[Problem],
    sampling: Sampling,
    slots: int,
    order: str | None = "psm",
) -> Engine:
    """An engine whose cache is as long as these problems need, and no longer than the model's.

    Args:
        model: cannot be used by itself afterwards.
        tokenizer: of the model.
        problems: to answer.
        sampling: of the answers.
        slots: sequences at once.
        order: of infilling prompts, "psm" or "spm"; None where there are none.
    """
    longest = 0
    for problem in problems:
        length = len(_prompt(tokenizer, problem, model.config.max_length, order)[0])
        # What is asked next holds the answer; and, as every prompt so far, less of the code.
        answers = 1 if problem.then is None else 2
        longest = max(longest, length + answers * sampling.max_tokens)
    length = min(-(-longest // _BUCKET) * _BUCKET, model.config.max_length)
    return Engine(unstacked(model, release=True), tokenizer, slots=slots, max_length=length)


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: int,
    done: Collection[tuple[str, int]] = (),
    order: str | None = "psm",
) -> Iterator[list[Sample]]:
    """Yields the samples of a group when all of them have ended, in no particular order.

    What a sample is depends on the model, the problem, the sampling and the sample's index alone:
    neither on what else is generated nor on what was `done` before.

    Args:
        engine: of the model, with nothing under way.
        tokenizer: of the model.
        problems: to answer.
        sampling: without stop strings, which are the problems'; its seed is that of the run.
        samples: of each problem.
        done: task ids and indexes of samples that are not needed any more.
        order: of infilling prompts, "psm" or "spm"; None where there are none.

    Raises:
        ValueError: the vocabulary lacks the tokens that a prompt needs, or the model's length
            leaves no room for a prompt.
    """
    if engine.max_length <= sampling.max_tokens:
        raise ValueError(
            f"--max_tokens={sampling.max_tokens} leaves no room for a prompt in the model's "
            f"{engine.max_length} positions: give fewer"
        )
    waiting = _groups(problems, samples, done)
    running: dict[Completion, _Answer] = {}

    def ask(answers: list[_Answer], problem: Problem) -> None:
        prompt, dropped = _prompt(
            tokenizer, problem, engine.max_length - sampling.max_tokens, order
        )
        about = {"prompt_tokens_dropped": dropped} if dropped else {}
        seed = _seed(sampling.seed, problem.prompt, answers[0].index)
        settings = dataclasses.replace(sampling, stop=problem.stop, seed=seed)
        completions = engine.submit(prompt, settings, samples=len(answers))
        for answer, completion in zip(answers, completions, strict=True):
            answer.problem = problem
            answer.about |= about
            running[completion] = answer

    while True:
        while len(running) < 2 * engine.slots and (group := next(waiting, None)) is not None:
            places = range(len(group.answers))
            ask([_Answer(group, place, group.problem, {}) for place in places], group.problem)
        if not running:
            return
        for completion in engine.step():
            answer = running.get(completion)
            if answer is None:
                continue  # a cancelled one
            text = answer.problem.cut(completion.text)
            is_cut = len(text) < len(completion.text)
            if completion.finish_reason is None and not is_cut:
                continue
            engine.cancel(completion)
            del running[completion]
            if answer.problem.then is not None:
                answer.about["first_answer"] = text
                ask([answer], answer.problem.then(text))
                continue
            answer.about["tokens"] = len(completion.token_ids)
            answer.about["finish_reason"] = "cut" if is_cut else completion.finish_reason
            group = answer.group
            sample = Sample(group.problem.task_id, answer.index, text, about=answer.about)
            group.answers[answer.place] = sample
            if None not in group.answers:
                yield group.answers


def _groups(
    problems: Sequence[Problem], samples: int, done: Collection[tuple[str, int]]
) -> Iterator[_Group]:
    for problem in problems:
        for first in range(0, samples, GROUP):
            indexes = range(first, min(first + GROUP, samples))
            if not all((problem.task_id, index) in done for index in indexes):
                yield _Group(problem, first, [None] * len(indexes))


def _prompt(
    tokenizer: Tokenizer, problem: Problem, room: int, order: str | None
) -> tuple[np.ndarray, int]:
    """The prompt, int32 [n], n <= room, and how many tokens far from the answer were dropped."""
    if problem.suffix is not None:
        parts = problem.prompt, problem.suffix
        prompt = infill_prompt(tokenizer, *parts, order=order)
        if len(prompt) <= room:
            return prompt, 0
        cut = infill_prompt(tokenizer, *parts, order=order, max_tokens=room)
        return cut, len(prompt) - len(cut)
    if problem.special_tokens:
        for name in problem.special_tokens:
            tokenizer.special_id(name)
        prompt = tokenizer.encode_prompt(problem.prompt)
    else:
        prompt = tokenizer.encode(problem.prompt)
    if not len(prompt):
        prompt = np.array([tokenizer.end_of_text_id], np.int32)  # what comes before every text
    return prompt[-room:], max(len(prompt) - room, 0)


def _seed(seed: int, prompt: str, index: int) -> int:
    """A seed of its own for each group: 31 bits that depend on nothing else."""
    digest = hashlib.sha256(f"{seed}\n{index}\n{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]) >> 1
