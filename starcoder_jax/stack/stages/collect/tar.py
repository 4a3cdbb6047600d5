"""Reads tar archives as a stream.

The format is a handful of fixed fields. Python's `tarfile` takes time that grows with the square of
an extended header, and memory as a header demands; here both are bounded.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from starcoder_jax.stack.stages.collect.files import Read, read_up_to
from starcoder_jax.stack.stages.collect.rows import Budget, DamagedError

_BLOCK = 512
_MAX_HEADER_BYTES = 2**16
_MAX_SKIP_BYTES = 2**20
_FILE_TYPES = (b"0", b"\0", b"7")
# Links, devices, folders and pipes: their headers may state a size, but no content follows.
_EMPTY_TYPES = (b"1", b"2", b"3", b"4", b"5", b"6")
_LINK_TYPES = (b"1", b"2")
# A long name, a long link, what the next entry and what all entries have besides.
_EXTENDED_TYPES = (b"L", b"K", b"x", b"g")
_FOLDER_TYPE = b"5"
_FIELDS = (b"path", b"size", b"comment")
_SPARSE = b"GNU.sparse"
_LENGTH = re.compile(rb"([0-9]{1,6}) ")


class Member(NamedTuple):
    """An entry: its name as it stands, and what is no regular file has a reason.

    `is_folder` tells apart what has nothing to read, but is no loss.
    """

    name: bytes
    size: int
    is_folder: bool
    reason: str | None


class TarReader:
    """Reads an archive from front to back."""

    def __init__(self, read: Read, budget: Budget):
        """Reads decompressed bytes by `read`; all of them are taken from `budget`."""
        self._read = read
        self._budget = budget
        self._left = 0
        self._padding = 0
        # The comment of the archive as a whole: `git archive` writes the revision there.
        self.comment = ""

    def members(self) -> Iterator[Member]:
        """Yields the entries; `content` reads that of the last one.

        Raises:
            DamagedError: it is no tar archive, or not a whole one.
            BudgetSpentError: enough was read.
        """
        fields: dict[bytes, bytes] = {}
        header = self._take(_BLOCK)
        if not header:
            raise DamagedError("it is empty")
        while header.strip(b"\0"):
            if len(header) < _BLOCK or not _has_right_sum(header):
                raise DamagedError("it is no tar archive, or a damaged one")
            fields, member = self._entry(header, fields)
            if member is not None:
                yield member
                self._skip()
            header = self._take(_BLOCK)

    def _entry(
        self, header: bytes, fields: dict[bytes, bytes]
    ) -> tuple[dict[bytes, bytes], Member | None]:
        """Reads an entry, or an extended header: what it says of the entry that comes next."""
        kind, size = header[156:157], _number(header[124:136])
        if kind in _EXTENDED_TYPES:
            content = self._header(size)
            if kind == b"L":
                return fields | {b"path": content.rstrip(b"\0")}, None
            if kind == b"x":
                return fields | _fields(content), None
            if kind == b"g":
                self.comment = _fields(content).get(b"comment", b"").decode(errors="replace")
            return fields, None
        if b"size" in fields:
            size = _decimal(fields[b"size"])
        if kind in _EMPTY_TYPES:
            size = 0
        self._left, self._padding = size, -size % _BLOCK
        self._budget.spend(0, 1)
        is_folder = kind == _FOLDER_TYPE
        return {}, Member(_name(header, fields), size, is_folder, _reason(kind, fields))

    def content(self) -> bytes:
        """The content of the entry that came last."""
        content = self._take(self._left)
        if len(content) < self._left:
            raise DamagedError("the archive ends early")
        self._left = 0
        return content

    def _header(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise DamagedError("an extended header is too long")
        self._left, self._padding = size, -size % _BLOCK
        content = self.content()
        self._skip()
        return content

    def _skip(self):
        left = self._left + self._padding
        while left:
            skipped = len(self._take(min(left, _MAX_SKIP_BYTES)))
            if not skipped:
                raise DamagedError("the archive ends early")
            left -= skipped

    def _take(self, size: int) -> bytes:
        self._budget.spend(size)
        try:
            return read_up_to(self._read, size)
        except OSError as error:
            raise DamagedError(str(error)) from None


def _has_right_sum(header: bytes) -> bool:
    # The sum is that of a header with blanks where the sum stands.
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return _number(header[148:156]) == total


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise DamagedError("a header is damaged")
    return int(digits or b"0", 8)


def _decimal(field: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", field):
        raise DamagedError("an extended header is damaged")
    return int(field)


def _fields(content: bytes) -> dict[bytes, bytes]:
    """The records "LENGTH NAME=VALUE\\n" of an extended header."""
    fields, start = {}, 0
    while start < len(content):
        match = _LENGTH.match(content, start)
        stop = start + int(match[1]) if match else 0
        if match is None or not match.end() < stop <= len(content):
            raise DamagedError("an extended header is damaged")
        name, _, value = content[match.end() : stop - 1].partition(b"=")
        if name in _FIELDS:
            fields[name] = value
        elif name.startswith(_SPARSE):
            fields[_SPARSE] = b""
        start = stop
    return fields


def _name(header: bytes, fields: dict[bytes, bytes]) -> bytes:
    if b"path" in fields:
        return fields[b"path"]
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    # GNU's older format has other things where this one has the prefix.
    if header[257:263] == b"ustar\0" and prefix:
        return prefix + b"/" + name
    return name


def _reason(kind: bytes, fields: dict[bytes, bytes]) -> str | None:
    if kind in _LINK_TYPES:
        return "link"
    if kind not in _FILE_TYPES or _SPARSE in fields:
        return "special file"
    return None
