"""Finds out what files are: their text, identifiers, language and licenses."""

import dataclasses
import functools
import json
import posixpath
from collections.abc import Iterable, Mapping

import pyarrow as pa

from starcoder_jax.stack.record import Output, select
from starcoder_jax.stack.runner.steps import Map, Step
from starcoder_jax.stack.stages.identify.language import language_of
from starcoder_jax.stack.stages.identify.notices import noticed_licenses, tagged_license
from starcoder_jax.stack.stages.identify.sources import (
    LicenseTree,
    license_folder,
    licenses_told,
    packages_named,
)
from starcoder_jax.stack.stages.identify.spdx import UNKNOWN, license_type, permissive_licenses
from starcoder_jax.stack.stages.identify.swhid import content_swhid, directory_swhid
from starcoder_jax.stack.stages.identify.text import to_utf8

_PACKAGE_FOLDERS = (".dist-info", ".egg-info")
_PACKAGE_LISTS = ("RECORD", "top_level.txt")


@dataclasses.dataclass(frozen=True)
class IdentifyConfig:
    """What `steps` needs to know; gin section `identify`.

    Attributes:
        file_notices: Whether the license that a file itself names, by an SPDX-License-Identifier
            or a notice in its first 4,000 bytes, holds for it instead of that of its folder or
            repository. The Stack v2 looked at license files only.
        also_permissive: SPDX identifiers of licenses that count as permissive beside those that
            ScanCode calls "Permissive" or "Public Domain", such as further ones of the Blue Oak
            Council's list.
    """

    file_notices: bool = True
    also_permissive: tuple[str, ...] = ()

    def __post_init__(self):
        permissive_licenses(tuple(self.also_permissive))


def steps(config: IdentifyConfig, source: str) -> list[Step]:
    """One `Map`, "identify", over shards of `RECORD`s that hold whole repositories.

    Of every row it sets
    - content: UTF-8, without byte order mark; `details` says which other encoding it was in, under
      "encoding". Rows that are no text are dropped: "binary", "not text".
    - swhid, of files: of the content as it was found, where collect gave none; and directory: of
      the root, where collect gave neither it nor the revision. This one is the SWHID of the files
      that were collected, see `swhid.directory_swhid`.
    - language: by Linguist's rules, see `language`; of rows other than files, by the path alone.
    - detected_licenses, where collect gave none: what the file itself says, or else the license
      files and package metadata nearest above it.
    - license_type, where collect gave none: by The Stack v2's rule, see `spdx.license_type`.

    Args:
        config: The options.
        source: Name of the step before.
    """
    return [Map("identify", (source,), functools.partial(_identify, config))]


def _identify(config: IdentifyConfig, table: pa.Table) -> Output:
    contents = table["content"]
    kinds, paths = table["kind"].to_pylist(), table["path"].to_pylist()
    swhids, languages = table["swhid"].to_pylist(), table["language"].to_pylist()
    permissive = permissive_licenses(tuple(config.also_permissive))
    reasons: list[str | None] = [None] * len(table)
    encodings: dict[int, str] = {}
    changed: dict[int, bytes] = {}
    own: list[list[str]] = [[] for _ in range(len(table))]
    telling: dict[int, bytes] = {}
    for row, (kind, path) in enumerate(zip(kinds, paths, strict=True)):
        found = contents[row].as_py() or b""
        if kind == "file" and swhids[row] is None:
            swhids[row] = content_swhid(found)
        content, encoding = to_utf8(found)
        if content is None:
            reasons[row] = encoding
            continue
        if content is not found:
            changed[row] = content
        if encoding != "utf-8":
            encodings[row] = encoding
        if languages[row] is None and path:
            languages[row] = language_of(path, content if kind == "file" else b"")
        if kind != "file" or not path:
            continue
        if license_folder(path) is not None or posixpath.basename(path) in _PACKAGE_LISTS:
            telling[row] = content
        elif config.file_notices:
            own[row] = tagged_license(content, permissive) or noticed_licenses(content)
    table = _replaced(table, "swhid", swhids)
    table = _replaced(table, "language", languages)
    table = _with_directories(table)
    table = _with_licenses(table, own, telling, permissive)
    table = _with_contents(table, changed, encodings)
    output = select(table, reasons)
    counts = {f"encoding {name}": 0 for name in sorted(set(encodings.values()))}
    for name in encodings.values():
        counts[f"encoding {name}"] += 1
    return dataclasses.replace(output, counts=counts)


def _replaced(table: pa.Table, name: str, values: list) -> pa.Table:
    number = table.schema.get_field_index(name)
    field = table.schema.field(number)
    return table.set_column(number, field, pa.array(values, field.type))


def _repositories(table: pa.Table) -> Iterable[list[int]]:
    rows: dict[tuple, list[int]] = {}
    names = zip(table["repository"].to_pylist(), table["revision"].to_pylist(), strict=True)
    for row, (repository, revision) in enumerate(names):
        # A row of no repository has no neighbors.
        key = (row,) if repository is None else (repository, revision)
        rows.setdefault(key, []).append(row)
    return rows.values()


def _with_directories(table: pa.Table) -> pa.Table:
    kinds, paths = table["kind"].to_pylist(), table["path"].to_pylist()
    swhids, directories = table["swhid"].to_pylist(), table["directory"].to_pylist()
    revisions = table["revision"].to_pylist()
    for rows in _repositories(table):
        files = {paths[row]: swhids[row] for row in rows if kinds[row] == "file" and paths[row]}
        missing = [row for row in rows if directories[row] is None and revisions[row] is None]
        if files and missing:
            directory = directory_swhid(files)
            for row in missing:
                directories[row] = directory
    return _replaced(table, "directory", directories)


def _with_licenses(
    table: pa.Table,
    own: list[list[str]],
    telling: Mapping[int, bytes],
    permissive: frozenset[str],
) -> pa.Table:
    paths = table["path"].to_pylist()
    declared = table["declared_licenses"].to_pylist()
    detected = table["detected_licenses"].to_pylist()
    types = table["license_type"].to_pylist()
    for rows in _repositories(table):
        tree = _license_tree(
            {paths[row]: telling[row] for row in rows if row in telling}, permissive
        )
        for row in rows:
            given = detected[row]
            if given is None:
                detected[row] = own[row] or tree.licenses_of(paths[row] or "")
            if types[row] is None:
                # What a file says of itself is more certain than what is said of the repository.
                said = [] if own[row] and given is None else declared[row] or []
                types[row] = license_type(said, detected[row], permissive)
    table = _replaced(table, "detected_licenses", detected)
    return _replaced(table, "license_type", types)


def _license_tree(contents: Mapping[str, bytes], permissive: frozenset[str]) -> LicenseTree:
    told: dict[str, list[str]] = {}
    metadata: dict[str, list[str]] = {}
    for path, content in contents.items():
        folder = license_folder(path)
        if folder is None:
            continue
        licenses = licenses_told(path, content, permissive)
        told.setdefault(folder, []).extend(licenses)
        if posixpath.basename(path) in ("METADATA", "PKG-INFO") and set(licenses) - {UNKNOWN}:
            metadata[folder] = licenses
    tree = LicenseTree()
    for folder, licenses in told.items():
        if folder.endswith(_PACKAGE_FOLDERS):
            # The license files of an installed package are also those of libraries in its binaries.
            licenses = metadata.get(folder, licenses)
            for place in packages_named(folder, contents):
                tree.tell(place, licenses)
        tree.tell(folder, licenses)
    return tree


def _with_contents(
    table: pa.Table, changed: Mapping[int, bytes], encodings: Mapping[int, str]
) -> pa.Table:
    if changed:
        # Slices of what is there, and the new contents between them: nothing is copied.
        column, chunks, place = table["content"], [], 0
        for row in sorted(changed):
            chunks += [
                *column.slice(place, row - place).chunks,
                pa.array([changed[row]], column.type),
            ]
            place = row + 1
        chunks += column.slice(place).chunks
        number = table.schema.get_field_index("content")
        field = table.schema.field(number)
        table = table.set_column(number, field, pa.chunked_array(chunks, field.type))
    if encodings:
        details = table["details"].to_pylist()
        for row, encoding in encodings.items():
            known = json.loads(details[row]) if details[row] else {}
            details[row] = json.dumps({**known, "encoding": encoding}, sort_keys=True)
        table = _replaced(table, "details", details)
    return table
