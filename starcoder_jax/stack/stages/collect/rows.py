"""Rows on their way from a source to a shard, the dropped ones among them."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from starcoder_jax.stack.record import RECORD, part_of
from starcoder_jax.stack.stages.collect.config import CollectConfig

# A row with a reason is dropped, and has no content.
SCHEMA = pa.schema(
    [
        *RECORD,
        ("drop_reason", pa.string()),
        ("drop_detail", pa.string()),
        ("drop_bytes", pa.int64()),
        # The git hash of the content: rows with the same one have the same content.
        ("digest", pa.string()),
    ]
)

_CHUNK_ROWS = 2048
_CHUNK_BYTES = 32 * 2**20
_BINARY_BYTES = 8192
_UNICODE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclasses.dataclass(frozen=True)
class Item:
    """A unit of work: a repository, an archive, or a part of a table.

    Attributes:
        read: yields the rows of it, mappings with columns of `SCHEMA`.
        fingerprint: changes when what `read` would read changes.
    """

    read: Callable[[CollectConfig], Iterator[dict]]
    fingerprint: str


@dataclasses.dataclass
class Budget:
    """What may still be read of a repository."""

    bytes: float
    files: int

    @classmethod
    def of(cls, config: CollectConfig) -> "Budget":
        """The budget that a repository begins with."""
        return cls(config.max_repository_bytes, config.max_repository_files)

    def spend(self, num_bytes: int, files: int = 0):
        """Takes note of what is about to be read.

        Raises:
            BudgetSpentError: it is more than is left.
        """
        self.bytes -= num_bytes
        self.files -= files
        if self.bytes < 0 or self.files < 0:
            raise BudgetSpentError


class BudgetSpentError(Exception):
    """A repository holds more than may be read of one."""


class DamagedError(Exception):
    """What is read is not what its format demands."""


def fingerprint(*parts: object) -> str:
    """A digest of plain values."""
    return hashlib.sha256(repr(parts).encode(errors="backslashreplace")).hexdigest()


def git_hash(content: bytes, kind: bytes = b"blob") -> str:
    """The name that git and Software Heritage give a content (or a tree, or a commit)."""
    digest = hashlib.sha1(b"%s %d\0" % (kind, len(content)), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def printable(name: str | bytes) -> str:
    """A name as valid UTF-8, with backslash escapes for what is none."""
    if isinstance(name, bytes):
        return name.decode(errors="backslashreplace")
    return name.encode(errors="backslashreplace").decode()


def is_binary(content: bytes) -> bool:
    """Whether there is a NUL in the beginning of a content that is not UTF-16 or UTF-32."""
    beginning = content[:_BINARY_BYTES]
    return b"\0" in beginning and not beginning.startswith(_UNICODE_MARKS)


def file_row(content: bytes, config: CollectConfig, *, kind: str = "file", **columns) -> dict:
    """The row of a file or page; it is dropped if the content is too large or binary.

    `columns` are further columns of `RECORD`; a `swhid` among them is believed.
    """
    if len(content) > config.max_file_bytes:
        return drop_row("too large", kind=kind, size=len(content), **columns)
    if is_binary(content):
        return drop_row("binary", kind=kind, size=len(content), **columns)
    digest = git_hash(content)
    swhid = columns.pop("swhid", None) or f"swh:1:cnt:{digest}"
    return {"kind": kind, "content": content, "digest": digest, "swhid": swhid, **columns}


def object_row(content: bytes, config: CollectConfig, *, kind: str, **columns) -> dict:
    """The row of a JSON object, which `render` makes a text of; dropped if it is too large."""
    if len(content) > config.max_file_bytes:
        return drop_row("too large", kind=kind, size=len(content), **columns)
    return {"kind": kind, "content": content, "digest": git_hash(content), **columns}


def drop_row(
    reason: str,
    *,
    kind: str = "file",
    size: int | None = None,
    detail: str | None = None,
    **columns,
) -> dict:
    """The row of what is dropped, and the number of its bytes where known."""
    return {
        "kind": kind,
        "drop_reason": reason,
        "drop_detail": None if detail is None else printable(detail),
        "drop_bytes": size,
        **columns,
    }


def chunks(rows: Iterable[dict], config: CollectConfig) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Puts rows into tables of `SCHEMA`, with the shard of each row, int64 [rows]."""
    part = functools.lru_cache(functools.partial(part_of, num_parts=config.shards))
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += len(row.get("content") or b"")
        if len(chunk) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield np.array([part(row["repository"]) for row in chunk]), _table(chunk)
            chunk, size = [], 0
    if chunk:
        yield np.array([part(row["repository"]) for row in chunk]), _table(chunk)


def _table(rows: list[dict]) -> pa.Table:
    named = {name for row in rows for name in row}
    columns = []
    for field in SCHEMA:
        if field.name == "marks":
            columns.append(pa.array([[]] * len(rows), field.type))
        elif field.name in named:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
        else:
            columns.append(pa.nulls(len(rows), field.type))
    return pa.table(columns, schema=SCHEMA)
