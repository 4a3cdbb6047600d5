"""Tables with one file a row: JSON lines and Parquet."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from starcoder_jax.stack.stages.collect.columns import (
    COLUMNS,
    CONTENT,
    files_of,
    row_of,
)
from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.files import (
    decompressed,
    file_fingerprint,
    lines,
    matching_files,
)
from starcoder_jax.stack.stages.collect.rows import Item, drop_row, printable

# JSON writes most characters with as many bytes as UTF-8, none that is common in text with more
# than three times as many.
_JSON_FACTOR = 3
_JSON_MORE = 2**20
_ITEM_BYTES = 2**28
_ROWS_PER_READ = 64

# The number of a row in its file, from 1 on, with the row; or why it is dropped.
Rows = Iterator[tuple[int, Mapping | str]]
# A row, and the repository and path to use where it names none.
MakeRow = Callable[[Mapping, str, str, CollectConfig], dict]


def jsonl_items(location: str, config: CollectConfig) -> list[Item]:
    """`jsonl:GLOB`, plain or compressed.

    Raises:
        ValueError: no file matches.
    """
    return [
        Item(functools.partial(_read_jsonl, path), file_fingerprint(path, "jsonl"))
        for path in matching_files(location)
    ]


def parquet_items(location: str, config: CollectConfig) -> list[Item]:
    """`parquet:GLOB`; large files are read in parts.

    Raises:
        ValueError: no file matches, or one has no column with contents or is damaged.
    """
    items = []
    for path in matching_files(location):
        for groups in row_groups(path, CONTENT):
            read = functools.partial(_read_parquet, path, groups)
            items.append(Item(read, file_fingerprint(path, "parquet", groups)))
    return items


def row_groups(path: str, wanted: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Row groups of a Parquet file that make up a unit of work each.

    Args:
        path: of the file.
        wanted: of these columns, or those of `files`, it must have one.

    Raises:
        ValueError: it has none, or it is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = {name for field in file.schema_arrow for name in _names(field)}
            sizes = [
                file.metadata.row_group(group).total_byte_size
                for group in range(file.num_row_groups)
            ]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not names & set(wanted):
        raise ValueError(
            f"{path} has no column {' or '.join(wanted)}; a table of identifiers is read by "
            "swh:TABLE?contents=FOLDER"
        )
    parts, size = [[]], 0
    for group, more in enumerate(sizes):
        if parts[-1] and size + more > _ITEM_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(group)
        size += more
    return [tuple(part) for part in parts]


def _names(field: pa.Field) -> set[str]:
    kind = field.type
    if field.name == "files" and pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        return {inner.name for inner in kind.value_type}
    return {field.name}


def jsonl_rows(path: str, config: CollectConfig) -> Rows:
    """The JSON objects of a file, one a line.

    Raises:
        OSError: it is damaged.
    """
    for number, line in json_lines(path, config):
        yield number, line if isinstance(line, str) else parsed(line)


def json_lines(path: str, config: CollectConfig) -> Iterator[tuple[int, bytes | str]]:
    """The lines of a file that are not blank, each with its number, or why it is dropped.

    Raises:
        OSError: it is damaged.
    """
    limit = _JSON_FACTOR * config.max_file_bytes + _JSON_MORE
    with decompressed(path) as stream:
        for number, (line, _) in enumerate(lines(stream.read, limit), start=1):
            if line is None:
                yield number, "line too long"
            elif line.strip():
                yield number, line


def parsed(line: bytes) -> Mapping | str:
    """The JSON object of a line, or why it is dropped."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "no object"


def parquet_rows(path: str, groups: tuple[int, ...]) -> Rows:
    """The rows of some row groups, with the columns that are known.

    Raises:
        OSError, ValueError, pa.ArrowException: the file is damaged.
    """
    with pq.ParquetFile(path) as file:
        before = sum(file.metadata.row_group(group).num_rows for group in range(groups[0]))
        columns = [name for name in file.schema_arrow.names if name in COLUMNS]
        batches = file.iter_batches(_ROWS_PER_READ, row_groups=list(groups), columns=columns)
        for batch in batches:
            for row in _plain(batch).to_pylist():
                before += 1
                yield before, row


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in CONTENT and pa.types.is_string(column.type):
            # It may be anything but UTF-8, whatever its type says.
            column = column.cast(pa.binary())
        elif pa.types.is_timestamp(column.type):
            # Python's dates end with the year 9999, and have no nanoseconds.
            seconds = pc.cast(column, pa.timestamp("s", column.type.tz), safe=False)
            column = seconds.cast(pa.int64())
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def stem(path: str) -> str:
    """The name of a file up to the first dot."""
    return printable(os.fsencode(os.path.basename(path).lstrip("."))).partition(".")[0] or "table"


def read_rows(path: str, rows: Rows, make_row: MakeRow, config: CollectConfig) -> Iterator[dict]:
    """Makes rows of those of a file, and of the files that one row may stand for."""
    try:
        for number, row in rows:
            # What names no repository is one of its own, so that such rows do not flock together.
            name = f"{stem(path)}/{number}"
            if isinstance(row, str):
                yield drop_row(row, repository=name)
                continue
            for index, file in enumerate(files_of(row), start=1):
                yield make_row(file, name, f"{number}.{index}", config)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield drop_row("damaged table", repository=stem(path), detail=str(error))


def _read_jsonl(path: str, config: CollectConfig) -> Iterator[dict]:
    yield from read_rows(path, jsonl_rows(path, config), row_of, config)


def _read_parquet(path: str, groups: tuple[int, ...], config: CollectConfig) -> Iterator[dict]:
    yield from read_rows(path, parquet_rows(path, groups), row_of, config)
