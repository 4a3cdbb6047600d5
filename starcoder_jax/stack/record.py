"""What a shard of source code holds, row by row, and how what a step drops is written down.

A shard is a `pyarrow.Table` of `RECORD`s; on disk, a Parquet file. A repository is never split
between shards (`part_of`), so that what concerns a repository as a whole needs no shuffle. Rows of
a shard stand in the order of (repository, path, revision, swhid).
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import pyarrow as pa

# What a row's content is. `collect` writes the first line: files, and JSON objects. `render` makes
# the second line of those, and of notebooks among the files; the other files stay files.
KINDS = (
    *("file", "event", "commit_event", "question_event", "kaggle_event", "ir_event", "page"),
    *("notebook_script", "notebook_structured", "issue", "pull_request", "commit", "question"),
    *("kaggle", "ir", "documentation"),
)

# A special token of the vocabulary, which stands before the byte `offset` of the content. The
# content itself is ordinary text: whatever it says, it can imitate no special token.
MARKS = pa.list_(pa.struct([("offset", pa.int64()), ("token", pa.string())]))

RECORD = pa.schema(
    [
        ("kind", pa.string()),
        # Bytes as they were found; valid UTF-8 from `identify` on.
        ("content", pa.large_binary()),
        ("marks", MARKS),
        # "owner/name", or the name of a folder.
        ("repository", pa.string()),
        # Within the repository, with "/" between folders; valid UTF-8 (backslash escapes if not).
        ("path", pa.string()),
        # SWHIDs: of the revision (swh:1:rev:), the root directory (swh:1:dir:), the content as it
        # was found (swh:1:cnt:); null where not known.
        ("revision", pa.string()),
        ("directory", pa.string()),
        ("swhid", pa.string()),
        # Of the revision, in seconds since 1970; null where not known, as stars and forks.
        ("timestamp", pa.int64()),
        ("stars", pa.int64()),
        ("forks", pa.int64()),
        ("language", pa.string()),
        # As the source of the data declares it for the repository: SPDX identifiers.
        ("declared_licenses", pa.list_(pa.string())),
        # As found in the repository's license files and in the file itself: SPDX identifiers.
        ("detected_licenses", pa.list_(pa.string())),
        # "permissive", "no_license" or "non_permissive".
        ("license_type", pa.string()),
        # What only some kinds have, as a JSON object.
        ("details", pa.string()),
    ]
)

# What is trained on: one or several files or other rows, put together.
DOCUMENT = pa.schema(
    [
        *(RECORD.field(name) for name in ("kind", "content", "marks", "repository", "language")),
        # SPDX identifiers, sorted.
        ("licenses", pa.list_(pa.string())),
        ("license_type", pa.string()),
        # Whose text the bytes [start, stop) of the content are, in ascending order.
        (
            "files",
            pa.list_(
                pa.struct(
                    [
                        *((name, pa.string()) for name in ("swhid", "repository", "path")),
                        *((name, pa.string()) for name in ("revision", "license")),
                        *((name, pa.int64()) for name in ("start", "stop")),
                    ]
                )
            ),
        ),
    ]
)

# A row that was dropped: who it was, why, and the beginning of some of the contents.
DROP = pa.schema(
    [
        ("reason", pa.string()),
        *((name, RECORD.field(name).type) for name in ("kind", "repository", "path", "revision")),
        *((name, RECORD.field(name).type) for name in ("swhid", "language", "license_type")),
        ("bytes", pa.int64()),
        # Which other row stayed instead of a duplicate, which problem or entry of a list matched.
        ("detail", pa.string()),
        ("sample", pa.string()),
    ]
)

_SAMPLES = 3  # per reason and shard
_SAMPLE_BYTES = 400


@dataclasses.dataclass(frozen=True)
class Output:
    """What a step makes of a shard.

    Attributes:
        table: the rows that go on, of whatever schema the step writes.
        drops: the rows that do not, of the schema `DROP`; None: the step drops none by nature.
        counts: further numbers for the report, by name, such as redactions by type.
    """

    table: pa.Table
    drops: pa.Table | None = None
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def select(
    table: pa.Table, reasons: Sequence[str | None], details: Sequence[str | None] | None = None
) -> Output:
    """Keeps the rows without a reason and writes down the others.

    Args:
        table: of `RECORD`s, n rows.
        reasons: n of them, why the row is dropped, None to keep it.
        details: n of them, see `DROP`.

    Raises:
        ValueError: as many reasons or details as rows are needed.
    """
    if len(reasons) != len(table) or (details is not None and len(details) != len(table)):
        raise ValueError(f"{len(table)} rows need as many reasons and details: got {len(reasons)}")
    kept = table.filter(pa.array([reason is None for reason in reasons], pa.bool_()))
    dropped = table.filter(pa.array([reason is not None for reason in reasons], pa.bool_()))
    why = [reason for reason in reasons if reason is not None]
    more = [
        None if details is None else details[row]
        for row, reason in enumerate(reasons)
        if reason is not None
    ]
    return Output(kept, drops_of(dropped, why, more))


def drops_of(dropped: pa.Table, reasons: Sequence[str], details: Sequence[str | None]) -> pa.Table:
    """The rows of schema `DROP` for dropped rows of schema `RECORD`."""
    seen: dict[str, int] = {}
    sizes, samples = [], []
    for reason, content in zip(reasons, dropped["content"], strict=True):
        data = content.as_buffer()
        sizes.append(data.size if data is not None else 0)
        seen[reason] = seen.get(reason, 0) + 1
        sample = None
        if seen[reason] <= _SAMPLES and data is not None:
            sample = data[:_SAMPLE_BYTES].to_pybytes().decode(errors="replace")
        samples.append(sample)
    columns = {
        "reason": pa.array(reasons, pa.string()),
        "bytes": pa.array(sizes, pa.int64()),
        "detail": pa.array(details, pa.string()),
        "sample": pa.array(samples, pa.string()),
    }
    return pa.table(
        [columns[field.name] if field.name in columns else dropped[field.name] for field in DROP],
        schema=DROP,
    )


def records(rows: Sequence[Mapping]) -> pa.Table:
    """A table of `RECORD`s from mappings; what they do not name is null, and `marks` empty.

    Raises:
        ValueError: a row has a name that no column has, or a kind that is none.
    """
    names = set(RECORD.names)
    for row in rows:
        if unknown := set(row) - names:
            raise ValueError(f"no column is called {', '.join(sorted(unknown))}")
        if row["kind"] not in KINDS:
            raise ValueError(f"kind {row['kind']!r} is unknown: there are {', '.join(KINDS)}")
    return pa.Table.from_pylist([{"marks": [], **row} for row in rows], schema=RECORD)


def owner(repository: str) -> str:
    """The user or organization of "owner/name"; the whole name where there is no owner."""
    return repository.partition("/")[0]


def stable_hash(text: str | bytes, seed: int = 0) -> int:
    """64 bits that depend on nothing but text and seed: for partitions, coin flips and samples."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(
        hashlib.blake2b(data, digest_size=8, salt=seed.to_bytes(16, "little")).digest(), "little"
    )


def part_of(repository: str, num_parts: int) -> int:
    """The shard that holds a repository."""
    return stable_hash(repository) % num_parts
