"""The Python installation that runs this: the standard library and the installed packages.

Each package is a repository, called like it with its version, as `environment:` of a training
recipe calls it, and declares the license of its metadata.
"""

import functools
import importlib.metadata
import itertools
import os
import pathlib
import platform
import posixpath
import sysconfig
from collections.abc import Iterator, Sequence

from starcoder_jax.data import licenses
from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.folders import Found, entry_of, rows_of
from starcoder_jax.stack.stages.collect.rows import Item, fingerprint

_SKIPPED = ("site-packages", "dist-packages", "__pycache__")


def environment_items(location: str, config: CollectConfig) -> list[Item]:
    """`environment:`, after which nothing follows.

    Raises:
        ValueError: something follows.
    """
    del config
    if location:
        raise ValueError(f"nothing may follow 'environment:', but {location!r} does")
    stdlib = sysconfig.get_path("stdlib")
    name = f"{platform.python_implementation().lower()} {platform.python_version()}"
    items = {name: _item(stdlib, _below(stdlib), name, ["PSF-2.0"])}
    for package in importlib.metadata.distributions():
        metadata = package.metadata
        name = f"{metadata['Name']} {package.version}"
        # As for an import, the first one on the path hides others of its name.
        if metadata["Name"] is None or name in items:
            continue
        license = licenses.package_license(
            metadata.get("License-Expression"),
            metadata.get("License"),
            metadata.get_all("Classifier") or (),
        )
        paths = [file.as_posix() for file in package.files or () if _is_inside(file)]
        root = os.fspath(package.locate_file(""))
        items[name] = _item(root, paths, name, [license] if license else None)
    return list(items.values())


def _is_inside(file: pathlib.PurePath) -> bool:
    return not (file.is_absolute() or ".." in file.parts or "__pycache__" in file.parts)


def _below(root: str) -> list[str]:
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED]
        paths += [os.path.relpath(os.path.join(folder, name), root) for name in names]
    return paths


def _item(root: str, paths: Sequence[str], repository: str, declared: list[str] | None) -> Item:
    marks = []
    for path in sorted(paths):
        try:
            status = os.lstat(os.path.join(root, path))
        except OSError:
            continue  # recorded when it was installed, and since removed
        marks.append((path, status.st_mode, status.st_size, status.st_mtime_ns))
    listed = tuple(mark[0] for mark in marks)
    read = functools.partial(_read, root, listed, repository, declared)
    return Item(read, fingerprint("environment", root, repository, declared, marks))


def _read(
    root: str,
    paths: Sequence[str],
    repository: str,
    declared: list[str] | None,
    config: CollectConfig,
) -> Iterator[dict]:
    for row in rows_of(_found(root, paths), repository, "file", config):
        yield row | {"declared_licenses": declared}


def _found(root: str, paths: Sequence[str]) -> Iterator[Found]:
    for folder, group in itertools.groupby(paths, posixpath.dirname):
        try:
            descriptor = os.open(os.path.join(root, folder), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            yield from (Found(path, -1, None, "unreadable") for path in group)
            continue
        try:
            for path in group:
                yield entry_of(posixpath.basename(path), f"{folder}/" if folder else "", descriptor)
        finally:
            os.close(descriptor)
