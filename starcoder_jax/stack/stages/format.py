"""`format`: files and texts become the documents that are trained on.

StarCoder's document is a file, each of its metadata there by chance:

    <reponame>owner/name<filename>path<gh_stars>1-10
    code

StarCoder2's is a repository, its files in random order; half of them say names and paths:

    <repo_name>owner/name<file_sep>path
    code<file_sep>path
    code ...                                    or   <file_sep>code<file_sep>code ...

Of other kinds each text is a document. `<|endoftext|>` is added when documents become tokens.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack import record
from starcoder_jax.stack.chance import fraction, integer, order
from starcoder_jax.stack.languages import STARCODER2_CAPS, expanded
from starcoder_jax.stack.record import DOCUMENT, Output
from starcoder_jax.stack.runner.steps import Map, Shuffle, Step

# How often StarCoder says each of repository, path and stars, StarCoder2 repository and paths.
_METADATA_RATES = {"starcoder": 0.2, "starcoder2": 0.5}
# A language over its cap is cut by as many parts of its files as needed.
_BUCKETS = 4096
_SIZES = pa.schema([("language", pa.string()), ("bucket", pa.int64()), ("bytes", pa.int64())])
_KEPT = pa.schema([("language", pa.string()), ("buckets", pa.int64())])
# A document is as free as the least free of its files.
_LICENSE_TYPES = ("non_permissive", "no_license", "permissive")


@dataclasses.dataclass(frozen=True)
class FormatConfig:
    """How documents are made.

    Attributes:
        style: "starcoder" or "starcoder2".
        metadata_rate: how often metadata is there; None: 0.2 (StarCoder), 0.5 (StarCoder2).
        languages: of the files that are taken, by name or as names of `LANGUAGE_SETS`; None: all.
        max_language_bytes: by language. Of one that has more a random sample is taken, of at most
            so many bytes; the default is StarCoder2-15B's.
        max_document_bytes: a repository of more bytes becomes several documents, each of some of
            its files, or of a single one. A document is held in memory as a whole, and the default
            is far beyond any context.
        seed: of all random choices.

    Raises:
        ValueError: a value that makes no sense.
    """

    style: str = "starcoder2"
    metadata_rate: float | None = None
    languages: Sequence[str] | None = None
    max_language_bytes: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: dict(STARCODER2_CAPS)
    )
    max_document_bytes: int = 2**26
    seed: int = 0

    def __post_init__(self):
        if self.style not in _METADATA_RATES:
            raise ValueError(
                f"format.style is {self.style!r}: it must be {' or '.join(_METADATA_RATES)}"
            )
        if self.metadata_rate is not None and not 0 <= self.metadata_rate <= 1:
            raise ValueError(
                f"format.metadata_rate is {self.metadata_rate}: it must be from 0 to 1"
            )
        if isinstance(self.languages, str) or (self.languages is not None and not self.languages):
            raise ValueError(
                f"format.languages is {self.languages!r}: it must be a tuple of names, or None"
            )
        for language, size in self.max_language_bytes.items():
            if size < 0:
                raise ValueError(
                    f"format.max_language_bytes of {language} is {size}: it must not be negative"
                )
        if self.max_document_bytes < 1:
            raise ValueError(
                f"format.max_document_bytes is {self.max_document_bytes}: it must be positive"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"format.seed is {self.seed}: it must not be negative")


def steps(config: FormatConfig, source: str) -> list[Step]:
    """The step "format", after a step that adds up the bytes of languages with a cap.

    Args:
        config: how documents are made.
        source: the step whose rows become documents.
    """
    make = functools.partial(_format, config=config)
    if not config.max_language_bytes:
        return [Map("format", (source,), make)]
    emit = functools.partial(_sizes, config=config)
    reduce = functools.partial(_kept, caps=dict(config.max_language_bytes))
    return [
        Shuffle("format.caps", (source,), emit, _SIZES, reduce, partitions=1),
        Map("format", (source, "format.caps"), make),
    ]


def _sizes(table: pa.Table, config: FormatConfig) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Bytes by language and bucket, for languages that have a cap."""
    reasons = _unselected(table, config)
    sizes: dict[tuple[str, int], int] = {}
    lengths = pc.binary_length(table["content"])
    for row, (language, bucket) in _buckets(table, config).items():
        if reasons[row] is None:
            key = language, bucket
            sizes[key] = sizes.get(key, 0) + (lengths[row].as_py() or 0)
    columns = [
        [language for language, _ in sizes],
        [bucket for _, bucket in sizes],
        list(sizes.values()),
    ]
    yield np.zeros(len(sizes), np.int64), pa.table(columns, schema=_SIZES)


def _kept(sizes: pa.Table, caps: Mapping[str, int]) -> Output:
    """How many buckets of each language are kept: the first so many."""
    totals = {language: np.zeros(_BUCKETS, np.int64) for language in sorted(caps)}
    for row in sizes.group_by(["language", "bucket"]).aggregate([("bytes", "sum")]).to_pylist():
        totals[row["language"]][row["bucket"]] += row["bytes_sum"]
    kept = [
        int(np.searchsorted(np.cumsum(total), caps[language], side="right"))
        for language, total in totals.items()
    ]
    return Output(pa.table([list(totals), kept], schema=_KEPT))


def _format(table: pa.Table, kept: pa.Table | None = None, *, config: FormatConfig) -> Output:
    reasons = _unselected(table, config)
    if kept is not None:
        limits = dict(zip(kept["language"].to_pylist(), kept["buckets"].to_pylist(), strict=True))
        for row, (language, bucket) in _buckets(table, config).items():
            if reasons[row] is None and bucket >= limits[language]:
                reasons[row] = "language over its cap"
    selected = record.select(table, reasons)
    documents = pa.Table.from_pylist(
        list(_documents(selected.table.to_pylist(), config)), schema=DOCUMENT
    )
    counts = {"rows put into documents": len(selected.table)}
    return Output(documents, selected.drops, counts)


def _unselected(table: pa.Table, config: FormatConfig) -> list[str | None]:
    reasons: list[str | None] = [None] * len(table)
    if config.languages is None:
        return reasons
    languages = expanded(config.languages)
    for row, (kind, language) in enumerate(_kinds_and_languages(table)):
        if kind == "file" and language not in languages:
            reasons[row] = "language not selected"
    return reasons


def _buckets(table: pa.Table, config: FormatConfig) -> dict[int, tuple[str, int]]:
    """By row, for files in a language that has a cap: the language, and a random bucket."""
    buckets = {}
    names = [table[name] for name in ("swhid", "repository", "path")]
    for row, (kind, language) in enumerate(_kinds_and_languages(table)):
        if kind == "file" and language in config.max_language_bytes:
            swhid, repository, path = (column[row].as_py() or "" for column in names)
            key = (swhid,) if swhid else (repository, path)
            bucket = integer(*key, "cap", low=0, high=_BUCKETS, seed=config.seed)
            buckets[row] = language, bucket
    return buckets


def _kinds_and_languages(table: pa.Table) -> Iterable[tuple[str, str | None]]:
    return zip(table["kind"].to_pylist(), table["language"].to_pylist(), strict=True)


class _Builder:
    """A document in the making.

    Attributes:
        size: in bytes, so far.
    """

    def __init__(self):
        self._content: list[bytes] = []
        self.size = 0
        self._marks: list[dict] = []
        self._rows: list[Mapping] = []
        self._files: list[dict] = []

    def add(self, token: str | None, text: str = "") -> None:
        """A special token, or None, and text after it."""
        if token is not None:
            self._marks.append({"offset": self.size, "token": token})
        self._append(text.encode("utf-8", "replace"))

    def add_row(self, row: Mapping) -> None:
        """The content of a row, with its marks."""
        start = self.size
        self._marks += [{**mark, "offset": start + mark["offset"]} for mark in row["marks"] or ()]
        self._append(row["content"])
        self._rows.append(row)
        span = {name: row[name] for name in ("swhid", "repository", "path", "revision")}
        licenses = _licenses(row)
        span["license"] = " AND ".join(licenses) or None
        self._files.append({**span, "start": start, "stop": self.size})

    def document(self) -> dict:
        """What was put together, as a row of `DOCUMENT`."""
        first = self._rows[0]
        types = {row["license_type"] for row in self._rows}
        return {
            "kind": first["kind"],
            "content": b"".join(self._content),
            "marks": self._marks,
            "repository": first["repository"],
            "language": self._language() if first["kind"] == "file" else None,
            "licenses": sorted({name for row in self._rows for name in _licenses(row)}),
            "license_type": next((type for type in _LICENSE_TYPES if type in types), None),
            "files": self._files,
        }

    def _append(self, content: bytes) -> None:
        self._content.append(content)
        self.size += len(content)

    def _language(self) -> str | None:
        """That of most bytes."""
        sizes: dict[str, int] = {}
        for row in self._rows:
            if row["language"] is not None:
                sizes[row["language"]] = sizes.get(row["language"], 0) + len(row["content"])
        return min(sizes, key=lambda language: (-sizes[language], language), default=None)


def _licenses(row: Mapping) -> list[str]:
    return sorted(set(row["detected_licenses"] or row["declared_licenses"] or ()))


def _documents(rows: Sequence[Mapping], config: FormatConfig) -> Iterator[dict]:
    rate = config.metadata_rate
    rate = _METADATA_RATES[config.style] if rate is None else rate
    repositories: dict[str, list[Mapping]] = {}
    for row in rows:
        if row["kind"] == "file" and config.style == "starcoder2":
            repositories.setdefault(row["repository"] or "", []).append(row)
        elif row["kind"] == "file":
            yield _file(row, rate, config.seed)
        else:
            builder = _Builder()
            builder.add_row(row)
            yield builder.document()
    for name, files in repositories.items():
        yield from _repository(name, files, rate, config)


def _file(row: Mapping, rate: float, seed: int) -> dict:
    builder = _Builder()
    repository, path = row["repository"] or "", row["path"] or ""
    metadata = {
        "<reponame>": repository,
        "<filename>": path,
        "<gh_stars>": _stars(row["stars"] or 0),
    }
    chosen = [token for token in metadata if fraction(repository, path, token, seed=seed) < rate]
    for token in chosen:
        builder.add(token, metadata[token])
    if chosen:
        builder.add(None, "\n")
    builder.add_row(row)
    return builder.document()


def _repository(
    name: str, files: Sequence[Mapping], rate: float, config: FormatConfig
) -> Iterator[dict]:
    with_metadata = fraction(name, "metadata", seed=config.seed) < rate
    builder = None
    for row in sorted(
        files, key=lambda it: order(name, it["path"] or "", "order", seed=config.seed)
    ):
        if builder is not None and builder.size + len(row["content"]) > config.max_document_bytes:
            yield builder.document()
            builder = None
        if builder is None:
            builder = _Builder()
            if with_metadata:
                builder.add("<repo_name>", name)
        builder.add("<file_sep>", f"{row['path'] or ''}\n" if with_metadata else "")
        builder.add_row(row)
    yield builder.document()


def _stars(number: int) -> str:
    for limit, name in ((0, "0"), (10, "1-10"), (100, "10-100"), (1000, "100-1000")):
        if number <= limit:
            return name
    return "1000+"
