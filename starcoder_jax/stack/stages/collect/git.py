"""Git repositories: the files of the newest revision, and what single revisions changed."""

import functools
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from typing import NamedTuple

from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.files import matches, repository_name
from starcoder_jax.stack.stages.collect.git_objects import (
    Entry,
    Objects,
    entries,
    git_folder,
    head,
)
from starcoder_jax.stack.stages.collect.rows import (
    Budget,
    BudgetSpentError,
    DamagedError,
    Item,
    drop_row,
    file_row,
    fingerprint,
    is_binary,
    object_row,
    printable,
)

_MAX_COMMIT_BYTES = 2**20
_MAX_TREE_BYTES = 2**26
_PERSON = re.compile(rb"([^<\n]*)<[^>\n]*> (-?\d{1,18})")


class _Commit(NamedTuple):
    id: str
    tree: str
    parents: tuple[str, ...]
    author: str
    timestamp: int | None
    message: str


def git_items(location: str, config: CollectConfig) -> list[Item]:
    """`git:GLOB`: repositories, with files or bare.

    Raises:
        ValueError: nothing matches, or the program `git` is missing.
    """
    if shutil.which("git") is None:
        raise ValueError("reading git repositories needs the program git: install it")
    items = []
    for path in matches(location):
        if os.path.isdir(path) and not os.path.islink(path):
            repository = repository_name(path, location).removesuffix(".git") or "root"
            read = functools.partial(_read_repository, path, repository)
            items.append(Item(read, fingerprint("git", path, repository, _state(path))))
    if not items:
        raise ValueError(f"{location} matches no folder: name git repositories")
    return items


def _state(path: str) -> tuple:
    try:
        folder = git_folder(path)
        return (*head(folder), os.stat(os.path.join(folder, "objects", "pack")).st_mtime_ns)
    except (DamagedError, OSError) as error:
        return (str(error),)


def _read_repository(path: str, repository: str, config: CollectConfig) -> Iterator[dict]:
    columns = {"repository": printable(os.fsencode(repository))}
    try:
        folder = git_folder(path)
        branch, revision = head(folder)
        with Objects(folder, budget := Budget.of(config)) as objects:
            commit = _commit(objects, revision)
            details = json.dumps({"branch_name": branch})
            yield from _files(objects, commit, budget, config, details=details, **columns)
            yield from _changes(objects, commit, config, **columns)
    except BudgetSpentError:
        yield drop_row("repository too large", **columns)
    except (DamagedError, OSError) as error:
        yield drop_row("damaged repository", detail=str(error), **columns)


def _commit(objects: Objects, id: str) -> _Commit:
    content = objects.content(id, _MAX_COMMIT_BYTES)
    header, _, message = content.partition(b"\n\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in header.split(b"\n"):
        name, _, value = line.partition(b" ")
        fields.setdefault(name, []).append(value)
    ids = [value.decode(errors="replace") for value in fields.get(b"parent", [])]
    trees = [value.decode(errors="replace") for value in fields.get(b"tree", [])]
    if not all(re.fullmatch("[0-9a-f]{40}", id) for id in (*ids, *trees)) or len(trees) != 1:
        raise DamagedError(f"object {id} is no revision")
    author = _PERSON.match(fields.get(b"author", [b""])[0])
    committer = _PERSON.match(fields.get(b"committer", [b""])[0])
    return _Commit(
        id=id,
        tree=trees[0],
        parents=tuple(ids),
        author=author[1].strip().decode(errors="replace") if author else "",
        timestamp=int(committer[2]) if committer else None,
        message=message.decode(errors="replace"),
    )


def _swhids(commit: _Commit) -> dict:
    return {
        "revision": f"swh:1:rev:{commit.id}",
        "directory": f"swh:1:dir:{commit.tree}",
        "timestamp": commit.timestamp,
    }


def _files(
    objects: Objects, commit: _Commit, budget: Budget, config: CollectConfig, **columns
) -> Iterator[dict]:
    columns |= _swhids(commit)
    folders = [(b"", commit.tree, 0)]
    while folders:
        prefix, tree, depth = folders.pop()
        files = []
        for entry in entries(objects.content(tree, _MAX_TREE_BYTES)):
            budget.spend(0, 1)
            path = prefix + entry.name
            reason = _reason(entry, depth, config)
            if reason is not None:
                yield drop_row(reason, path=printable(path), **columns)
            elif stat.S_ISDIR(entry.mode):
                folders.append((path + b"/", entry.id, depth + 1))
            else:
                files.append((path, entry.id))
        yield from _contents(objects, files, budget, config, **columns)


def _reason(entry: Entry, depth: int, config: CollectConfig) -> str | None:
    if entry.name in (b"", b".", b"..") or b"/" in entry.name:
        return "path climbs out"
    if stat.S_ISDIR(entry.mode):
        return "too deep" if depth == config.max_depth else None
    if stat.S_ISLNK(entry.mode):
        return "symbolic link"
    return None if stat.S_ISREG(entry.mode) else "submodule"


def _contents(
    objects: Objects,
    files: list[tuple[bytes, str]],
    budget: Budget,
    config: CollectConfig,
    **columns,
) -> Iterator[dict]:
    wanted = []
    for (path, id), size in zip(files, objects.sizes([id for _, id in files]), strict=True):
        if size is None:
            yield drop_row("missing content", path=printable(path), detail=id, **columns)
        elif size > config.max_file_bytes:
            yield drop_row("too large", path=printable(path), size=size, **columns)
        else:
            budget.spend(size)
            wanted.append((path, id))
    contents = objects.contents([id for _, id in wanted])
    for (path, id), content in zip(wanted, contents, strict=True):
        if content is None:
            yield drop_row("wrong content", path=printable(path), detail=id, **columns)
        else:
            yield file_row(content, config, path=printable(path), **columns)


def _changes(objects: Objects, commit: _Commit, config: CollectConfig, **columns) -> Iterator[dict]:
    for _ in range(config.max_commits):
        about = {"kind": "commit_event", **columns, **_swhids(commit)}
        about["path"] = f"commit/{commit.id}"
        parent = None
        if commit.parents:
            if objects.sizes(commit.parents[:1]) == [None]:
                # The history of a shallow clone ends here.
                return
            parent = _commit(objects, commit.parents[0])
        if len(commit.parents) > 1:
            yield drop_row("merge", **about)
        else:
            changed = _changed(objects, parent and parent.tree, commit.tree, config.max_depth)
            yield _change(objects, commit, changed, config, about)
        if parent is None:
            return
        commit = parent


def _change(
    objects: Objects,
    commit: _Commit,
    changed: list[tuple[bytes, Entry | None, Entry | None]],
    config: CollectConfig,
    about: dict,
) -> dict:
    if len(changed) != 1:
        return drop_row("not one file changed", **about)
    ((path, *sides),) = changed
    about["path"] += f"/{printable(path)}"
    ids = [side.id for side in sides if side is not None]
    if any(side is not None and not stat.S_ISREG(side.mode) for side in sides):
        return drop_row("no file", **about)
    sizes = objects.sizes(ids)
    if None in sizes:
        return drop_row("missing content", **about)
    if sum(sizes) > config.max_file_bytes:
        return drop_row("too large", size=sum(sizes), **about)
    found = dict(zip(ids, objects.contents(ids), strict=True))
    contents = [b"" if side is None else found[side.id] for side in sides]
    if None in contents:
        return drop_row("wrong content", **about)
    if any(map(is_binary, contents)):
        return drop_row("binary", size=sum(sizes), **about)
    try:
        old, new = (content.decode() for content in contents)
    except UnicodeDecodeError:
        return drop_row("not UTF-8", size=sum(sizes), **about)
    event = {
        "repository": about["repository"],
        "commit": commit.id,
        "parents": commit.parents,
        "subject": commit.message.lstrip("\n").partition("\n")[0].strip(),
        "message": commit.message,
        "author": commit.author,
        "timestamp": commit.timestamp,
        "path": printable(path),
        "old": old,
        "new": new,
    }
    content = json.dumps(event, ensure_ascii=False).encode()
    return object_row(content, config, **about)


def _changed(
    objects: Objects, old: str | None, new: str, max_depth: int
) -> list[tuple[bytes, Entry | None, Entry | None]]:
    """The entries that differ between two folders, but no more of them than two."""
    changed = []
    pairs = [(b"", old, new, 0)]
    while pairs and len(changed) < 2:
        prefix, *trees, depth = pairs.pop()
        before, after = (
            {entry.name: entry for entry in entries(objects.content(tree, _MAX_TREE_BYTES))}
            if tree is not None
            else {}
            for tree in trees
        )
        for name in sorted(before.keys() | after.keys()):
            sides = (before.get(name), after.get(name))
            if sides[0] == sides[1]:
                continue
            if all(side is None or stat.S_ISDIR(side.mode) for side in sides):
                if depth < max_depth:
                    subtrees = (side and side.id for side in sides)
                    pairs.append((prefix + name + b"/", *subtrees, depth + 1))
            else:
                changed.append((prefix + name, *sides))
    return changed
