"""What a benchmark asks, and what it counts as an answer."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")

Row = Mapping[str, object]


def _unchanged(text: str) -> str:
    return text


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        task_id: its name in the data file.
        prompt: what the model goes on with; of an infilling, what comes before the gap.
        suffix: what comes after the gap; None: there is no gap, the model completes.
        before: what stands before a completion in the program that is run.
        after: what stands after it.
        language: of the program, as the sandbox names it; None: nothing is run, a completion is
            right if it is the canonical solution but for the white space around it.
        program: from the code, `before + completion + after`, to the program with its tests.
        stop: strings before the first of which a completion ends.
        cut: takes away what follows the answer, where stop strings cannot tell.
        special_tokens: names in the prompt that stand for tokens, not for themselves.
        solutions: of the data file, by name: "canonical" and, of HumanEvalPack, "buggy".
        then: the problem to put next, made of the model's answer; the next answer is what counts.
        group: exact match is also told for each group by itself; "": there are none.
    """

    task_id: str
    prompt: str
    before: str
    language: str | None
    program: Callable[[str], str] = _unchanged
    suffix: str | None = None
    after: str = ""
    stop: tuple[str, ...] = ()
    cut: Callable[[str], str] = _unchanged
    special_tokens: tuple[str, ...] = ()
    solutions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    then: Callable[[str], "Problem"] | None = None
    group: str = ""

    def code(self, completion: str) -> str:
        """The program without its tests."""
        return self.before + completion + self.after


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark: how to read its data file, and what it allows an answer.

    Attributes:
        problem: from a row of the file to the problem; if there are several prompt formats, it
            takes the name of one as well.
        metric: "pass" or "exact_match".
        max_tokens: new tokens of an answer.
        time_limit: seconds of a program on the reference machine of the sandbox.
        prompt_formats: names of formats to choose from, the first by default.
        keep: whether a row belongs to the benchmark.
    """

    problem: Callable[..., Problem]
    metric: str = "pass"
    max_tokens: int = 512
    time_limit: float = 10.0
    prompt_formats: tuple[str, ...] = ()
    keep: Callable[[Row], bool] = lambda row: True


def make_problems(task: Task, rows: Sequence[Row], prompt_format: str | None) -> list[Problem]:
    """The problems of a data file's rows.

    Raises:
        ValueError: a row is not one of this benchmark, two have one name, there is no row, or the
            benchmark has no such prompt format.
    """
    if prompt_format is not None and prompt_format not in task.prompt_formats:
        known = ", ".join(task.prompt_formats) or "this task has none"
        raise ValueError(f"--prompt_format={prompt_format}: no such format; known: {known}")
    formats = (prompt_format or task.prompt_formats[0],) if task.prompt_formats else ()
    problems = []
    for number, row in enumerate(rows, start=1):
        try:
            if task.keep(row):
                problems.append(task.problem({"task_id": str(number)} | row, *formats))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"problem {number} of the data file is not one of this task: {_about(error)}"
            ) from None
    names = [problem.task_id for problem in problems]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the data file has two problems named {twice}")
    if not problems:
        raise ValueError("the data file has no problem of this task")
    return problems


def read_rows(path: pathlib.Path) -> list[Row]:
    """The objects of a JSON lines file or of a JSON array, gzipped or not.

    Raises:
        ValueError: the file is missing or damaged.
    """
    rows = list(_values(path))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: entry {number} is not a JSON object")
    return rows


def read_json(path: pathlib.Path) -> object:
    """The value of a JSON file, gzipped or not; of JSON lines, the list of their values.

    Raises:
        ValueError: the file is missing or damaged.
    """
    if not path.name.endswith(EXTENSIONS):
        raise ValueError(f"{path}: must be a {', '.join(EXTENSIONS)} file")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def fingerprint(value: object) -> str:
    """SHA-256 (hex) of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def prompts_fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 (hex) of all that a model is shown and where it is cut off."""
    return fingerprint(
        [
            [problem.task_id, problem.prompt, problem.suffix, problem.stop, problem.special_tokens]
            for problem in problems
        ]
    )


def _values(path: pathlib.Path) -> Iterator[object]:
    value = read_json(path)
    if not isinstance(value, list):
        raise ValueError(f"{path}: must hold a list of problems")
    yield from value


def _about(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
