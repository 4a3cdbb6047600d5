"""Is this user, repository or file in the published corpus, and which training steps saw it?

`index_steps` make an index when a corpus is published: every file, or other part of a document,
once for its repository, once for its path and once for its content, sorted by a hash of what it is
looked up by. `find` opens the one file that can have the answer.
"""

import functools
import os
import pathlib
import posixpath
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from starcoder_jax.stack import record
from starcoder_jax.stack.record import Output, stable_hash
from starcoder_jax.stack.runner.steps import Shuffle, Step

# What `find` answers: a part of a document, and that document.
FOUND = pa.schema(
    [
        *((name, pa.string()) for name in ("repository", "path", "revision", "swhid", "license")),
        *((name, pa.string()) for name in ("document", "component", "language", "kind")),
    ]
)

_KEYS = ("repository", "path", "swhid")
_INDEX = pa.schema([("key", pa.uint64()), ("by", pa.string()), *FOUND])
_SWHID = re.compile(r"swh:1:cnt:[0-9a-f]{40}")
_SHARD = re.compile(r"shard-\d+-of-(\d+)\.parquet")


def index_steps(source: str, partitions: int) -> list[Step]:
    """One step, "lookup", which writes the index.

    Args:
        source: the step that writes the published documents, with their ids.
        partitions: files of the index. An answer takes 0.04 s where one has 50,000 parts of
            documents, thus 150,000 rows, and 0.2 s where it has 600,000 (on one core, warm).
    """
    emit = functools.partial(_emit, partitions)
    return [Shuffle("lookup", (source,), emit, _INDEX, _reduce, partitions)]


def find(
    folder: str | os.PathLike,
    *,
    owner: str | None = None,
    repository: str | None = None,
    path: str | None = None,
    swhid: str | None = None,
) -> pa.Table:
    """Looks up what fits all that is given.

    Args:
        folder: what the step "lookup" wrote; a folder of this machine, or a URI.
        owner: user or organization; case makes no difference.
        repository: owner/name; case makes no difference.
        path: within a repository.
        swhid: of a content, swh:1:cnt:….

    Returns:
        Rows of `FOUND`, sorted.

    Raises:
        ValueError: there is no index, nothing is given to look for, or the SWHID is none.
    """
    if swhid is not None and not _SWHID.fullmatch(swhid):
        raise ValueError(f"swhid {swhid!r} must be swh:1:cnt: and 40 hexadecimal digits")
    if swhid is not None:
        by, low, high = "swhid", *_exactly(_hash("swhid", swhid))
    elif repository is not None:
        by, low, high = "repository", *_exactly(_repository_key(repository.lower()))
    elif path is not None:
        by, low, high = "path", *_exactly(_hash("path", path))
    elif owner is not None:
        first = _owner_key(owner.lower())
        by, low, high = "repository", first, first + (2**32 - 1)
    else:
        raise ValueError("nothing to look for: give an owner, a repository, a path or a SWHID")
    rows = _read(folder, low, high)
    asked = {"owner": owner, "repository": repository, "path": path, "swhid": swhid}
    fits = [row["by"] == by and _fits(row, asked) for row in rows.to_pylist()]
    found = rows.filter(pa.array(fits, pa.bool_())).select(FOUND.names)
    return found.sort_by([(name, "ascending") for name in FOUND.names])


def training_steps(
    workdir: str | os.PathLike, document_ids: Iterable[str]
) -> dict[str, np.ndarray]:
    """Which steps of a run saw documents, up to the last step in its metrics.

    Args:
        workdir: of the run; its token store must still be where its recipe says.
        document_ids: as `find` answers.

    Returns:
        As `data.lineage.steps_that_saw`.

    Raises:
        ValueError: it is no run, or its token store is not there.
    """
    from starcoder_jax.data.lineage import steps_that_saw
    from starcoder_jax.data.store import TokenStore
    from starcoder_jax.recipes import load_recipe  # loads JAX: looking up is quick without
    from starcoder_jax.training.metrics import read_metrics

    workdir = pathlib.Path(workdir)
    if not (workdir / "config.gin").exists():
        raise ValueError(f"{workdir} is no working directory of a run: it has no config.gin")
    recipe = load_recipe([str(workdir / "config.gin")])
    metrics = read_metrics(workdir)
    return steps_that_saw(
        TokenStore(recipe.data.directory or workdir / "data"),
        document_ids,
        rates=recipe.data.rates,
        batch_size=recipe.train.batch_size,
        sequence_length=recipe.train.sequence_length,
        seed=recipe.train.seed,
        steps=metrics[-1]["step"] if metrics else 0,
    )


def open_folder(folder: str | os.PathLike) -> tuple[pyarrow.fs.FileSystem, str]:
    """Where a folder of this machine, or a URI such as gs://bucket/folder, lies."""
    if "://" in str(folder):
        return pyarrow.fs.FileSystem.from_uri(str(folder))
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(folder)


def _emit(partitions: int, table: pa.Table) -> Iterator[tuple[np.ndarray, pa.Table]]:
    about = table.select(["id", "component", "language", "kind", "files"])
    for batch in about.to_batches():
        parts = _parts(batch)
        for by in _KEYS:
            rows = parts.filter(pc.is_valid(parts[by]))
            key = _keys(rows[by].combine_chunks(), by)
            columns = [pa.array(key), pa.array([by] * len(rows), pa.string()), *rows.columns]
            # By the first bits, so that all of an owner is in one partition.
            yield _partition(key, partitions), pa.table(columns, schema=_INDEX)


def _reduce(table: pa.Table) -> Output:
    return Output(table.sort_by([(name, "ascending") for name in _INDEX.names]))


def _parts(documents: pa.RecordBatch) -> pa.Table:
    """The parts of documents, of schema `FOUND`."""
    files = documents["files"]
    parts = pa.Table.from_struct_array(files.flatten())
    each = documents.drop_columns(["files"]).take(pc.list_parent_indices(files))
    columns = {name: parts[name] for name in FOUND.names if name in parts.column_names}
    columns |= {name: each[name] for name in ("component", "language", "kind")}
    return pa.table({**columns, "document": each["id"]}).select(FOUND.names).cast(FOUND)


def _keys(values: pa.Array, by: str) -> np.ndarray:
    encoded = values.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    if by == "repository":
        hashes = [_repository_key(name.lower()) for name in distinct]
    else:
        hashes = [_hash(by, value) for value in distinct]
    return np.array(hashes, np.uint64)[encoded.indices.to_numpy()]


def _owner_key(name: str) -> int:
    """The first of the keys of an owner's repositories, which have 32 bits in common."""
    return _hash("owner", name) >> 32 << 32


def _repository_key(name: str) -> int:
    return _owner_key(record.owner(name)) | _hash("repository", name) >> 32


def _hash(by: str, value: str) -> int:
    return stable_hash(f"{by} {value}")


def _exactly(key: int) -> tuple[int, int]:
    return key, key


def _partition(keys: np.ndarray, partitions: int) -> np.ndarray:
    return ((keys >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)


def _read(folder: str | os.PathLike, low: int, high: int) -> pa.Table:
    """The rows of the index whose keys are in [low, high], which share a partition."""
    files, root = open_folder(folder)
    entries = files.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    counts = {int(match[1]) for entry in entries if (match := _SHARD.fullmatch(entry.base_name))}
    if len(counts) != 1:
        raise ValueError(f"{folder} has no complete index: publish the corpus first")
    count = counts.pop()
    part = int(_partition(np.array([low], np.uint64), count)[0])
    path = posixpath.join(root, f"shard-{part:05}-of-{count:05}.parquet")
    bounds = [
        ("key", ">=", pa.scalar(low, pa.uint64())),
        ("key", "<=", pa.scalar(high, pa.uint64())),
    ]
    return pq.read_table(path, filesystem=files, filters=bounds)


def _fits(row: dict, asked: dict[str, str | None]) -> bool:
    name = (row["repository"] or "").lower()
    return (
        (asked["owner"] is None or record.owner(name) == asked["owner"].lower())
        and (asked["repository"] is None or name == asked["repository"].lower())
        and all(asked[key] in (None, row[key]) for key in ("path", "swhid"))
    )
