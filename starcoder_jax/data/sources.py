"""Reads documents from where they lie, and applies the filters to them.

`environment:` is the Python code installed on this machine: the standard library, and the packages
whose metadata declare a permissive license (see `licenses`). Code that packages carry along from
elsewhere is left out, for its license is another one, and so are files with a copyleft notice.

`folder:PATH` is every file below PATH with one of the extensions; hidden files and symbolic links
are skipped. `jsonl:GLOB` (also `.jsonl.gz`) and `parquet:GLOB` hold one document a row, in columns
that may bear the names of the common data sets. Whoever names these three vouches for them: any
license is kept, and "unknown" stands for none.

`stack:DIRECTORY` is a published corpus (see `published`), `stack:DIRECTORY?python,c` are some
components of it. Its documents were curated: no filter is applied to them.
"""

import glob
import gzip
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow
import pyarrow.parquet

from starcoder_jax.data import licenses, published
from starcoder_jax.data.documents import Document, Dropped, make_document, read_file

_TEXT_COLUMNS = ("text", "content")
_PATH_COLUMNS = ("path", "max_stars_repo_path", "file_path")
_REPOSITORY_COLUMNS = ("repository", "repo_name", "max_stars_repo_name", "repo")
_LICENSE_COLUMNS = ("license", "licenses", "max_stars_repo_licenses", "detected_licenses")
_COLUMNS = (*_TEXT_COLUMNS, *_PATH_COLUMNS, *_REPOSITORY_COLUMNS, *_LICENSE_COLUMNS)
_ROWS_PER_READ = 256

# Where packages put copies of other projects' code.
_VENDORED = re.compile(r"_?vendor(ed)?(_packages)?|_?third_?party|_?extern(al|als)?")


def read_source(uri: str, extensions: Sequence[str]) -> Iterator[Document | Dropped]:
    """Reads every document of a source, in no particular order.

    Args:
        uri: `environment:`, `folder:PATH`, `jsonl:GLOB`, `parquet:GLOB`, or
            `stack:DIRECTORY[?COMPONENT,...]`.
        extensions: Which files `environment:` and `folder:` read, such as (".py",).

    Raises:
        ValueError: The source does not exist, or a file of it is damaged.
    """
    scheme, _, location = uri.partition(":")
    extensions = tuple(extension.lower() for extension in extensions)
    if scheme == "environment":
        yield from _standard_library(extensions)
        yield from _installed_packages(extensions)
    elif scheme == "folder":
        yield from _folder(pathlib.Path(location).expanduser(), extensions)
    elif scheme == "jsonl":
        for path in _matches(uri, location):
            yield from _rows(_jsonl_rows(path), path)
    elif scheme == "parquet":
        for path in _matches(uri, location):
            yield from _rows(_parquet_rows(path), path)
    elif scheme == "stack":
        yield from _published(location)
    else:
        raise ValueError(f"source {uri!r} is of an unknown kind")


def _published(location: str) -> Iterator[Document]:
    directory, _, chosen = location.partition("?")
    there = published.components(directory)
    for name in chosen.split(",") if chosen else there:
        if name not in there:
            raise ValueError(
                f"the corpus at {directory} has no component {name!r}; it has {', '.join(there)}"
            )
        yield from published.read_component(directory, name)


def _standard_library(extensions: tuple[str, ...]) -> Iterator[Document | Dropped]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    repository = f"{platform.python_implementation().lower()} {platform.python_version()}"
    for path in _walk(root, extensions, ("site-packages", "dist-packages", "__pycache__")):
        yield _read_installed(root, path, repository=repository, license="PSF-2.0")


def _installed_packages(extensions: tuple[str, ...]) -> Iterator[Document | Dropped]:
    seen = {_normalize(__name__.partition(".")[0])}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        # As for an import, the first one on the path hides others of its name.
        if name is None or _normalize(name) in seen:
            continue
        seen.add(_normalize(name))
        yield from _package(package, extensions)


def _package(
    package: importlib.metadata.Distribution, extensions: tuple[str, ...]
) -> Iterator[Document | Dropped]:
    metadata = package.metadata
    license = licenses.package_license(
        metadata.get("License-Expression"),
        metadata.get("License"),
        metadata.get_all("Classifier") or (),
    )
    root = pathlib.Path(package.locate_file(""))
    repository = f"{metadata['Name']} {package.version}"
    for file in package.files or ():
        parts = file.parts
        if file.is_absolute() or ".." in parts or not file.name.lower().endswith(extensions):
            continue
        if license is None:
            yield Dropped("license not permissive")
        elif any(_VENDORED.fullmatch(part) for part in parts[:-1]):
            yield Dropped("vendored")
        else:
            yield _read_installed(root, file.as_posix(), repository=repository, license=license)


def _read_installed(root: pathlib.Path, path: str, **fields: str) -> Document | Dropped:
    document = read_file(str(root / path), path=_printable(path), **fields)
    if isinstance(document, Document) and licenses.has_copyleft_notice(document.text):
        return Dropped("copyleft notice")
    return document


def _folder(root: pathlib.Path, extensions: tuple[str, ...]) -> Iterator[Document | Dropped]:
    if not root.is_dir():
        raise ValueError(f"source 'folder:{root}': there is no such folder")
    repository = _printable(root.resolve().name)
    for path in _walk(root, extensions, ()):
        yield read_file(
            str(root / path), path=_printable(path), repository=repository, license="unknown"
        )


def _walk(root: pathlib.Path, extensions: tuple[str, ...], skipped: Sequence[str]) -> Iterator[str]:
    """Yields the regular files below `root` with one of the extensions, relative to it."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and name not in skipped
        ]
        for name in files:
            path = pathlib.Path(folder, name)
            if name.startswith(".") or not name.lower().endswith(extensions):
                continue
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(root).as_posix()


def _matches(uri: str, pattern: str) -> list[str]:
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not paths:
        raise ValueError(f"source {uri!r} matches no file")
    return paths


def _jsonl_rows(path: str) -> Iterator[Mapping | Dropped]:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            for line in file:
                if line.strip():
                    yield _json_object(line)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _json_object(line: bytes) -> Mapping | Dropped:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Dropped("not UTF-8")
    except (ValueError, RecursionError):
        return Dropped("not JSON")
    return value if isinstance(value, dict) else Dropped("no text")


def _parquet_rows(path: str) -> Iterator[Mapping]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            if not set(columns) & set(_TEXT_COLUMNS):
                raise ValueError(f"it has no column {' or '.join(_TEXT_COLUMNS)}")
            for batch in file.iter_batches(batch_size=_ROWS_PER_READ, columns=columns):
                yield from batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _rows(rows: Iterable[Mapping | Dropped], file: str) -> Iterator[Document | Dropped]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Dropped):
            yield row
            continue
        content = _first(row, _TEXT_COLUMNS)
        if not isinstance(content, str | bytes):
            yield Dropped("no text")
            continue
        path = _first(row, _PATH_COLUMNS) or f"{os.path.basename(file)}:{number}"
        repository = _first(row, _REPOSITORY_COLUMNS) or "unknown"
        yield make_document(
            content,
            path=_printable(str(path)),
            repository=_printable(str(repository)),
            license=_printable(licenses.license_names(_first(row, _LICENSE_COLUMNS))),
        )


def _first(row: Mapping, columns: Sequence[str]) -> object:
    """Returns the first of the columns that holds something; an empty text is a text."""
    for name in columns:
        value = row.get(name)
        if value is not None and value != []:
            return value
    return None


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _printable(name: str) -> str:
    # File names are bytes, and JSON strings may hold half a surrogate pair: not all are UTF-8.
    return name.encode(errors="backslashreplace").decode()
