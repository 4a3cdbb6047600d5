"""Reads files that somebody hostile may have made: bounded, and nothing but regular files."""

import contextlib
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from starcoder_jax.stack.stages.collect.rows import fingerprint

_BLOCK_BYTES = 2**20
_PEEK_BYTES = 8192
_WILDCARD = re.compile(r"[*?[]")
_COMPRESSIONS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\x28\xb5\x2f\xfd", "zstd"))

Read = Callable[[int], bytes]


def matches(pattern: str) -> list[str]:
    """What a glob pattern matches, absolute and sorted; "**" is no more than "*".

    Raises:
        ValueError: nothing.
    """
    found = sorted(glob.glob(os.path.abspath(os.path.expanduser(pattern))))
    if not found:
        raise ValueError(f"nothing matches {pattern}: name files or folders that exist")
    return found


def matching_files(pattern: str) -> list[str]:
    """The files that a glob pattern matches; symbolic links to files are such.

    Raises:
        ValueError: there is none.
    """
    files = [path for path in matches(pattern) if os.path.isfile(path)]
    if not files:
        raise ValueError(f"{pattern} matches no file: name files, such as {pattern}/*")
    return files


def repository_name(path: str, pattern: str) -> str:
    """The parts of a path that a pattern leaves open, and the last one.

    So "/mirror/*/*" makes "owner/name" of /mirror/owner/name, and "/packages/*" just "name".
    """
    names = path.strip("/").split("/")
    blanks = os.path.abspath(os.path.expanduser(pattern)).strip("/").split("/")
    open_ones = [
        name for name, blank in zip(names[:-1], blanks, strict=False) if _WILDCARD.search(blank)
    ]
    return "/".join([*open_ones, names[-1] or "root"])


def file_fingerprint(path: str, *more: object) -> str:
    """Changes when the file is written to, and with `more`."""
    status = os.stat(path)
    return fingerprint(path, status.st_size, status.st_mtime_ns, *more)


def open_regular(name: str, folder: int | None = None) -> int:
    """Opens a file for reading, relative to an open folder if given; returns the descriptor.

    Raises:
        OSError: it is a symbolic link, no regular file, or cannot be read.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer forever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{name} is no regular file")
    return descriptor


def read_regular(
    name: str,
    limit: int,
    folder: int | None = None,
    is_unwanted: Callable[[bytes], bool] = lambda beginning: False,
) -> bytes:
    """Reads a file.

    Args:
        name: of the file.
        limit: of a longer file, no more than that many bytes and one are read.
        folder: descriptor of the folder that `name` starts from, if not from here.
        is_unwanted: tells from its beginning whether a file need not be read to the end.

    Raises:
        OSError: as `open_regular`.
    """
    with open(open_regular(name, folder), "rb", buffering=0) as file:
        beginning = file.read(min(_PEEK_BYTES, limit + 1))
        if is_unwanted(beginning):
            return beginning
        # No more at once than there should be, since a buffer of that size is made.
        step = max(1, min(os.fstat(file.fileno()).st_size, limit + 1) - len(beginning))
        return beginning + read_up_to(file.read, limit + 1 - len(beginning), step)


def read_up_to(read: Read, limit: int, step: int = _BLOCK_BYTES) -> bytes:
    """Reads until the end, or until there are `limit` bytes."""
    blocks = []
    while limit and (block := read(min(limit, step))):
        blocks.append(block)
        limit -= len(block)
    return b"".join(blocks) if len(blocks) != 1 else blocks[0]


@contextlib.contextmanager
def decompressed(path: str) -> Iterator[BinaryIO]:
    """Opens a file as what it holds, decompressed if it is gzip, bzip2 or Zstandard.

    The beginning of the file tells, not its name. Reading it raises OSError if it is damaged.
    """
    with pa.OSFile(path) as file:
        beginning = file.read(4)
        file.seek(0)
        for magic, name in _COMPRESSIONS:
            if beginning.startswith(magic):
                with pa.CompressedInputStream(file, name) as stream:
                    yield stream
                return
        yield file


def lines(read: Read, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Splits what is read into lines; of one with more than `limit` bytes no more is held.

    Yields:
        A line without its end, None if it is too long; and its length.
    """
    begun, length = bytearray(), 0
    while block := read(_BLOCK_BYTES):
        *ends, rest = block.split(b"\n")
        for end in ends:
            length += len(end)
            yield (bytes(begun) + end if length <= limit else None), length
            begun, length = bytearray(), 0
        length += len(rest)
        if length <= limit:
            begun += rest
        else:
            begun.clear()
    if length:
        yield (bytes(begun) if length <= limit else None), length
