"""Proves that what was opted out is gone: looks through all that a pipeline has written."""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from starcoder_jax.data import published
from starcoder_jax.data.store import read_manifest
from starcoder_jax.stack.accounting import AUTHORED, STAGES
from starcoder_jax.stack.lookup import open_folder
from starcoder_jax.stack.report import REPORT_JSON
from starcoder_jax.stack.stages.optout import Entry, Matcher

# What tells whose a row is, in whatever table.
_COLUMNS = ("kind", "repository", "path", "swhid", "details", "files", "sample")
_BATCH_ROWS = 10_000


@dataclasses.dataclass(frozen=True, order=True)
class Remnant:
    """Something of an opt-out that is left.

    Attributes:
        place: the file, or the folder of a corpus's component or of a store.
        what: "rows", "samples" (of rows that were dropped), "documents" (of a store or corpus,
            that are not among the published ones) or "unfinished" (files of a killed process, of
            which nothing is known).
        name: of the entry of the ledger; empty where it is not known, as of samples of issues and
            the like, which may have any author.
        count: how many there are.
        is_raw: whether it is in what the stage "optout" was made from: nobody trains on that, and
            it can be deleted, or collected again.
    """

    place: str
    what: str
    name: str
    count: int
    is_raw: bool = False


def verify_removed(
    entries: Iterable[Entry],
    folder: str | os.PathLike,
    *,
    stores: Sequence[str | os.PathLike] = (),
    corpora: Sequence[str | os.PathLike] = (),
) -> list[Remnant]:
    """Looks for what was opted out in everything that was made.

    In the folder of a pipeline, all tables are looked through, whether a step has finished or not,
    and so are the samples of what was dropped, and of reports. Rows are told by what they say of
    themselves and, where there is any, by their `details`: documents do not name their authors,
    but are made of rows that did.

    Token stores and published corpora must hold nothing but documents that the step "publish" has
    now: so nothing of an earlier state is left in them. In stores this is asked of tasks whose
    source is a published corpus.

    Args:
        entries: of ledgers.
        folder: of the pipeline, of this machine or a URI.
        stores: folders of token stores.
        corpora: folders of published corpora.

    Returns:
        What is left, sorted; nothing but `is_raw` ones, if any, after the pipeline has run with the
        ledger.

    Raises:
        ValueError: a folder, store or corpus is none, or the step "publish" has not run.
    """
    finder = _Finder(Matcher(entries))
    files, root = open_folder(folder)
    if files.get_file_info(root).type != pyarrow.fs.FileType.Directory:
        raise ValueError(f"there is no folder {folder}: give that of a pipeline that has run")
    for entry in files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True)):
        if entry.is_file:
            step = entry.path[len(root) :].strip("/").partition("/")[0]
            finder.search_file(files, entry.path, _is_before_optout(step))
    documents = _published_ids(files, root) if stores or corpora else None
    for store in stores:
        finder.search_store(pathlib.Path(store), documents)
    for corpus in corpora:
        finder.search_corpus(pathlib.Path(corpus), documents)
    return finder.remnants()


class _Finder:
    """Counts what is left."""

    def __init__(self, matcher: Matcher):
        self._matcher = matcher
        self._counts: collections.Counter[tuple[str, str, str, bool]] = collections.Counter()

    def remnants(self) -> list[Remnant]:
        return sorted(
            Remnant(place, what, name, count, is_raw)
            for (place, what, name, is_raw), count in self._counts.items()
        )

    def search_file(self, files: pyarrow.fs.FileSystem, path: str, is_raw: bool) -> None:
        if path.endswith(f"/{REPORT_JSON}"):
            with files.open_input_stream(path) as file:
                report = json.loads(file.read())
            samples = [stage["samples"] for stage in report["stages"]]
            rows = [row for by_reason in samples for rows in by_reason.values() for row in rows]
            names = [name for name in _COLUMNS if name not in ("details", "files")]
            columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
            self._search(pa.table(columns), path, is_raw)
        elif path.endswith((".parquet", ".arrow")):
            try:
                for table in _tables(files, path):
                    self._search(table, path, is_raw)
            except pa.ArrowInvalid:
                self._counts[path, "unfinished", "", is_raw] += 1
        elif ".parquet." in path:
            self._counts[path, "unfinished", "", is_raw] += 1

    def search_store(self, store: pathlib.Path, documents: pa.Array) -> None:
        sources = read_manifest(store).get("config", {}).get("sources", {})
        for path in sorted(store.glob("*/*.documents.jsonl")):
            is_published = str(sources.get(path.parent.name)).startswith("stack:")
            for rows in _chunks(map(json.loads, path.open("rb"))):
                names = ("id", "repository", "path")
                columns = {
                    name: pa.array([row[name] for row in rows], pa.string()) for name in names
                }
                self._search(pa.table(columns), str(path))
                if is_published:
                    self._search_others(columns["id"], documents, str(path))
        for end in (".partial", ".corpus"):
            if (left := store.with_name(store.name + end)).exists():
                self._counts[str(left), "unfinished", "", False] += 1

    def search_corpus(self, corpus: pathlib.Path, documents: pa.Array) -> None:
        published.components(corpus)  # is one
        for folder in sorted((corpus / published.DATASET).glob("*/*")):
            if folder.name != published.VERSION:
                self._counts[str(folder), "unfinished", "", False] += 1
                continue
            for rows in _chunks(_published_rows(folder)):
                table = pa.Table.from_pylist(rows)
                self._search(table, str(folder))
                self._search_others(table["id"], documents, str(folder))

    def _search(self, table: pa.Table, place: str, is_raw: bool = False) -> None:
        what = "rows"
        if "sample" in table.column_names:
            # What was dropped is named, which is no remnant; what is shown of it is one.
            what, table = "samples", table.filter(pc.is_valid(table["sample"]))
            if self._matcher.knows_authors:
                authored = pc.is_in(table["kind"], value_set=pa.array(sorted(AUTHORED)))
                if count := pc.sum(authored).as_py():
                    self._counts[place, "samples", "", is_raw] += count
        for entry in self._matcher.match(table):
            if entry is not None:
                self._counts[place, what, entry.name, is_raw] += 1

    def _search_others(self, ids: pa.Array, documents: pa.Array, place: str) -> None:
        others = pc.sum(pc.invert(pc.is_in(ids, value_set=documents))).as_py()
        if others:
            self._counts[place, "documents", "", False] += others


def _is_before_optout(step: str) -> bool:
    stage = step.partition(".")[0]
    return stage in STAGES and STAGES.index(stage) < STAGES.index("optout")


def _tables(files: pyarrow.fs.FileSystem, path: str) -> Iterator[pa.Table]:
    """What a file says of whose its rows are."""
    with files.open_input_file(path) as file:
        if path.endswith(".arrow"):
            reader = pa.ipc.open_file(file)
            names = [name for name in _COLUMNS if name in reader.schema.names]
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)]).select(names)
            return
        reader = pq.ParquetFile(file)
        names = [name for name in _COLUMNS if name in reader.schema_arrow.names]
        for batch in reader.iter_batches(_BATCH_ROWS, columns=names):
            yield pa.Table.from_batches([batch])


def _published_ids(files: pyarrow.fs.FileSystem, root: str) -> pa.Array:
    """Ids of the documents that the step "publish" has."""
    ids = [pa.array([], pa.string())]
    folder = f"{root}/publish"
    for entry in files.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True)):
        if entry.path.endswith(".parquet") and not entry.path.endswith(".drops.parquet"):
            with files.open_input_file(entry.path) as file:
                ids += pq.read_table(file, columns=["id"])["id"].chunks
    if len(ids) == 1:
        raise ValueError(f"{root} has no step publish, which says what may be in a store: run it")
    return pa.concat_arrays(ids)


def _published_rows(folder: pathlib.Path) -> Iterator[dict]:
    """What the documents of a component say of themselves."""
    import tensorflow_datasets as tfds  # takes a second

    source = tfds.builder_from_directory(folder).as_data_source(split="train")
    names = ("repository", "path", "swhid")
    for number in range(len(source)):
        row = source[number]
        files = [
            {name: value.decode() for name, value in zip(names, values, strict=True)}
            for values in zip(*(row["files"][name] for name in names), strict=True)
        ]
        yield {"id": row["id"].decode(), "repository": row["repository"].decode(), "files": files}


def _chunks(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, _BATCH_ROWS)):
        yield chunk
