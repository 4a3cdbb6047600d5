"""Reads the objects of a git repository that somebody hostile may have made.

The program `git` reads them, from a repository of our own that borrows the objects' folder: so it
sees no configuration, hook, attribute, reference or replacement of the other repository, and runs
nothing of it. It tells the size of an object before it inflates it, and has a process, and memory,
of its own.
"""

import contextlib
import os
import pathlib
import re
import resource
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from starcoder_jax.stack.stages.collect.files import open_regular, read_regular
from starcoder_jax.stack.stages.collect.rows import Budget, DamagedError, git_hash

_CONFIG = """[core]
	repositoryFormatVersion = 0
	bare = true
	commitGraph = false
	multiPackIndex = false
"""
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    # Objects that a partial clone lacks are not fetched.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "LC_ALL": "C",
}
# A delta may be small and what it applies to not.
_MEMORY_BYTES = 2 * 2**30
# Requests of that many names fit into a pipe: writing them never waits for us to read answers.
_REQUESTS = 256
_REFERENCE_BYTES = 2**26
_ID = re.compile(rb"[0-9a-f]{40}")
_ENTRY = re.compile(rb"([0-7]{5,6}) (.*)", re.DOTALL)


class Entry(NamedTuple):
    """An entry of a folder: the mode as `stat` has it, the name, and the object's id in hex."""

    mode: int
    name: bytes
    id: str


def git_folder(path: str) -> str:
    """The folder with a repository's objects and references, of one with or without files.

    Raises:
        DamagedError: there is none.
    """
    for folder in (os.path.join(path, ".git"), path):
        parts = [os.path.join(folder, name) for name in ("objects", "refs")]
        if all(_is_folder(part) for part in (folder, *parts)):
            return folder
    raise DamagedError("it is no git repository")


def head(folder: str) -> tuple[str, str]:
    """The branch main, else master, else the one that is checked out; and its newest revision.

    Raises:
        DamagedError: there is none of them.
    """
    packed = _packed_references(folder)
    current = _read(folder, "HEAD")
    branches = [b"main", b"master"]
    if match := re.fullmatch(rb"ref: refs/heads/([^\0\n]+)\n?", current):
        branches.append(match[1])
    for branch in branches:
        reference = b"refs/heads/" + branch
        found = _ID.match(packed.get(reference, b""))
        if b".." not in branch:
            found = _ID.match(_read(folder, os.fsdecode(reference))) or found
        if found:
            return branch.decode(errors="backslashreplace"), found[0].decode()
    if match := _ID.match(current):
        return "HEAD", match[0].decode()
    raise DamagedError("it has no revision")


class Objects:
    """The objects of one repository; a context manager."""

    def __init__(self, folder: str, budget: Budget):
        """For the folder that `git_folder` says; what is read is taken from `budget`."""
        self._folder = os.path.join(folder, "objects")
        self._budget = budget

    def __enter__(self) -> "Objects":
        """Starts `git`.

        Raises:
            DamagedError: the repository borrows objects of others.
        """
        _check_objects_folder(self._folder)
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(tempfile.TemporaryDirectory())
            for name in ("objects", "refs"):
                os.mkdir(os.path.join(own, name))
            pathlib.Path(own, "HEAD").write_text("ref: refs/heads/main\n")
            pathlib.Path(own, "config").write_text(_CONFIG)
            places = {"GIT_DIR": own, "GIT_OBJECT_DIRECTORY": self._folder, "HOME": own}
            self._git = stack.enter_context(
                subprocess.Popen(
                    ["git", "cat-file", "--batch-command", "--buffer"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd=own,
                    env={"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT, **places},
                )
            )
            stack.callback(self._git.kill)
            if hasattr(resource, "prlimit"):
                limits = (_MEMORY_BYTES, _MEMORY_BYTES)
                resource.prlimit(self._git.pid, resource.RLIMIT_DATA, limits)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self._stack.__exit__(*exception)

    def sizes(self, ids: Sequence[str]) -> list[int | None]:
        """The sizes of objects, in bytes; None where there is no such object."""
        sizes = []
        for start in range(0, len(ids), _REQUESTS):
            asked = ids[start : start + _REQUESTS]
            self._ask("info", asked)
            sizes += [self._answer(name)[1] for name in asked]
        return sizes

    def contents(self, ids: Sequence[str]) -> Iterator[bytes | None]:
        """Yields contents of objects; None for one that is not what its id says.

        Raises:
            DamagedError: there is no such object.
        """
        for start in range(0, len(ids), _REQUESTS):
            asked = ids[start : start + _REQUESTS]
            self._ask("contents", asked)
            for name in asked:
                kind, size = self._answer(name)
                if size is None:
                    raise DamagedError(f"object {name} is missing")
                content = self._git.stdout.read(size + 1)
                if len(content) <= size:
                    raise DamagedError("git cannot read it")
                content = content[:-1]
                yield content if git_hash(content, kind) == name else None

    def content(self, name: str, limit: int) -> bytes:
        """The content of a revision or folder.

        Raises:
            DamagedError: there is none, it is larger than `limit`, or not what its id says.
            BudgetSpentError: enough was read of this repository.
        """
        (size,) = self.sizes([name])
        if size is None or size > limit:
            raise DamagedError(f"object {name} is {'missing' if size is None else 'too large'}")
        self._budget.spend(size, 1)
        (content,) = self.contents([name])
        if content is None:
            raise DamagedError(f"object {name} is not what its id says")
        return content

    def _ask(self, command: str, ids: Sequence[str]):
        try:
            lines = "".join(f"{command} {name}\n" for name in ids)
            os.write(self._git.stdin.fileno(), f"{lines}flush\n".encode())
        except BrokenPipeError:
            raise DamagedError("git cannot read it") from None

    def _answer(self, name: str) -> tuple[bytes, int | None]:
        fields = self._git.stdout.readline().split()
        if len(fields) == 3 and fields[0] == name.encode() and fields[2].isdigit():
            return fields[1], int(fields[2])
        if fields == [name.encode(), b"missing"]:
            return b"", None
        raise DamagedError("git cannot read it")


def entries(tree: bytes) -> Iterator[Entry]:
    """Yields the entries of a folder's object.

    Raises:
        DamagedError: it is none.
    """
    position = 0
    while position < len(tree):
        end = tree.find(b"\0", position)
        match = _ENTRY.fullmatch(tree, position, max(end, position))
        id = tree[end + 1 : end + 21]
        if match is None or len(id) < 20:
            raise DamagedError("a folder's object is damaged")
        yield Entry(int(match[1], 8), match[2], id.hex())
        position = end + 21


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _check_objects_folder(folder: str):
    """Sees to it that no object is read from elsewhere, and nothing is waited for.

    Raises:
        DamagedError: there is a reference to elsewhere, or a file that is no file.
    """
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries_:
            for entry in entries_:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise DamagedError("a file of its objects is a link or special file")
                elif entry.name == "alternates":
                    raise DamagedError("it borrows objects of other repositories")


def _read(folder: str, name: str) -> bytes:
    try:
        return read_regular(os.path.join(folder, name), 4096)
    except (OSError, ValueError):
        return b""


def _packed_references(folder: str) -> dict[bytes, bytes]:
    try:
        with open(open_regular(os.path.join(folder, "packed-refs")), "rb") as file:
            lines = file.read(_REFERENCE_BYTES).splitlines()
    except OSError:
        return {}
    pairs = (line.partition(b" ") for line in lines)
    return {name: id for id, _, name in pairs if name.startswith(b"refs/heads/")}
