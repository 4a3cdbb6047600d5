"""Samples on disk: what models wrote, ours line by line as it comes and others' as published."""

import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from starcoder_jax.evals.problems import Problem, read_json
from starcoder_jax.files import replace_file


@dataclasses.dataclass(frozen=True)
class Sample:
    """One answer to a problem.

    Attributes:
        task_id: of the problem.
        index: of the sample among those of its problem.
        text: a completion, or a whole solution.
        is_solution: which of the two it is.
        about: what else is known, such as its number of tokens.
    """

    task_id: str
    index: int
    text: str
    is_solution: bool = False
    about: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def code(self, problem: Problem) -> str:
        """The program without its tests."""
        return self.text if self.is_solution else problem.code(self.text)

    @property
    def line(self) -> dict[str, object]:
        """A completion in the form of OpenAI's human-eval, with what else is known."""
        line = {"task_id": self.task_id, "completion": self.text, "sample": self.index}
        return line | dict(self.about)

    @classmethod
    def of_line(cls, line: Mapping[str, object]) -> "Sample":
        """The completion that had this line."""
        about = {k: v for k, v in line.items() if k not in ("task_id", "completion", "sample")}
        return cls(line["task_id"], line["sample"], line["completion"], about=about)


class Journal:
    """A file of JSON lines that grows, and that a killed process leaves whole.

    Use it as a context manager. A last line that was cut short is taken away.

    Attributes:
        lines: all that it holds.

    Args:
        path: of the file.
        settings: what makes the lines, stored beside them as `PATH.settings.json`.

    Raises:
        ValueError: it holds lines that other settings made, is damaged, or another process has it.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, object]):
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115 (closed by __exit__)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_settings(path, settings)
            self.lines = self._read()
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"another process is writing {path}: give another --output") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def write(self, lines: Sequence[Mapping[str, object]]) -> None:
        """Appends lines, which are in the file when the call returns."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        self.lines.extend(lines)

    def _read(self) -> list[Mapping[str, object]]:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ValueError(f"{self._path} is damaged ({error}): remove it") from None


def _check_settings(path: pathlib.Path, settings: Mapping[str, object]) -> None:
    file = path.with_name(f"{path.name}.settings.json")
    settings = json.loads(json.dumps(settings))
    if not path.stat().st_size:
        replace_file(file, json.dumps(settings, indent=1).encode())
        return
    if not file.exists():
        raise ValueError(f"{path} is there, but not what made it: give another --output")
    before = read_json(file)
    names = [name for name in before | settings if before.get(name) != settings.get(name)]
    if names:
        changes = ", ".join(f"{name} {before.get(name)} -> {settings.get(name)}" for name in names)
        raise ValueError(f"{path} was made otherwise ({changes}): give another --output")


def read_samples(path: pathlib.Path, problems: Sequence[Problem]) -> list[Sample]:
    """Samples in one of the published formats.

    JSON lines with `task_id` and `completion` (OpenAI human-eval) or `solution` (EvalPlus); or a
    JSON list that holds for each problem of the data file, in its order, the list of its programs,
    prompts included (bigcode-evaluation-harness, for MultiPL-E and others).

    Raises:
        ValueError: the file is damaged, in no such format, or of other problems.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path}: must hold samples")
    if all(isinstance(entry, list) for entry in value):
        if len(value) != len(problems):
            raise ValueError(
                f"{path}: has programs for {len(value)} problems, the data file {len(problems)}"
            )
        pairs = (
            (problem.task_id, {"solution": text})
            for problem, texts in zip(problems, value, strict=True)
            for text in texts
        )
    else:
        pairs = _pairs(path, value)
    return list(_samples(path, pairs, {problem.task_id for problem in problems}))


def _pairs(path: pathlib.Path, rows: Sequence[object]) -> Iterator[tuple[str, Mapping]]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or "task_id" not in row:
            raise ValueError(f"{path}: entry {number} has no task_id")
        yield str(row["task_id"]), row


def _samples(
    path: pathlib.Path, pairs: Iterator[tuple[str, Mapping]], known: set[str]
) -> Iterator[Sample]:
    counts: dict[str, int] = {}
    for task_id, row in pairs:
        kind = "completion" if "completion" in row else "solution"
        if not isinstance(row.get(kind), str):
            raise ValueError(f"{path}: a sample of {task_id} has no completion and no solution")
        if task_id not in known:
            raise ValueError(f"{path}: the data file has no problem {task_id}")
        index = counts.get(task_id, 0)
        counts[task_id] = index + 1
        about = {
            name: value for name, value in row.items() if name not in ("task_id", "sample", kind)
        }
        yield Sample(task_id, index, row[kind], kind == "solution", about)
