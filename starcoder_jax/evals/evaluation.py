"""An evaluation from its data to its result."""

import collections
import dataclasses
import fnmatch
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starcoder_jax.evals import records, scoring
from starcoder_jax.evals.corpus import held_out_lines, read_corpus
from starcoder_jax.evals.problems import (
    EXTENSIONS,
    Problem,
    Row,
    Task,
    fingerprint,
    make_problems,
    prompts_fingerprint,
    read_rows,
)
from starcoder_jax.evals.report import write_report
from starcoder_jax.evals.requests import FIM_PERPLEXITY, PERPLEXITY, Request
from starcoder_jax.evals.samples import Journal, Sample, read_samples
from starcoder_jax.evals.sandbox import Sandbox, missing_toolchains
from starcoder_jax.evals.sandbox.inside.languages import LANGUAGES
from starcoder_jax.evals.scoring import Scored
from starcoder_jax.evals.tasks import TASKS
from starcoder_jax.progress import Progress

if TYPE_CHECKING:  # Scoring needs no JAX.
    from starcoder_jax.data.tokenizer import Tokenizer
    from starcoder_jax.model.decoder import Decoder

_LINES = 256  # to fill in, unless told otherwise
_SLOTS = 8
_WINDOW = 2048


@dataclasses.dataclass(frozen=True)
class _Data:
    """The problems of a data file, those of them that were asked for, and what is told of both."""

    everything: list[Problem]
    chosen: dict[str, Problem]
    about: Mapping[str, object]


def evaluate(request: Request, progress: Progress) -> dict[str, object] | None:
    """Does what is asked, and writes the result and the page about it.

    Returns:
        The result, as it is written to `request.output`; None if samples were all that was wanted.

    Raises:
        ValueError: something about the request cannot be; says what.
    """
    request.output.parent.mkdir(parents=True, exist_ok=True)
    if request.task == PERPLEXITY:
        found = _measure(request, progress), []
    elif request.task == FIM_PERPLEXITY:
        found = _measure_gaps(request, progress), []
    else:
        found = _benchmark(request, TASKS[request.task], progress)
    if found is None:
        return None
    record, scored = records.complete(found[0]), found[1]
    write_report(request.file(".html"), record, scored)
    records.write(request.output, record)
    return record


def _benchmark(
    request: Request, task: Task, progress: Progress
) -> tuple[dict[str, object], list[Scored]] | None:
    data = _read(request, task)
    runs = task.metric == "pass" and not request.generate_only
    skipped = _skipped(data.chosen.values()) if runs else {}
    for language, reason in skipped.items():
        progress.message(f"{language} is skipped: {reason}")
    problems = {
        name: problem for name, problem in data.chosen.items() if problem.language not in skipped
    }
    samples, source = _samples(request, task, data, problems, progress)
    if request.generate_only:
        return None
    ks = request.k or (1,)
    scoring.check_counts(task, samples, ks)
    scored, rule = _score(request, task, problems, samples, progress)
    outcomes = collections.Counter(item.outcome.reason for item in scored)
    record = {
        "task": request.task,
        "metrics": scoring.metrics(task, scored, ks),
        "problems": len(problems),
        "skipped": skipped,
        "outcomes": dict(outcomes.most_common()),
        "source": source,
        "data": data.about,
        "scoring": rule,
        "samples": [records.sample_entry(item) for item in scored],
    }
    return record, scored


def _read(request: Request, task: Task) -> _Data:
    path = request.data
    if _is_benchmark(path):
        rows, about = _read_benchmark(path)
        limit = request.limit
    elif task.metric == "exact_match":
        rows, about = _draw_lines(request)
        limit = None
    elif path.exists():
        raise ValueError(f"{path} must be a {', '.join(EXTENSIONS)} file")
    else:
        raise ValueError(f"{path}: there is no such file")
    everything = make_problems(task, rows, request.prompt_format)
    chosen = [
        problem
        for problem in everything
        if fnmatch.fnmatchcase(problem.task_id, request.only or "*")
    ][:limit]
    if not chosen:
        raise ValueError(f"--only={request.only} is the name of no problem in {path}")
    about |= {
        "prompts_sha256": prompts_fingerprint(everything),
        "prompt_format": request.prompt_format or next(iter(task.prompt_formats), None),
        "stop": [list(stop) for stop in sorted({problem.stop for problem in chosen})],
        "only": request.only,
        "limit": request.limit,
    }
    return _Data(everything, {problem.task_id: problem for problem in chosen}, about)


def _is_benchmark(path: pathlib.Path) -> bool:
    return path.is_file() and path.name.endswith(EXTENSIONS)


def _read_benchmark(path: pathlib.Path) -> tuple[list[Row], dict[str, object]]:
    """The rows of a data file, and what tells it from others."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return read_rows(path), {"file": path.name, "sha256": digest}


def _draw_lines(request: Request) -> tuple[list[Row], dict[str, object]]:
    """Lines of the corpus to fill in, and what tells them from others."""
    documents = read_corpus(request.data).documents
    seed = request.seed or 0
    rows = held_out_lines(documents, request.limit or _LINES, seed)
    return rows, {"lines_of": request.data.name, "seed": seed, "sha256": fingerprint(rows)}


def _skipped(problems: Sequence[Problem]) -> dict[str, str]:
    """Languages of the problems that cannot be run here, and why."""
    missing = missing_toolchains()
    reasons = {}
    for problem in problems:
        if problem.language not in LANGUAGES:
            reasons[problem.language] = "the sandbox cannot run it"
        elif problem.language in missing:
            reasons[problem.language] = f"{missing[problem.language]} is not installed"
    return reasons


def _samples(
    request: Request,
    task: Task,
    data: _Data,
    problems: Mapping[str, Problem],
    progress: Progress,
) -> tuple[list[Sample], dict[str, object]]:
    """The samples to score, and where they come from."""
    if request.checkpoint is not None:
        return _generated(request, task, data, problems, progress)
    if request.solutions is not None:
        name = request.solutions
        without = [p.task_id for p in problems.values() if name not in p.solutions]
        if without:
            raise ValueError(f"{request.data} has no {name} solution of {without[0]}")
        samples = [Sample(p.task_id, 0, p.solutions[name]) for p in problems.values()]
        return samples, {"solutions": name}
    samples = read_samples(request.samples, data.everything)
    samples = [sample for sample in samples if sample.task_id in problems]
    without = problems.keys() - {sample.task_id for sample in samples}
    if without:
        raise ValueError(
            f"{request.samples} has no sample of {len(without)} problem(s), such as "
            f"{min(without)}: --only and --limit choose the problems to score"
        )
    digest = hashlib.sha256(request.samples.read_bytes()).hexdigest()
    return samples, {"samples": request.samples.name, "sha256": digest}


def _generated(
    request: Request,
    task: Task,
    data: _Data,
    problems: Mapping[str, Problem],
    progress: Progress,
) -> tuple[list[Sample], dict[str, object]]:
    # Scoring needs no JAX.
    from starcoder_jax.evals import generation
    from starcoder_jax.inference.sampling import Sampling
    from starcoder_jax.training.load import load_model

    count = request.num_samples or 1
    checkpoint = records.find_model(request.checkpoint, request.dtype)
    room = checkpoint.config.max_length
    infills = any(problem.suffix is not None for problem in data.everything)
    order = (request.order or "psm") if infills else None
    sampling = Sampling(
        max_tokens=request.max_tokens or min(task.max_tokens, room // 2),
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed or 0,
    )
    fields = ("max_tokens", "temperature", "top_p", "seed")
    settings = {
        "task": request.task,
        "data_sha256": data.about["sha256"],
        "prompts_sha256": data.about["prompts_sha256"],
        "path": checkpoint.place,
        **checkpoint.about,
        **{name: getattr(sampling, name) for name in fields},
        "order": order,
    }
    with Journal(request.file(".samples.jsonl"), settings) as journal:
        done = {(line["task_id"], line["sample"]) for line in journal.lines}
        wanted = {(name, index) for name in problems for index in range(count)}
        with progress.stage("generating", len(wanted), len(wanted & done)) as advance:
            if wanted - done:
                model, tokenizer = load_model(checkpoint.place, dtype=request.dtype)
                asked = list(problems.values())
                slots = request.slots or _SLOTS
                engine = generation.make_engine(model, tokenizer, asked, sampling, slots, order)
                for group in generation.generate(
                    engine, tokenizer, asked, sampling, count, done, order
                ):
                    new = [s for s in group if (s.task_id, s.index) not in done]
                    journal.write([sample.line for sample in new])
                    advance(len(new))
        samples = [
            Sample.of_line(line)
            for line in journal.lines
            if (line["task_id"], line["sample"]) in wanted
        ]
    place = {name: number for number, name in enumerate(problems)}
    samples.sort(key=lambda sample: (place[sample.task_id], sample.index))
    cut = len({s.task_id for s in samples if "prompt_tokens_dropped" in s.about})
    if cut:
        progress.message(
            f"{cut} of {len(problems)} prompts are too long for the model's {room} positions: they "
            "lost what is farthest from the answer"
        )
    return samples, {
        **checkpoint.about,
        **{name: getattr(sampling, name) for name in fields},
        "order": order,
        "num_samples": count,
        "samples_of_a_group": generation.GROUP,
        "prompts_cut": cut,
    }


def _score(
    request: Request,
    task: Task,
    problems: Mapping[str, Problem],
    samples: Sequence[Sample],
    progress: Progress,
) -> tuple[list[Scored], dict[str, object]]:
    """The outcomes, and the rule they follow."""
    if task.metric == "exact_match":
        return scoring.compare(problems, samples), {"rule": "equal but for white space around it"}
    time_limit = request.time_limit or task.time_limit
    rule: dict[str, object] = {"time_limit": time_limit}
    if not problems:
        return [], rule
    try:
        sandbox = Sandbox(workers=request.workers, unsafe=request.without_sandbox)
    except ValueError as error:
        raise ValueError(f"{error} (that is, --without_sandbox)") from None
    with sandbox:
        rule["sandbox"] = sandbox.description
        names = ("isolation", "limits", "toolchains")
        settings = {"task": request.task} | {name: sandbox.description[name] for name in names}
        with Journal(request.file(".outcomes.jsonl"), settings) as journal:
            scored = scoring.run(problems, samples, time_limit, sandbox, journal, progress)
    return scored, rule


def _measure(request: Request, progress: Progress) -> dict[str, object]:
    """Perplexity."""
    from starcoder_jax.evals import perplexity

    corpus = read_corpus(request.data, request.limit)
    about, length, model, tokenizer = _open(request)
    losses = perplexity.text_losses(model, tokenizer, corpus.documents, length, progress)
    return {
        "task": request.task,
        "metrics": perplexity.metrics(losses),
        "source": about,
        "data": {
            "name": request.data.name,
            "sha256": corpus.sha256,
            "limit": request.limit,
            "dropped": dict(corpus.dropped),
            "bytes": sum(loss.num_bytes for loss in losses),
            "tokens": sum(loss.num_tokens for loss in losses),
        },
        "scoring": {"window": length, "overlap": length - max(length // 2, 1)},
        "samples": [dataclasses.asdict(loss) for loss in losses],
    }


def _measure_gaps(request: Request, progress: Progress) -> dict[str, object]:
    """Perplexity of lines that are taken out, in all the contexts to give them back in."""
    from starcoder_jax.evals import gaps

    if _is_benchmark(request.data):
        rows, data = _read_benchmark(request.data)
        rows = rows[: request.limit]
    else:
        rows, data = _draw_lines(request)
    problems = make_problems(TASKS["fim"], rows, None)
    about, length, model, tokenizer = _open(request)
    losses = gaps.gap_losses(model, tokenizer, problems, length, progress)
    return {
        "task": request.task,
        "metrics": gaps.metrics(losses),
        "problems": len(problems),
        "source": about,
        "data": data | {"limit": request.limit, "bytes": sum(loss.num_bytes for loss in losses)},
        "scoring": {"window": length},
        "samples": [dataclasses.asdict(loss) for loss in losses],
    }


def _open(request: Request) -> tuple[Mapping[str, object], int, "Decoder", "Tokenizer"]:
    """What is known of the model, the tokens to run at once, the model and its tokenizer."""
    from starcoder_jax.training.load import load_model

    checkpoint = records.find_model(request.checkpoint, request.dtype)
    length = request.window or min(checkpoint.config.max_length, _WINDOW)
    return checkpoint.about, length, *load_model(checkpoint.place, dtype=request.dtype)
