"""The books of a pipeline: what went into each stage, what came out, and what became of the rest.

    steps(["collect", "identify", …])      summaries of their shards, as further steps of a pipeline
    account(store, names)                  adds all up, and makes sure that nothing is missing

No content is read to add up: the steps of `steps` run in the runner, where a shard that did not
change is not looked at again, and what was dropped is in a table of its own without its content.
"""

import collections
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack.record import KINDS, Output, stable_hash
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.runner.steps import Map, Step
from starcoder_jax.stack.stages.optout import Entry, Matcher
from starcoder_jax.stack.stages.redact import DETECTORS
from starcoder_jax.stack.stages.redact.spans import TYPES, union

FORMAT_VERSION = 1

STAGES = (
    *("collect", "identify", "render", "filter", "dedup", "decontaminate", "redact", "optout"),
    *("format", "publish"),
)

_AXES = ("kind", "language", "license_type")

# Rows of a shard, or of several: where `license` is null, how many there are of each kind, language
# and license type; and where it is not, how many of those have this license.
SUMMARY = pa.schema(
    [
        *((name, pa.string()) for name in (*_AXES, "license")),
        ("rows", pa.int64()),
        # Of documents, how many files or other rows they are made of; of those, 1 each.
        ("parts", pa.int64()),
        ("bytes", pa.int64()),
    ]
)

# What `render` makes other kinds of, and the language of files that it makes notebooks of.
_RENDERED = KINDS[1 : KINDS.index("page") + 1]
_NOTEBOOK = "Jupyter Notebook"
# Kinds whose rows have authors, whom a row that was dropped does not name.
AUTHORED = {*KINDS[1:]} - {"page", "documentation", "ir", "ir_event"}
_SAMPLES = 5  # per reason


def steps(names: Iterable[str]) -> list[Step]:
    """For each step NAME that writes records or documents, a step "accounting.NAME" sums it up."""
    return [Map(f"accounting.{name}", (name,), summary) for name in names]


def summary(table: pa.Table) -> Output:
    """Sums a shard up, without copying a content.

    Args:
        table: of schema `RECORD`, `DOCUMENT` or that of what is published.

    Returns:
        Rows of `SUMMARY`.
    """
    columns = {name: table[name] for name in _AXES}
    columns["bytes"] = pc.fill_null(pc.binary_length(table["content"]), 0).cast(pa.int64())
    if "files" in table.column_names:
        columns["parts"] = pc.fill_null(pc.list_value_length(table["files"]), 0).cast(pa.int64())
    else:
        columns["parts"] = pa.array([1] * len(table), pa.int64())
    columns["license"] = pa.nulls(len(table), pa.string())
    columns["rows"] = pa.array([1] * len(table), pa.int64())
    rows = pa.table(columns).select(SUMMARY.names)
    parts = [rows]
    if "licenses" in table.column_names:
        licenses = table["licenses"].combine_chunks()
        each = rows.take(pc.list_parent_indices(licenses))
        place = SUMMARY.get_field_index("license")
        parts.append(each.set_column(place, "license", pc.list_flatten(licenses)))
    return Output(_added(parts))


def account(
    store: Store,
    names: Sequence[str],
    *,
    configuration: str = "",
    opted_out: Iterable[Entry] = (),
) -> dict:
    """Balances the books of a pipeline that has run.

    Every row that went into a stage must have come out of it or be among those it dropped. `render`
    may make several rows of one and one of several, but not of files other than notebooks. `format`
    puts rows together to documents, which name their parts.

    Args:
        store: where the pipeline ran, its `steps(stages)` included.
        names: of its steps, in order.
        configuration: as used, for the report.
        opted_out: whose contents are not shown as samples. Rows whose authors are not known are
            not shown either if there are entries of owners or authors.

    Returns:
        The report, as JSON has it. An amount is {"rows": …, "bytes": …}, bytes those of contents.

            format_version: 1
            stages: a list, in order, of objects with
                name: such as "filter"
                in, out, dropped: amounts
                made, joined: rows that came to be, or became part of another row, in `render`;
                    documents have their parts in `format`
                parts: how many rows the documents that went out are made of; null for rows
                changed_bytes: by how much contents grew (or, negative, shrank)
                by: "kind", "language" and "license_type" to value ("" if not known) to an object
                    of amounts in, out, dropped
                reasons: reason to an object of amount dropped and by: language to amount
                counts: further counts of the stage, such as redactions, by name
                samples: reason to a list of at most 5 rows of `record.DROP`, as objects; e-mail
                    and IP addresses and keys are redacted
                withheld: samples that are not shown since somebody opted out
            licenses: of the last stage, SPDX identifier to amount; a row may have several
            configuration: a text

    Raises:
        ValueError: a stage has not run, or its books do not balance; names it.
    """
    matcher = Matcher(opted_out)
    stages: list[dict] = []
    before = None
    for name in (stage for stage in STAGES if stage in names):
        out = _total(store, name)
        drops = _Drops(matcher)
        counts: collections.Counter[str] = collections.Counter()
        for step in (step for step in names if step == name or step.startswith(f"{name}.")):
            result = store.load(step)
            for shard in result.shards:
                counts.update(shard.counts)
            for table in result.drops():
                drops.add(table)
        stages.append(_stage(name, before, out, drops, counts))
        before = out
    if before is None:
        raise ValueError(f"there is no stage to account for among the steps {', '.join(names)}")
    return {
        "format_version": FORMAT_VERSION,
        "stages": stages,
        "licenses": before.licenses,
        "configuration": configuration,
    }


class _Amounts(dict):
    """Keys to rows and bytes; those of a key that is not there are 0."""

    def __missing__(self, key):
        return (0, 0)

    def add(self, key: object, rows: int, size: int) -> None:
        before = self[key]
        self[key] = before[0] + rows, before[1] + size

    def total(self) -> tuple[int, int]:
        return sum(rows for rows, _ in self.values()), sum(size for _, size in self.values())


class _Total:
    """What a stage wrote.

    Attributes:
        amounts: by kind, language and license type.
        parts: by kind.
        of_documents: whether documents were written.
        licenses: amounts by license, as the report has them.
    """

    def __init__(self, summaries: pa.Table, of_documents: bool):
        self.amounts, self.of_documents = _Amounts(), of_documents
        self.parts: collections.Counter[str] = collections.Counter()
        licenses = _Amounts()
        for row in summaries.to_pylist():
            if row["license"] is None:
                key = tuple(row[axis] or "" for axis in _AXES)
                self.amounts.add(key, row["rows"], row["bytes"])
                self.parts[row["kind"] or ""] += row["parts"]
            else:
                licenses.add(row["license"], row["rows"], row["bytes"])
        self.licenses = {name: _amount(*licenses[name]) for name in sorted(licenses)}


class _Drops:
    """What a stage dropped."""

    def __init__(self, matcher: Matcher):
        self._matcher = matcher
        self.amounts = _Amounts()
        self.reasons: dict[str, _Amounts] = collections.defaultdict(_Amounts)
        self._samples: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
        self.withheld = 0

    def add(self, table: pa.Table) -> None:
        keys = ["reason", *_AXES]
        grouped = table.group_by(keys).aggregate([("bytes", "count"), ("bytes", "sum")])
        for row in grouped.to_pylist():
            rows, size = row["bytes_count"], row["bytes_sum"] or 0
            self.amounts.add(tuple(row[axis] or "" for axis in _AXES), rows, size)
            self.reasons[row["reason"]].add(row["language"] or "", rows, size)
        shown = table.filter(pc.is_valid(table["sample"]))
        for row, entry in zip(shown.to_pylist(), self._matcher.match(shown), strict=True):
            if entry or (self._matcher.knows_authors and row["kind"] in AUTHORED):
                self.withheld += 1
                continue
            # The smallest hashes, which are the same whatever the order of shards.
            text = json.dumps(row, sort_keys=True)
            item = (-stable_hash(text), text)
            held = self._samples[row["reason"]]
            (heapq.heappush if len(held) < _SAMPLES else heapq.heappushpop)(held, item)

    def samples(self) -> dict[str, list[dict]]:
        shown = {}
        for reason, held in sorted(self._samples.items()):
            shown[reason] = [json.loads(text) for _, text in sorted(held, reverse=True)]
            for row in shown[reason]:
                row["sample"] = _redacted(row["sample"])
        return shown


def _redacted(text: str) -> str:
    """What stages before `redact` dropped has been seen by nobody: reports are handed on."""
    spans = [span for find in DETECTORS.values() for span in find(text) if span.type in TYPES]
    for span in reversed(union(spans)):
        text = f"{text[: span.start]}<{span.type}>{text[span.stop :]}"
    return text


def _total(store: Store, name: str) -> _Total:
    tables = list(store.load(f"accounting.{name}").tables())
    total = _Total(_added(tables), of_documents=name in ("format", "publish"))
    if total.amounts.total()[0] != sum(shard.rows for shard in store.load(name).shards):
        raise ValueError(f"step accounting.{name} is older than step {name}: run it again")
    return total


def _stage(
    name: str, before: _Total | None, out: _Total, drops: _Drops, counts: Mapping[str, int]
) -> dict:
    went_in = _found(out, drops) if before is None else before.amounts
    made, joined = 0, 0
    if before is not None:
        made, joined = _balance(name, before, out, drops)
    rows, sizes = zip(went_in.total(), out.amounts.total(), drops.amounts.total(), strict=True)
    return {
        "name": name,
        **{key: _amount(rows[i], sizes[i]) for i, key in enumerate(("in", "out", "dropped"))},
        "made": made,
        "joined": joined,
        "parts": sum(out.parts.values()) if out.of_documents else None,
        "changed_bytes": sizes[1] + sizes[2] - sizes[0],
        "by": {axis: _by(number, went_in, out, drops) for number, axis in enumerate(_AXES)},
        "reasons": {
            reason: {
                "dropped": _amount(*amounts.total()),
                "by": {language: _amount(*amounts[language]) for language in sorted(amounts)},
            }
            for reason, amounts in sorted(drops.reasons.items())
        },
        "counts": dict(sorted(counts.items())),
        "samples": drops.samples(),
        "withheld": drops.withheld,
    }


def _found(out: _Total, drops: _Drops) -> _Amounts:
    """What a first stage was given: what it says to have dropped or passed on."""
    found = _Amounts(out.amounts)
    for key, amount in drops.amounts.items():
        found.add(key, *amount)
    return found


def _balance(name: str, before: _Total, out: _Total, drops: _Drops) -> tuple[int, int]:
    """How many rows a stage made and joined.

    Raises:
        ValueError: rows came from or went to nowhere.
    """
    joins = out.of_documents and not before.of_documents
    balance: collections.Counter[tuple[str, bool]] = collections.Counter()

    def add(sign: int, amounts: _Amounts) -> None:
        for (kind, language, _), (rows, _) in amounts.items():
            balance[kind, name == "render" and language == _NOTEBOOK] += sign * rows

    add(-1, before.amounts)
    add(1, drops.amounts)
    if joins:
        for kind, parts in out.parts.items():
            balance[kind, False] += parts
    else:
        add(1, out.amounts)
    made, joined = 0, 0
    for (kind, is_notebook), rows in sorted(balance.items()):
        may_join = name == "render" and (kind in _RENDERED or (kind == "file" and is_notebook))
        may_make = name == "render" and kind in KINDS[KINDS.index("page") + 1 :]
        if (rows > 0 and not may_make) or (rows < 0 and not may_join):
            raise ValueError(
                f"the books of stage {name} do not balance: {abs(rows):,} rows of kind {kind!r} "
                f"{'came from' if rows > 0 else 'went'} nowhere; run it anew"
            )
        made, joined = made + max(rows, 0), joined + max(-rows, 0)
    return made, joined


def _by(axis: int, went_in: _Amounts, out: _Total, drops: _Drops) -> dict[str, dict]:
    sums: dict[str, _Amounts] = collections.defaultdict(_Amounts)
    for column, amounts in enumerate((went_in, out.amounts, drops.amounts)):
        for key, amount in amounts.items():
            sums[key[axis]].add(column, *amount)
    return {
        value: {name: _amount(*of[i]) for i, name in enumerate(("in", "out", "dropped"))}
        for value, of in sorted(sums.items())
    }


def _added(tables: Sequence[pa.Table]) -> pa.Table:
    keys = [*_AXES, "license"]
    numbers = ("rows", "parts", "bytes")
    grouped = (
        pa.concat_tables(tables, promote_options="none")
        .group_by(keys)
        .aggregate([(number, "sum") for number in numbers])
    )
    columns = [grouped[key] for key in keys] + [grouped[f"{number}_sum"] for number in numbers]
    added = pa.table(columns, schema=SUMMARY)
    return added.sort_by([(key, "ascending") for key in keys])


def _amount(rows: int, size: int) -> dict[str, int]:
    return {"rows": rows, "bytes": size}
