"""Leaves out what its owners do not want to be trained on, by a ledger of opt-outs.

A ledger is JSON Lines: {"kind": …, "value": …, "date": …, "reference": …}, where date (YYYY-MM-DD)
and reference (such as the address of the request) may be missing. Kinds and their values:

    owner       user or organization: all of its repositories, and what it is the author of
    author      user: what it is the author of in anybody's repositories, such as issues and commits
    repository  owner/name: files, issues, pull requests, commits and whatever else is of it
    content     swh:1:cnt:…: files with this content, in any repository
    path        owner/name:path/to/file: one file, or another row, of a repository

Names of owners, authors and repositories are those of GitHub, where case makes no difference. A
fork has another owner: name it, too, or the contents.
"""

import dataclasses
import datetime
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack import record
from starcoder_jax.stack.record import Output
from starcoder_jax.stack.runner.steps import Map, Step

_VALUES = {
    "owner": (re.compile(r"[^/:\s]+"), "a name without '/'"),
    "author": (re.compile(r"[^/:\s]+"), "a name without '/'"),
    "repository": (re.compile(r"[^:]+"), "owner/name"),
    "content": (re.compile(r"swh:1:cnt:[0-9a-f]{40}"), "swh:1:cnt: and 40 hexadecimal digits"),
    "path": (re.compile(r"[^:]+:.+", re.DOTALL), "owner/name:path"),
}


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """A line of a ledger.

    Attributes:
        kind: "owner", "author", "repository", "content" or "path".
        value: what is to be left out, see above; names in lower case.
        date: of the request, "2026-01-31"; None if not known.
        reference: where it can be read; None if not known.

    Raises:
        ValueError: kind, value or date are not as they should be.
    """

    kind: str
    value: str
    date: str | None = None
    reference: str | None = None

    def __post_init__(self):
        if self.kind not in _VALUES:
            raise ValueError(f"kind {self.kind!r} is unknown: use one of {', '.join(_VALUES)}")
        pattern, wanted = _VALUES[self.kind]
        if not isinstance(self.value, str) or not pattern.fullmatch(self.value):
            raise ValueError(f"value {self.value!r} of kind {self.kind!r} must be {wanted}")
        if self.date is not None:
            datetime.date.fromisoformat(self.date)
        if not isinstance(self.reference, str | None):
            raise ValueError(f"reference {self.reference!r} must be a text")
        name, colon, path = self.value.partition(":")
        lower = self.value if self.kind == "content" else f"{name.lower()}{colon}{path}"
        object.__setattr__(self, "value", lower)

    @property
    def name(self) -> str:
        """What a report calls it: the reference, or else kind and value."""
        return self.reference or f"{self.kind} {self.value}"


@dataclasses.dataclass(frozen=True)
class OptoutConfig:
    """Whose rows are left out.

    Attributes:
        ledgers: files; see `stack.optout_requests` for how requests become one.
    """

    ledgers: Sequence[str] = ()

    def __post_init__(self):
        if isinstance(self.ledgers, str):
            raise ValueError(f"optout.ledgers is {self.ledgers!r}: give a list of files")
        object.__setattr__(self, "ledgers", tuple(self.ledgers))


def steps(config: OptoutConfig, source: str) -> list[Step]:
    """The step "optout", a `Map` that drops rows with the reason "opt-out".

    The detail of a drop is the entry's reference. No sample of what is dropped is kept.

    Raises:
        ValueError: a ledger is missing or has a bad line.
    """
    ledger = ledger_text(read_ledgers(config.ledgers))
    return [Map("optout", (source,), functools.partial(_optout, ledger))]


def read_ledgers(paths: Sequence[str | pathlib.Path]) -> list[Entry]:
    """Reads ledgers, sorted and without repeats.

    Raises:
        ValueError: a file cannot be read, or a line is no entry; names file and line.
    """
    entries = set()
    for path in paths:
        try:
            lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"ledger {path} cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    entries.add(Entry(**json.loads(line)))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}, is no opt-out: {error}") from error
    return sorted(entries, key=ledger_line)


def ledger_line(entry: Entry) -> str:
    """An entry as a line of a ledger."""
    fields = dataclasses.asdict(entry)
    return json.dumps({name: value for name, value in fields.items() if value is not None}) + "\n"


def ledger_text(entries: Iterable[Entry]) -> str:
    """A ledger of these entries."""
    return "".join(map(ledger_line, entries))


class Matcher:
    """Tells which rows of a table a ledger is about."""

    def __init__(self, entries: Iterable[Entry]):
        self._by_kind: dict[str, dict[str, Entry]] = {kind: {} for kind in _VALUES}
        self._paths: dict[str, dict[str, Entry]] = {}
        for entry in entries:
            self._by_kind[entry.kind].setdefault(entry.value, entry)
            if entry.kind == "path":
                repository, _, path = entry.value.partition(":")
                self._paths.setdefault(repository, {}).setdefault(path, entry)
        self._authors = self._by_kind["owner"] | self._by_kind["author"]

    @property
    def knows_authors(self) -> bool:
        """Whether some entry asks for what somebody is the author of."""
        return bool(self._authors)

    def match(self, table: pa.Table) -> list[Entry | None]:
        """For each of n rows an entry that asks to leave it out, the most specific, or None.

        Looked at are those of these columns that the table has: `repository`, `path`, `swhid`,
        `files` as a document has them, and the names under "author" (one) or "authors" (a list)
        of the JSON object in `details`.
        """
        found: list[Entry | None] = [None] * len(table)
        columns = {name: _whole(table[name]) for name in table.column_names}
        if "details" in columns and self._authors:
            found = self._match_authors(columns["details"])
        if "repository" in columns:
            self._match_names(columns["repository"], columns.get("path"), found)
        if "swhid" in columns:
            self._match_contents(columns["swhid"], found)
        if "files" in columns:
            files = pa.Table.from_struct_array(columns["files"].flatten())
            parents = pc.list_parent_indices(columns["files"]).to_numpy()
            for row, entry in zip(parents, self.match(files), strict=True):
                found[row] = entry or found[row]
        return found

    def _match_authors(self, details: pa.Array) -> list[Entry | None]:
        found: list[Entry | None] = [None] * len(details)
        may_have = pc.match_substring(details, '"author').fill_null(False)
        for row in np.flatnonzero(may_have.to_numpy(zero_copy_only=False)):
            for name in _authors(details[int(row)].as_py()):
                found[row] = self._authors.get(name.lower()) or found[row]
        return found

    def _match_names(
        self, repository: pa.Array, path: pa.Array | None, found: list[Entry | None]
    ) -> None:
        encoded = repository.dictionary_encode()
        indices = encoded.indices.fill_null(-1).to_numpy()
        names = [name.lower() for name in encoded.dictionary.to_pylist()]
        owners, repositories = self._by_kind["owner"], self._by_kind["repository"]
        entries = [repositories.get(name) or owners.get(record.owner(name)) for name in names]
        for row in _where(indices, [entry is not None for entry in entries]):
            found[row] = entries[indices[row]]
        if path is not None and self._paths:
            for row in _where(indices, [name in self._paths for name in names]):
                entry = self._paths[names[indices[row]]].get(path[int(row)].as_py())
                found[row] = entry or found[row]

    def _match_contents(self, swhid: pa.Array, found: list[Entry | None]) -> None:
        wanted = pa.array(list(self._by_kind["content"]), pa.string())
        is_wanted = pc.is_in(swhid, value_set=wanted).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(is_wanted):
            found[row] = self._by_kind["content"][swhid[int(row)].as_py()]


def _optout(ledger: str, table: pa.Table) -> Output:
    entries = _matcher(ledger).match(table)
    reasons = [None if entry is None else "opt-out" for entry in entries]
    details = [None if entry is None else entry.name for entry in entries]
    output = record.select(table, reasons, details)
    place = output.drops.schema.get_field_index("sample")
    nothing = pa.nulls(len(output.drops), pa.string())
    drops = output.drops.set_column(place, output.drops.schema.field(place), nothing)
    return dataclasses.replace(output, drops=drops, counts=_counts(entries))


def _counts(entries: Sequence[Entry | None]) -> Mapping[str, int]:
    kinds = [entry.kind for entry in entries if entry is not None]
    return {f"rows opted out by {kind}": kinds.count(kind) for kind in _VALUES if kind in kinds}


@functools.lru_cache(maxsize=2)
def _matcher(ledger: str) -> Matcher:
    return Matcher(Entry(**json.loads(line)) for line in ledger.splitlines())


def _authors(details: str) -> Iterator[str]:
    try:
        about = json.loads(details)
    except (ValueError, RecursionError):
        return
    if isinstance(about, dict):
        for names in (about.get("author"), about.get("authors")):
            for name in names if isinstance(names, list) else [names]:
                if isinstance(name, str):
                    yield name


def _where(indices: np.ndarray, wanted: Sequence[bool]) -> np.ndarray:
    """The rows whose index is a wanted one; -1 is none."""
    return np.flatnonzero(np.array([*wanted, False], bool)[indices])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
