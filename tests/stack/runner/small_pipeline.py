"""A pipeline with all that a runner must do, whose functions note that they were called.

python small_pipeline.py FOLDER WORKERS     runs it
"""

import dataclasses
import functools
import os
import pathlib
import re
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack.record import RECORD, Output, part_of, records, select, stable_hash
from starcoder_jax.stack.runner.run import RunnerConfig, run
from starcoder_jax.stack.runner.steps import Map, Shuffle

SHARDS, PARTITIONS = 3, 4
WORDS = pa.schema([("word", pa.large_binary()), ("where", pa.list_(pa.string()))])
TOTALS = pa.schema([("files", pa.int64())])


@dataclasses.dataclass(frozen=True)
class Files:
    """An item: some files of a repository; a file's text depends on `text`."""

    repository: str
    count: int
    text: str = "a"

    @property
    def fingerprint(self) -> str:
        return f"{self.repository} {self.count} {self.text}"


ITEMS = (Files("a/b", 5), Files("c/d", 7), Files("e/f", 0), Files("a/b", 4, "b"), Files("g/h", 9))


@dataclasses.dataclass(frozen=True)
class Limits:
    max_bytes: int = 25


def note(line: str) -> None:
    """Says that a function was called, if somebody wants to know, and takes its time."""
    if log := os.environ.get("CALLS"):
        with open(log, "a") as file:
            file.write(line + "\n")
        with open(f"{log}.pids", "a") as file:
            file.write(f"{os.getpid()}\n")
    pause = os.environ.get("PAUSE", "0")
    if pause == "without end in a regex":
        re.fullmatch("(a+)+", "a" * 99 + "b")
    time.sleep(float(pause))


def calls(log: pathlib.Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def emit_files(item: Files):
    note(f"collect from {item.fingerprint}")
    for number in range(item.count):
        content = f"{item.text} {number} " * (1 + number)
        row = {
            "kind": "file",
            "content": content.encode(),
            "marks": [{"offset": number, "token": "<t>"}] * (number % 3),
            "repository": item.repository,
            "path": f"{item.text}/{number}.py",
            "stars": number if number % 2 else None,
        }
        yield np.array([part_of(item.repository, SHARDS)]), records([row])


def collect(table: pa.Table) -> Output:
    note(f"collect {sorted(set(table['repository'].to_pylist()))}")
    return Output(table, counts={"files": len(table)})


def keep_short(limits: Limits, table: pa.Table) -> Output:
    note(f"filter {sorted(set(table['repository'].to_pylist()))}")
    sizes = pc.binary_length(table["content"]).to_pylist()
    return select(table, ["too long" if size > limits.max_bytes else None for size in sizes])


def emit_count(table: pa.Table):
    note("total from")
    yield np.zeros(1, np.uint8), pa.table({"files": [len(table)]}, TOTALS)


def add_up(table: pa.Table) -> Output:
    note("total")
    return Output(pa.table({"files": [pc.sum(table["files"]).as_py()]}, TOTALS))


def tell_total(table: pa.Table, total: pa.Table) -> Output:
    note("told")
    told = pa.array([total["files"][0].as_py()] * len(table), pa.int64())
    return Output(table.set_column(RECORD.get_field_index("forks"), "forks", told))


def emit_words(parts: int, table: pa.Table):
    note(f"words from {table['path'].to_pylist()}")
    for content, path in zip(table["content"].to_pylist(), table["path"].to_pylist(), strict=True):
        words = content.split()
        partitions = [stable_hash(word) % parts for word in words]
        rows = pa.table({"word": words, "where": [[path]] * len(words)}, WORDS)
        yield np.array(partitions, np.int64), rows


def gather_words(table: pa.Table) -> Output:
    note(f"words {sorted(set(table['word'].to_pylist()))}")
    return Output(table, counts={"words": len(table)})


def fail(word: str, table: pa.Table) -> Output:
    if word in table["repository"].to_pylist():
        raise KeyError(f"no such\nthing as {word}")
    return Output(table)


def steps(items=ITEMS, limits=Limits(), add_up=add_up, parts=PARTITIONS) -> list:
    from_words = functools.partial(emit_words, parts)
    return [
        Shuffle("collect", (), emit_files, RECORD, collect, SHARDS, items),
        Map("filter", ("collect",), functools.partial(keep_short, limits)),
        Shuffle("told.total", ("filter",), emit_count, TOTALS, add_up, 1),
        Map("told", ("filter", "told.total"), tell_total),
        Shuffle("words", ("told",), from_words, WORDS, gather_words, parts),
    ]


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """All that a run leaves, but for its locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


if __name__ == "__main__":
    # Small enough that every shuffle spills more than once.
    run(steps(), sys.argv[1], RunnerConfig(workers=int(sys.argv[2]), memory_bytes=200))
