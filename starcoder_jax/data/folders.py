"""A folder that one process at a time has for itself."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def exclusive_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes an empty folder that no other process uses, and removes it in the end.

    While another process has the folder, this one waits. What a killed process left in it is
    removed. A folder that was renamed meanwhile stays, under its new name.

    Args:
        path: The folder to make. Its parents are made as well.

    Yields:
        The folder's path.
    """
    path = pathlib.Path(path)
    while True:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever had the folder before may have renamed or removed it: then this is not it.
            if not _is_at(descriptor, path):
                continue
            _clear(path)
            try:
                yield path
            finally:
                if _is_at(descriptor, path):
                    shutil.rmtree(path)
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _clear(folder: pathlib.Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
