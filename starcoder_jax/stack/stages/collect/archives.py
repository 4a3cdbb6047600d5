"""Archives of repositories, tar or zip: read as streams, never written to a disk."""

import contextlib
import dataclasses
import functools
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.files import (
    decompressed,
    file_fingerprint,
    matching_files,
    repository_name,
)
from starcoder_jax.stack.stages.collect.rows import (
    Budget,
    BudgetSpentError,
    DamagedError,
    Item,
    drop_row,
    file_row,
    printable,
)
from starcoder_jax.stack.stages.collect.tar import TarReader

_SUFFIX = re.compile(r"\.(zip|tar|tgz|tbz2?|tar\.(gz|bz2|zst))$", re.IGNORECASE)
_REVISION = re.compile("[0-9a-f]{40}")
_DRIVE = re.compile("[A-Za-z]:")
# A small archive may grow that much, whatever the ratio: thousands of like files may be.
_FREE_BYTES = 2**26
# Some 100 bytes an entry, of which Python then takes ten times as much.
_MAX_DIRECTORY_BYTES = 2**25
_ENCRYPTED = 1
# What `zipfile` raises for a damaged archive; of the second line, the first is for methods of
# compression that it does not know, the second for entries that ask for a password.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError),
)


def archive_items(location: str, config: CollectConfig) -> list[Item]:
    """`archive:GLOB`: each is a repository, called like the file.

    Raises:
        ValueError: no file matches.
    """
    items = []
    for path in matching_files(location):
        repository = _SUFFIX.sub("", repository_name(path, location))
        read = functools.partial(_read_archive, path, repository)
        items.append(Item(read, file_fingerprint(path, "archive", repository)))
    return items


def _read_archive(path: str, repository: str, config: CollectConfig) -> Iterator[dict]:
    repository = printable(os.fsencode(repository))
    budget = Budget.of(config)
    on_disk = os.path.getsize(path)
    budget.bytes = min(budget.bytes, max(_FREE_BYTES, config.max_ratio * on_disk))
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
        if is_zip:
            yield from _zip_rows(path, repository, budget, config)
        else:
            with decompressed(path) as stream:
                yield from _tar_rows(TarReader(stream.read, budget), repository, config)
    except BudgetSpentError:
        yield drop_row("archive too large", repository=repository)
    except (DamagedError, OSError) as error:
        yield drop_row("damaged archive", repository=repository, detail=str(error))


def _tar_rows(archive: TarReader, repository: str, config: CollectConfig) -> Iterator[dict]:
    paths = _Paths(config.max_depth)
    for member in archive.members():
        name = printable(member.name)
        if paths.top is None:
            # The archives of code hosts begin with the folder that all the rest is in.
            paths.top = name.strip("/") if member.is_folder else ""
        path, reason = paths.below_top(name, member.is_folder)
        if member.is_folder:
            continue
        reason = reason or member.reason
        if reason is None and member.size > config.max_file_bytes:
            reason = "too large"
        columns = {"repository": repository, "path": path, "revision": _revision(archive.comment)}
        if reason is None:
            yield file_row(archive.content(), config, **columns)
        else:
            yield drop_row(reason, size=member.size, **columns)


class _ZipFile(io.FileIO):
    """A file of which a program that asks for too much at once gets nothing."""

    limit = _MAX_DIRECTORY_BYTES

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise DamagedError("its list of entries is too long")
        return super().read(size)


@contextlib.contextmanager
def _open_zip(path: str, max_file_bytes: int) -> Iterator[zipfile.ZipFile]:
    with _ZipFile(path) as file:
        try:
            # This reads the list of entries as a whole.
            archive = zipfile.ZipFile(file)
        except _ZIP_ERRORS as error:
            raise DamagedError(str(error)) from None
        file.limit = max(file.limit, max_file_bytes + 1)
        with archive:
            yield archive


def _zip_rows(path: str, repository: str, budget: Budget, config: CollectConfig) -> Iterator[dict]:
    with _open_zip(path, config.max_file_bytes) as archive:
        revision = _revision(archive.comment.decode(errors="replace"))
        names = [printable(entry.filename.replace("\\", "/")) for entry in archive.infolist()]
        tops = {name.partition("/")[0] for name in names}
        paths = _Paths(config.max_depth, tops.pop() if len(tops) == 1 else "")
        for name, entry in zip(names, archive.infolist(), strict=True):
            is_folder = name.endswith("/")
            below, reason = paths.below_top(name, is_folder)
            reason = reason or _reason(entry, config)
            budget.spend(0 if reason else entry.file_size, 1)
            if is_folder:
                continue
            columns = {"repository": repository, "path": below, "revision": revision}
            content = None if reason else _content(archive, entry)
            if content is not None:
                yield file_row(content, config, **columns)
            else:
                yield drop_row(reason or "damaged", size=entry.file_size, **columns)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes | None:
    try:
        with archive.open(entry) as file:
            return file.read(entry.file_size + 1)
    except _ZIP_ERRORS:
        return None


def _reason(entry: zipfile.ZipInfo, config: CollectConfig) -> str | None:
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "special file"
    if entry.flag_bits & _ENCRYPTED:
        return "encrypted"
    # Only these two are decompressed piece by piece.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "unknown compression"
    return "too large" if entry.file_size > config.max_file_bytes else None


@dataclasses.dataclass
class _Paths:
    """Makes paths within the repository of those in the archive.

    Attributes:
        max_depth: how many folders a path may have.
        top: the one folder that all others are in, if there is such; None: not known yet.
    """

    max_depth: int
    top: str | None = None

    def below_top(self, name: str, is_folder: bool) -> tuple[str, str | None]:
        """The path below the top folder, and a reason if it is a bad one."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or _DRIVE.match(name):
            return name, "path climbs out"
        if len(parts) > 1 and parts[0] == self.top:
            parts = parts[1:]
        if not parts and not is_folder:
            return name, "no name"
        return "/".join(parts), "too deep" if len(parts) - 1 > self.max_depth else None


def _revision(comment: str) -> str | None:
    return f"swh:1:rev:{comment}" if _REVISION.fullmatch(comment) else None
