"""`publish`: every document once, in the order of its id, as a TFDS dataset.

The last step, "publish", gives the documents ids and components, and drops those that are there
already. `write` makes the ArrayRecord files of its shards (see `data.published`).
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.data import published
from starcoder_jax.data.documents import document_id
from starcoder_jax.stack.record import DOCUMENT, DROP, Output
from starcoder_jax.stack.runner.shards import StepResult
from starcoder_jax.stack.runner.steps import Map, Shuffle, Step

PUBLISHED = pa.schema(
    [("component", pa.string()), ("id", pa.string()), ("bytes", pa.int64()), *DOCUMENT]
)

_COMPONENTS = pa.schema(
    [
        *((name, pa.string()) for name in ("component", "language", "kind")),
        *((name, pa.int64()) for name in ("documents", "bytes")),
        ("digest", pa.string()),
    ]
)
_BATCH_ROWS = 256


@dataclasses.dataclass(frozen=True)
class PublishConfig:
    """How the corpus is published.

    Attributes:
        shards: the documents are sorted by id in; as many must fit in memory as there are workers.

    Raises:
        ValueError: there must be one at least.
    """

    shards: int = 16

    def __post_init__(self):
        if self.shards < 1:
            raise ValueError(f"publish.shards is {self.shards}: it must be positive")


def steps(config: PublishConfig, source: str) -> list[Step]:
    """The step "publish", rows of `PUBLISHED` by component and id, and what `write` needs."""
    emit = functools.partial(_emit, shards=config.shards)
    return [
        Shuffle("publish", (source,), emit, PUBLISHED, _reduce, config.shards),
        Map("publish.components", ("publish",), _components),
    ]


def write(
    documents: StepResult, components: StepResult, directory: pathlib.Path, workers: int
) -> list[published.Component]:
    """Writes the published corpus; components that did not change are left alone.

    Args:
        documents: of the step "publish".
        components: of the step "publish.components".
        directory: of the corpus.
        workers: processes, each of which writes some components.

    Returns:
        What the corpus has.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = _entries(components)
    try:
        before = published.components(directory)
    except ValueError:
        before = {}
    changed = [entry for entry in entries if before.get(entry.name) != entry]
    if changed:
        # Until all is written, it does not say what there is.
        (directory / published.MANIFEST).unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            list(
                pool.map(functools.partial(_write, documents, directory), _parts(changed, workers))
            )
    published.write_manifest(directory, entries)
    return entries


def _emit(table: pa.Table, shards: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        ids, components = [], []
        for row in batch.select(["content", "marks", "kind", "language"]).to_pylist():
            ids.append(document_id(row["content"], row["marks"]))
            components.append(published.component_name(row["kind"], row["language"]))
        sizes = pc.binary_length(batch["content"]).cast(pa.int64())
        columns = [pa.array(components, pa.string()), pa.array(ids, pa.string()), sizes]
        columns += batch.columns
        # By the first digits, so that a component is in order over all shards.
        parts = np.array([int(id_[:8], 16) * shards >> 32 for id_ in ids], np.int64)
        yield parts, pa.table(columns, schema=PUBLISHED)


def _reduce(table: pa.Table) -> Output:
    keys = [(name, "ascending") for name in ("id", "repository", "kind")]
    table = table.take(pc.sort_indices(table, sort_keys=keys))
    ids = table["id"].to_pylist()
    again = np.array([i > 0 and id_ == ids[i - 1] for i, id_ in enumerate(ids)], bool)
    once = table.filter(pa.array(~again))
    keys = [(name, "ascending") for name in ("component", "id")]
    return Output(once.take(pc.sort_indices(once, sort_keys=keys)), _drops(table, again))


def _drops(table: pa.Table, again: np.ndarray) -> pa.Table:
    """Documents that are there already, each by the first of its files."""
    rows = []
    for row in table.filter(pa.array(again)).drop_columns(["content", "marks"]).to_pylist():
        file = row["files"][0] if row["files"] else {}
        columns = ("kind", "repository", "language", "license_type", "bytes")
        rows.append(
            {
                "reason": "duplicate document",
                **{name: row[name] for name in columns},
                **{name: file.get(name) for name in ("path", "revision", "swhid")},
                "detail": row["id"],
            }
        )
    return pa.Table.from_pylist(rows, schema=DROP)


def _components(table: pa.Table) -> Output:
    """What a shard has of each component; a document's id answers for its text."""
    counts: dict[str, list] = {}
    about = table.drop_columns(["content", "marks"])
    for batch in about.to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            entry = counts.setdefault(row["component"], [row, 0, 0, hashlib.sha256()])
            entry[1] += 1
            entry[2] += row["bytes"]
            entry[3].update(json.dumps(row, sort_keys=True).encode())
    rows = [
        {
            **{column: row[column] for column in ("component", "language", "kind")},
            "documents": documents,
            "bytes": size,
            "digest": digest.hexdigest(),
        }
        for row, documents, size, digest in counts.values()
    ]
    return Output(pa.Table.from_pylist(rows, schema=_COMPONENTS))


def _entries(components: StepResult) -> list[published.Component]:
    found: dict[str, published.Component] = {}
    for row in pa.concat_tables(components.tables()).to_pylist():
        name = row.pop("component")
        before = found.get(name) or published.Component(
            name, row["language"], row["kind"], 0, 0, ""
        )
        found[name] = dataclasses.replace(
            before,
            documents=before.documents + row["documents"],
            bytes=before.bytes + row["bytes"],
            digest=hashlib.sha256(f"{before.digest} {row['digest']}".encode()).hexdigest(),
        )
    return sorted(found.values(), key=lambda entry: entry.name)


def _parts(entries: Sequence[published.Component], count: int) -> list[list[published.Component]]:
    """Divides the work: the largest components first, each to who has least to do."""
    parts: list[list[published.Component]] = [[] for _ in range(min(count, len(entries)))]
    for entry in sorted(entries, key=lambda entry: -entry.bytes):
        min(parts, key=lambda part: sum(other.bytes for other in part)).append(entry)
    return parts


def _write(
    documents: StepResult, directory: pathlib.Path, entries: Sequence[published.Component]
) -> None:
    with contextlib.ExitStack() as stack:
        writers = {
            entry.name: stack.enter_context(published.ComponentWriter(directory, entry))
            for entry in entries
        }
        names = pa.array(list(writers))
        for table in documents.tables():
            for batch in table.filter(pc.is_in(table["component"], names)).to_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    writers[row["component"]].write(row)
        for writer in writers.values():
            writer.finish()
