"""Folders of files: each is a repository, or a site of documentation.

Symbolic links are never followed. Hidden folders are what a machine keeps for itself (`.git`,
`.cache`, `.venv`, ...): they are left out, but for those that people commit (`.github` and
others); hidden files are kept.
"""

import dataclasses
import functools
import os
import stat
from collections.abc import Iterator

from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.files import (
    matches,
    read_regular,
    repository_name,
)
from starcoder_jax.stack.stages.collect.rows import (
    Budget,
    BudgetSpentError,
    Item,
    drop_row,
    file_row,
    fingerprint,
    is_binary,
    printable,
)

_KEPT_HIDDEN = frozenset((".github", ".gitlab", ".circleci", ".husky", ".devcontainer"))
_PAGES = (".html", ".htm", ".xhtml", ".txt", ".md", ".rst")


@dataclasses.dataclass(frozen=True)
class Found:
    """An entry of a folder.

    Attributes:
        path: from the root.
        folder: the descriptor of the open folder that it is in.
        status: null where it could not be had.
        reason: why it is not to be read, None if it is to be.
    """

    path: str
    folder: int
    status: os.stat_result | None
    reason: str | None


def folder_items(location: str, config: CollectConfig) -> list[Item]:
    """`folder:PATH`: one repository, called like the folder.

    Raises:
        ValueError: there is no such folder.
    """
    root = os.path.realpath(os.path.expanduser(location))
    if not os.path.isdir(root):
        raise ValueError(f"there is no folder {location}: name one that exists")
    return [_folder_item(root, repository_name(root, root), "file", config)]


def folders_items(location: str, config: CollectConfig, kind: str = "file") -> list[Item]:
    """`folders:GLOB` and `pages:GLOB`: every folder that matches is a repository or a site.

    Files that match belong to one named by the folder that they are in.

    Raises:
        ValueError: nothing matches.
    """
    items, loose = [], {}
    for path in matches(location):
        if os.path.isdir(path) and not os.path.islink(path):
            items.append(_folder_item(path, repository_name(path, location), kind, config))
        else:
            loose.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    for folder, names in loose.items():
        repository = repository_name(folder, os.path.dirname(location.rstrip("/")))
        read = functools.partial(_read_loose, folder, tuple(names), repository, kind)
        statuses = [os.lstat(os.path.join(folder, name)) for name in names]
        marks = _marks(names, statuses)
        items.append(Item(read, fingerprint("files", folder, repository, kind, marks)))
    return items


def _folder_item(root: str, repository: str, kind: str, config: CollectConfig) -> Item:
    found = [
        (entry.path, entry.reason, *_marks([entry.path], [entry.status]))
        for entry in _entries(root, config.max_depth)
    ]
    read = functools.partial(_read_folder, root, repository, kind)
    return Item(read, fingerprint("folder", root, repository, kind, found))


def _marks(names: list[str], statuses: list[os.stat_result | None]) -> list[tuple]:
    return [
        (name, status and (status.st_mode, status.st_size, status.st_mtime_ns))
        for name, status in zip(names, statuses, strict=True)
    ]


def _read_folder(root: str, repository: str, kind: str, config: CollectConfig) -> Iterator[dict]:
    yield from rows_of(_entries(root, config.max_depth), repository, kind, config)


def _read_loose(
    folder: str, names: tuple[str, ...], repository: str, kind: str, config: CollectConfig
) -> Iterator[dict]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = (entry_of(name, "", descriptor) for name in names)
        yield from rows_of(found, repository, kind, config)
    finally:
        os.close(descriptor)


def rows_of(
    found: Iterator[Found], repository: str, kind: str, config: CollectConfig
) -> Iterator[dict]:
    """Reads what was found of a repository."""
    budget = Budget.of(config)
    for entry in found:
        columns = {
            "kind": kind,
            "repository": printable(os.fsencode(repository)),
            "path": printable(os.fsencode(entry.path)),
        }
        size = entry.status and entry.status.st_size
        reason = entry.reason
        if reason is None and size > config.max_file_bytes:
            reason = "too large"
        if reason is None and kind == "page" and not entry.path.lower().endswith(_PAGES):
            reason = "no page"
        try:
            budget.spend(0 if reason else size, 1)
        except BudgetSpentError:
            yield drop_row("repository too large", **columns)
            return
        if reason is None:
            try:
                name = os.path.basename(entry.path)
                content = read_regular(name, config.max_file_bytes, entry.folder, is_binary)
            except OSError:
                reason = "unreadable"
        if reason is None:
            row = file_row(content, config, **columns)
            # Of a binary file only the beginning was read.
            yield row if row.get("drop_reason") is None else row | {"drop_bytes": size}
        else:
            yield drop_row(reason, size=size, **columns)


def _entries(root: str, max_depth: int) -> Iterator[Found]:
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield Found("", -1, None, "unreadable")
        return
    try:
        yield from _below(descriptor, "", max_depth)
    finally:
        os.close(descriptor)


def _below(folder: int, prefix: str, depth: int) -> Iterator[Found]:
    """Walks by open folders, not by paths: what is renamed meanwhile cannot lead elsewhere."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        yield Found(prefix.rstrip("/"), folder, None, "unreadable")
        return
    for name in names:
        entry = entry_of(name, prefix, folder)
        if entry.status is None or not stat.S_ISDIR(entry.status.st_mode):
            yield entry
        elif name.startswith(".") and name not in _KEPT_HIDDEN:
            yield dataclasses.replace(entry, reason="hidden folder")
        elif depth == 0:
            yield dataclasses.replace(entry, reason="too deep")
        else:
            yield from _subfolder(entry, name, depth - 1)


def _subfolder(entry: Found, name: str, depth: int) -> Iterator[Found]:
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        descriptor = os.open(name, flags, dir_fd=entry.folder)
    except OSError:
        yield dataclasses.replace(entry, reason="unreadable")
        return
    try:
        yield from _below(descriptor, f"{entry.path}/", depth)
    finally:
        os.close(descriptor)


def entry_of(name: str, prefix: str, folder: int) -> Found:
    """What has a name in an open folder, which is `prefix` from the root."""
    try:
        status = os.lstat(name, dir_fd=folder)
    except OSError:
        return Found(prefix + name, folder, None, "unreadable")
    reason = None
    if stat.S_ISLNK(status.st_mode):
        reason = "symbolic link"
    elif not stat.S_ISREG(status.st_mode):
        reason = "special file"
    return Found(prefix + name, folder, status, reason)
