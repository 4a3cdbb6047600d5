"""Rows of published tables as rows of our own: the names that their columns go by.

These are the columns of The Stack v1 and v2, of their training sets (one row a repository, with a
list `files`), of `RECORD`, and of plain tables with a text, a path and a repository.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping

from starcoder_jax.stack.record import KINDS
from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.rows import drop_row, file_row, object_row, printable

CONTENT = ("content", "text", "code")
BLOB = ("swhid", "blob_id", "hexsha")
ENCODING = "src_encoding"
_REPOSITORY = ("repository", "repo_name", "max_stars_repo_name", "repo")
_PATH = ("path", "max_stars_repo_path", "file_path")
_COUNTS = {
    "stars": ("stars", "star_events_count", "max_stars_count"),
    "forks": ("forks", "fork_events_count", "max_forks_count"),
}
_IDS = {
    "revision": ("rev", ("revision", "revision_id", "max_stars_repo_head_hexsha", "commit")),
    "directory": ("dir", ("directory", "directory_id")),
    "swhid": ("cnt", BLOB),
}
_TIMESTAMP = ("timestamp", "committer_date", "revision_date")
_LICENSES = {
    "declared_licenses": (
        *("declared_licenses", "gha_license_id", "max_stars_repo_licenses", "license", "licenses"),
    ),
    "detected_licenses": ("detected_licenses",),
}
_NAMES = {"language": ("language", "lang"), "license_type": ("license_type",)}
_DETAILS = (
    *("branch_name", "snapshot_id", "content_id", "visit_date", "is_vendor", "is_generated"),
    ENCODING,
)
_FILES = "files"
COLUMNS = frozenset(
    [
        *("kind", "marks", "details", _FILES, *CONTENT, *_REPOSITORY, *_PATH, *_TIMESTAMP),
        *_DETAILS,
        *(name for _, names in _IDS.values() for name in names),
        *(
            name
            for table in (_COUNTS, _LICENSES, _NAMES)
            for names in table.values()
            for name in names
        ),
    ]
)
# What `collect` writes; the other kinds are what `render` makes of them.
_FILE_KINDS = ("file", "page")
_OBJECT_KINDS = KINDS[1:6]
_SWHID = re.compile("(?:swh:1:(cnt|rev|dir):)?([0-9a-f]{40})")
_MAX_TIMESTAMP = 253_402_300_799  # the end of the year 9999


def files_of(row: Mapping) -> Iterator[Mapping]:
    """The files of a row that stands for a repository; another row is a file itself."""
    files = row.get(_FILES)
    if not isinstance(files, list):
        yield row
        return
    repository = {name: value for name, value in row.items() if name != _FILES}
    for file in files:
        yield repository | file if isinstance(file, dict) else repository


def first(row: Mapping, names: tuple[str, ...]) -> object:
    """The first of the columns that holds something; an empty text is a text."""
    for name in names:
        value = row.get(name)
        if value is not None and value != []:
            return value
    return None


def columns_of(row: Mapping, repository: str, path: str) -> dict:
    """The columns of `RECORD` but for kind, content and marks.

    Args:
        row: of a table.
        repository: where the row names none.
        path: likewise.
    """
    columns = {
        "repository": _name(first(row, _REPOSITORY)) or repository,
        "path": (_name(first(row, _PATH)) or "").lstrip("/") or path,
        "timestamp": _seconds(first(row, _TIMESTAMP)),
        "details": _details(row),
    }
    for column, (kind, names) in _IDS.items():
        columns[column] = swhid(first(row, names), kind)
    for column, names in _COUNTS.items():
        columns[column] = _count(first(row, names))
    for column, names in _LICENSES.items():
        columns[column] = _list(first(row, names))
    for column, names in _NAMES.items():
        columns[column] = _name(first(row, names))
    return columns


def row_of(row: Mapping, repository: str, path: str, config: CollectConfig) -> dict:
    """The row with the content that is in the table; see `columns_of` for the arguments."""
    columns = columns_of(row, repository, path)
    kind = row.get("kind") or "file"
    if kind not in (*_FILE_KINDS, *_OBJECT_KINDS):
        return drop_row("rendered before", detail=str(kind), **columns)
    if row.get("marks"):
        # Whoever writes a table could else place special tokens.
        return drop_row("has marks", kind=kind, **columns)
    content = first(row, CONTENT)
    if isinstance(content, str):
        try:
            content = content.encode()
        except UnicodeEncodeError:
            return drop_row("not UTF-8", kind=kind, **columns)
    if not isinstance(content, bytes):
        return drop_row("no content", kind=kind, **columns)
    make = file_row if kind in _FILE_KINDS else object_row
    return make(content, config, kind=kind, **columns)


def swhid(value: object, kind: str) -> str | None:
    """The SWHID of that kind ("cnt", "rev", "dir") for one, or for the hash alone."""
    match = _SWHID.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[1] not in (None, kind):
        return None
    return f"swh:1:{kind}:{match[2]}"


def _name(value: object) -> str | None:
    return printable(value) if isinstance(value, str | bytes) else None


def _count(value: object) -> int | None:
    # Tables that passed through pandas have floats where some are missing.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53:
        return int(value)
    return None


def _list(value: object) -> list[str] | None:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        return None
    return [printable(name) for name in values if isinstance(name, str)]


def _seconds(value: object) -> int | None:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime.datetime):
        zone = value.tzinfo or datetime.UTC
        value = int(value.replace(tzinfo=zone).timestamp())
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _MAX_TIMESTAMP:
        return None
    return value


def _details(row: Mapping) -> str | None:
    details = {}
    if isinstance(own := row.get("details"), str):
        try:
            details = json.loads(own)
        except (ValueError, RecursionError):
            return None
        if not isinstance(details, dict):
            return None
    for name in _DETAILS:
        value = row.get(name)
        if isinstance(value, datetime.datetime):
            value = _seconds(value)
        if isinstance(value, str | int | bool):
            details[name] = printable(value) if isinstance(value, str) else value
    return json.dumps(details, sort_keys=True) if details else None
