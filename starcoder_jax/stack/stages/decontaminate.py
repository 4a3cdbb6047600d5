"""Drops rows that hold a problem, or the solution of one, of the benchmarks models are judged by.

As StarCoder2 did: texts are lower-cased, all white space is removed, and what is left of a row must
not contain what is left of a benchmark's text. So it is found however it is indented or broken into
lines. All texts of all benchmarks are looked for at once, by an Aho-Corasick automaton.
"""

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ahocorasick_rs
import pyarrow as pa

from starcoder_jax.stack.record import KINDS, Output, select
from starcoder_jax.stack.runner.steps import Map, Step

# Solutions of HumanEval that much code contains by chance; excepted by StarCoder, too.
TRIVIAL = ("return x + y", "return len(string)", "return n**2", "return ''.join(strings)")

_MBPP_TEST = range(11, 511)  # the task_ids of the test split

_LOWER = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))
_SPACE = bytes(byte for byte in range(128) if chr(byte).isspace())


@dataclasses.dataclass(frozen=True)
class DecontaminateConfig:
    """Which benchmarks are looked for, and where.

    Attributes:
        benchmarks: the file, or files, of each benchmark: JSON Lines, or a JSON array, both also
            compressed with gzip. None: no row is dropped. What is looked for:
            "humaneval": docstrings and solutions, other than `TRIVIAL` ones.
            "mbpp": texts and solutions of the test split (task_id 11 to 510).
            "multipl_e": prompts, without the lines with which all prompts of a file begin, and
            tests. (Its license forbids to train on it.)
            "gsm8k", "apps": questions; give the files of the test splits.
            "ds1000": prompts.
        kinds: of the rows that are searched; others pass. As in StarCoder2 (arXiv 2402.19173,
            table 3), all but documentation.
    """

    benchmarks: Mapping[str, str | Sequence[str]] = dataclasses.field(default_factory=dict)
    kinds: Sequence[str] = tuple(kind for kind in KINDS if kind != "documentation")

    def __post_init__(self):
        if unknown := sorted(set(self.benchmarks) - set(_READERS)):
            raise ValueError(
                f"decontaminate.benchmarks: {unknown[0]!r} is unknown; there are "
                f"{', '.join(_READERS)}"
            )
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ValueError(
                f"decontaminate.kinds: {unknown[0]!r} is unknown; there are {', '.join(KINDS)}"
            )


def steps(config: DecontaminateConfig, source: str) -> list[Step]:
    """The step "decontaminate", a `Map` that drops rows with the reason "benchmark".

    The detail of a drop names the problem, such as "HumanEval/12"; problems of GSM8K, APPS and
    DS-1000 are numbered as they stand in the file, from 0. The step's counts are the rows searched
    for each benchmark, and name the SHA-256 of the files that were used.

    Raises:
        ValueError: a file is missing, or does not hold the benchmark.
    """
    function = functools.partial(_decontaminate, _read(config.benchmarks), tuple(config.kinds))
    return [Map("decontaminate", (source,), function)]


@dataclasses.dataclass(frozen=True)
class _Texts:
    """What is looked for. Equal where the digests are, so that a process builds it once.

    Attributes:
        digests: of the files read: (name of the benchmark, SHA-256 in hexadecimal digits).
        texts: squeezed, without duplicates.
        problems: as many names.
    """

    digests: tuple[tuple[str, str], ...]
    texts: tuple[bytes, ...] = dataclasses.field(compare=False, repr=False)
    problems: tuple[str, ...] = dataclasses.field(compare=False, repr=False)


def squeeze(text: bytes) -> bytes:
    """UTF-8 in lower case and without white space, of which Unicode has more than ASCII."""
    if text.isascii():
        return text.translate(_LOWER, _SPACE)
    return "".join(text.decode(errors="replace").lower().split()).encode()


def _decontaminate(texts: _Texts, kinds: Sequence[str], table: pa.Table) -> Output:
    automaton = _automaton(texts)
    reasons: list[str | None] = []
    details: list[str | None] = []
    searched = 0
    for kind, content in zip(table["kind"].to_pylist(), table["content"], strict=True):
        problem = None
        if kind in kinds and content.is_valid:
            searched += 1
            if found := automaton.find_matches_as_indexes(squeeze(content.as_py())):
                problem = texts.problems[found[0][0]]
        reasons.append(None if problem is None else "benchmark")
        details.append(problem)
    counts = {
        f"rows searched for {name} (sha256 {digest})": searched for name, digest in texts.digests
    }
    output = select(table, reasons, details)
    return dataclasses.replace(output, counts=counts or {"rows searched for no benchmark": 0})


@functools.lru_cache(maxsize=2)
def _automaton(texts: _Texts) -> ahocorasick_rs.BytesAhoCorasick:
    # The other implementations need more memory or are slower; a text of ten megabytes is common
    # for APPS.
    return ahocorasick_rs.BytesAhoCorasick(
        texts.texts, implementation=ahocorasick_rs.Implementation.ContiguousNFA
    )


def _read(benchmarks: Mapping[str, str | Sequence[str]]) -> _Texts:
    problems: dict[bytes, str] = {}
    digests = []
    for name, paths in sorted(benchmarks.items()):
        digest = hashlib.sha256()
        for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
            data = _contents(name, path)
            digest.update(data)
            found = False
            try:
                for problem, text in _READERS[name](_rows(data)):
                    problems.setdefault(squeeze(text.encode()), problem)
                    found = True
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"decontaminate.benchmarks[{name!r}]: {path} is not a file of this benchmark "
                    f"({type(error).__name__}: {error})"
                ) from error
            if not found:
                raise ValueError(
                    f"decontaminate.benchmarks[{name!r}]: {path} has no problem of its test split"
                )
        digests.append((name, digest.hexdigest()))
    problems.pop(b"", None)
    for text in TRIVIAL:
        problems.pop(squeeze(text.encode()), None)
    return _Texts(tuple(digests), tuple(problems), tuple(problems.values()))


def _contents(name: str, path: str | os.PathLike) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise ValueError(
            f"decontaminate.benchmarks[{name!r}]: cannot read {path} ({error}); give the file of "
            "the benchmark, or leave it out"
        ) from error


def _rows(data: bytes) -> list[dict]:
    if data.lstrip().startswith(b"["):
        return json.loads(data)
    return [json.loads(line) for line in data.splitlines() if line.strip()]


def _humaneval(rows: Sequence[Mapping]) -> Iterator[tuple[str, str]]:
    for row in rows:
        prompt = row["prompt"]
        quotes = '"""' if '"""' in prompt else "'''"
        # The last docstring: helper functions stand, with theirs, before the one to be written.
        yield row["task_id"], prompt.rsplit(quotes, 2)[1]
        yield row["task_id"], row["canonical_solution"]


def _mbpp(rows: Sequence[Mapping]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if row["task_id"] in _MBPP_TEST:
            # The sanitized version has "prompt" for "text".
            yield f"MBPP/{row['task_id']}", row["text"] if "text" in row else row["prompt"]
            yield f"MBPP/{row['task_id']}", row["code"]


def _multipl_e(rows: Sequence[Mapping]) -> Iterator[tuple[str, str]]:
    prompts = [row["prompt"].splitlines(keepends=True) for row in rows]
    shared = 0
    if len(prompts) > 1:
        same = (len(set(lines)) == 1 for lines in zip(*prompts, strict=False))
        shared = sum(1 for _ in itertools.takewhile(bool, same))
    for row, lines in zip(rows, prompts, strict=True):
        problem = f"MultiPL-E/{row['language']}/{row['name']}"
        yield problem, "".join(lines[shared:])
        yield problem, row["tests"]


def _numbered(title: str, column: str, rows: Sequence[Mapping]) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows):
        yield f"{title}/{number}", row[column]


_READERS = {
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "multipl_e": _multipl_e,
    "gsm8k": functools.partial(_numbered, "GSM8K", "question"),
    "ds1000": functools.partial(_numbered, "DS-1000", "prompt"),
    "apps": functools.partial(_numbered, "APPS", "question"),
}
