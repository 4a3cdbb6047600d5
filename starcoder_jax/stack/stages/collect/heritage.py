"""Software Heritage: a table of identifiers, and a local mirror that has the contents.

`swh:TABLE?contents=FOLDER`: TABLE is a glob of Parquet files or JSON lines in The Stack v2's
columns; the content with the git hash 12ab... is FOLDER/12ab..., FOLDER/12/ab/12ab... or
FOLDER/12/ab/../12ab... (one more level), with or without ".gz". Those of Software Heritage's bucket
are gzip without saying so in their names. That a content is the right one is checked.
"""

import codecs
import functools
import os
import zlib
from collections.abc import Iterator, Mapping

from starcoder_jax.stack.stages.collect.columns import (
    BLOB,
    ENCODING,
    columns_of,
    first,
    swhid,
)
from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.files import (
    file_fingerprint,
    matching_files,
    read_regular,
)
from starcoder_jax.stack.stages.collect.rows import (
    Item,
    drop_row,
    file_row,
    git_hash,
)
from starcoder_jax.stack.stages.collect.tables import (
    jsonl_rows,
    parquet_rows,
    read_rows,
    row_groups,
)

_GZIP = b"\x1f\x8b"
_GZIP_MORE = 2**16
# Their decoders take time that grows with the square of the text, or do more than to decode.
_REFUSED = frozenset(("punycode", "idna", "unicode-escape", "raw-unicode-escape", "undefined"))


def heritage_items(location: str, config: CollectConfig) -> list[Item]:
    """`swh:TABLE?contents=FOLDER`.

    Raises:
        ValueError: the folder is not named or not there, or no table matches or is one.
    """
    table, _, folder = location.partition("?contents=")
    folder = os.path.realpath(os.path.expanduser(folder)) if folder else ""
    if not os.path.isdir(folder):
        raise ValueError(f"swh:{location} names no folder of contents: swh:TABLE?contents=FOLDER")
    items = []
    for path in matching_files(table):
        is_parquet = _is_parquet(path)
        for groups in row_groups(path, BLOB) if is_parquet else [None]:
            read = functools.partial(_read_table, path, groups, folder)
            items.append(Item(read, file_fingerprint(path, "swh", groups, folder)))
    return items


def _is_parquet(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _read_table(
    path: str, groups: tuple[int, ...] | None, folder: str, config: CollectConfig
) -> Iterator[dict]:
    rows = jsonl_rows(path, config) if groups is None else parquet_rows(path, groups)
    yield from read_rows(path, rows, functools.partial(_row, folder), config)


def _row(folder: str, row: Mapping, repository: str, path: str, config: CollectConfig) -> dict:
    columns = columns_of(row, repository, path)
    if swhid(first(row, BLOB), "cnt") is None:
        return drop_row("no identifier", **columns)
    blob = columns["swhid"].rpartition(":")[2]
    content = _content(folder, blob, config.max_file_bytes)
    if content is None:
        return drop_row("missing content", **columns)
    if len(content) > config.max_file_bytes:
        return drop_row("too large", **columns)
    if git_hash(content) != blob:
        return drop_row("wrong content", size=len(content), **columns)
    if isinstance(encoding := row.get(ENCODING), str):
        try:
            codec = codecs.lookup(encoding)
            if codec.name in _REFUSED:
                raise LookupError
            content = content.decode(codec.name).encode()
        except (LookupError, ValueError):
            return drop_row("unknown encoding", size=len(content), detail=encoding, **columns)
    return file_row(content, config, **columns)


def _content(folder: str, blob: str, limit: int) -> bytes | None:
    """The content of a hash, no more than `limit` + 1 bytes of it; None where there is none."""
    levels = (blob[:2], blob[2:4], blob[4:6])
    for depth in (0, 2, 3):
        for suffix in ("", ".gz"):
            path = os.path.join(folder, *levels[:depth], blob + suffix)
            try:
                content = read_regular(path, limit + _GZIP_MORE)
            except OSError:
                continue
            if content.startswith(_GZIP) and git_hash(content) != blob:
                return _gunzipped(content, limit)
            return content
    return None


def _gunzipped(content: bytes, limit: int) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(content, limit + 1)
    except zlib.error:
        return content
