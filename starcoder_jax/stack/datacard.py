"""A data card of a corpus: a Markdown file as dataset repositories of Hugging Face have it."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from starcoder_jax.files import replace_file
from starcoder_jax.pages import format_number

CARD = "README.md"

# SPDX identifiers, in lower case, that are names of licenses in a card's header, too; the others
# have to be called "other" there.
_HUB_LICENSES = frozenset(
    (
        *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause"),
        *("bsd-3-clause-clear", "bsl-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0"),
        *("cc-by-sa-4.0", "cc0-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "gpl-2.0"),
        *("gpl-3.0", "isc", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl"),
        *("ncsa", "ofl-1.1", "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib"),
    )
)

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")

# Of languages and reasons; report.json has all of them.
_SHOWN = 100
_MAX_NAME = 200

# What would be markup, or not be seen.
_SPECIAL = re.compile(
    r"[\\`*\[\]<>&|$~\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f]"
)


def write_card(report: Mapping, folder: pathlib.Path, name: str) -> None:
    """Writes README.md.

    Args:
        report: of `accounting.account`.
        folder: exists.
        name: of the corpus.

    Raises:
        OSError: naming the file.
    """
    replace_file(folder / CARD, card(report, name).encode())


def card(report: Mapping, name: str) -> str:
    """The text of the card: only what is known of this corpus, nothing of what it may be good for.

    Args:
        report: of `accounting.account`.
        name: of the corpus.
    """
    stages = {stage["name"]: stage for stage in report["stages"]}
    first, last = report["stages"][0], report["stages"][-1]
    by = {axis: _amounts_out(last, axis) for axis in last["by"]}
    by["language"] = _languages(stages.get("format"), by["language"])
    parts = last["parts"] if last["parts"] is not None else last["out"]["rows"]
    sections = [
        _header(report, name, by),
        f"# {_text(name)}",
        f"{last['out']['rows']:,} documents with {_size(last['out'])} of text, made of {parts:,} "
        f"files, issues, notebooks and the like. They are what is left of the "
        f"{first['in']['rows']:,} rows, {_size(first['in'])}, that the pipeline was given. All "
        "figures were counted when the corpus was made; `report.json` has all of them, and "
        "`report.html` shows samples of what was left out.",
        "## What is in it",
        "### Languages",
        "Of the files and texts that the documents are made of.",
        _table(("Language", "Files", "Bytes"), _amounts(by["language"])),
        "### Kinds of documents",
        _table(("Kind", "Documents", "Bytes"), _amounts(by["kind"])),
        "### Licenses",
        "Documents keep the licenses of the files they are made of: whoever uses them has to "
        "observe their terms, such as attribution. Each document names the files, their "
        "repositories, revisions and licenses. A document with several licenses is counted under "
        "each.",
        _table(("License type", "Documents", "Bytes"), _amounts(by["license_type"])),
        _table(("License", "Documents", "Bytes"), _amounts(report["licenses"])),
        "## How it was made",
        _table(
            ("Stage", "Rows in", "Dropped", "Rows out", "Bytes out"),
            [_stage_row(stage) for stage in report["stages"]],
        ),
        "### What was left out, and why",
        _table(("Stage", "Reason", "Rows", "Bytes"), _reasons(report["stages"])),
        "## Personal information",
        _counted(stages.get("redact"), "No redaction was run."),
        "## Benchmarks",
        _counted(stages.get("decontaminate"), "It was not searched for benchmarks."),
        "## Opting out",
        _opted_out(stages.get("optout")),
        "## Configuration",
        _code(report["configuration"]),
    ]
    return "\n\n".join(sections) + "\n"


def size_category(documents: int) -> str:
    """The Hub's name of a number of documents, such as "10K<n<100K"."""
    bounds = [1000 * 10**power for power in range(len(_SIZES))]
    place = sum(documents >= bound for bound in bounds)
    if place == 0:
        return f"n<{_SIZES[0]}"
    if place == len(_SIZES):
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}"


def _header(report: Mapping, name: str, by: Mapping[str, Mapping]) -> str:
    names = [spdx for spdx, _ in _largest_first(report["licenses"])]
    licenses = [spdx.lower() if spdx.lower() in _HUB_LICENSES else "other" for spdx in names]
    if any(kind in by["license_type"] for kind in ("", "no_license")):
        licenses.append("unknown")
    languages = [language for language, _ in _largest_first(by["language"]) if language]
    documents = report["stages"][-1]["out"]["rows"]
    lists = {
        "license": dict.fromkeys(licenses or ["unknown"]),
        "language": ["code"],
        "size_categories": [size_category(documents)],
        "task_categories": ["text-generation"],
        "tags": ["code", *languages],
    }
    lines = [f"pretty_name: {json.dumps(name)}"]
    for key, values in lists.items():
        # A JSON string is a YAML string, whatever is in it.
        lines += [f"{key}:", *(f"- {json.dumps(value)}" for value in values)]
    return "\n".join(["---", *lines, "---"])


def _amounts_out(stage: Mapping, axis: str) -> dict[str, Mapping]:
    return {
        value: amounts["out"]
        for value, amounts in stage["by"][axis].items()
        if amounts["out"]["rows"]
    }


def _languages(stage: Mapping | None, otherwise: Mapping[str, Mapping]) -> Mapping[str, Mapping]:
    """What documents were made of: a document has one language only, its files may have several."""
    if stage is None:
        return otherwise
    went_on = {
        language: {key: amounts["in"][key] - amounts["dropped"][key] for key in ("rows", "bytes")}
        for language, amounts in stage["by"]["language"].items()
    }
    return {language: amount for language, amount in went_on.items() if amount["rows"]}


def _stage_row(stage: Mapping) -> tuple[str, ...]:
    numbers = [f"{stage[key]['rows']:,}" for key in ("in", "dropped", "out")]
    return (stage["name"], *numbers, _size(stage["out"]))


def _reasons(stages: Iterable[Mapping]) -> list[tuple[str, ...]]:
    rows = []
    for stage in stages:
        dropped = {reason: about["dropped"] for reason, about in stage["reasons"].items()}
        rows += [(stage["name"], *row) for row in _amounts(dropped)]
    return rows


def _counted(stage: Mapping | None, otherwise: str) -> str:
    if stage is None:
        return otherwise
    rows = [(name, f"{count:,}") for name, count in stage["counts"].items()]
    dropped = f"The stage {stage['name']} dropped {stage['dropped']['rows']:,} rows."
    return f"{dropped} It counted:\n\n{_table(('What', 'How many'), rows)}" if rows else dropped


def _opted_out(stage: Mapping | None) -> str:
    if stage is None:
        return "No opt-outs were applied."
    return (
        f"{stage['dropped']['rows']:,} rows, {_size(stage['dropped'])}, were left out since their "
        "owners asked for it."
    )


def _amounts(amounts: Mapping[str, Mapping]) -> list[tuple[str, ...]]:
    ordered = _largest_first(amounts)
    rows = [
        (name or "unknown", f"{amount['rows']:,}", _size(amount))
        for name, amount in ordered[:_SHOWN]
    ]
    if more := ordered[_SHOWN:]:
        total = {key: sum(amount[key] for _, amount in more) for key in ("rows", "bytes")}
        rows.append((f"{len(more):,} more", f"{total['rows']:,}", _size(total)))
    return rows


def _largest_first(amounts: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    return sorted(amounts.items(), key=lambda item: (-item[1]["rows"], item[0]))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    # Numbers stand at the right.
    rule = ["---" if not row_is_number else "--:" for row_is_number in _are_numbers(rows[0])]
    lines = [heads, rule, *(tuple(map(_text, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _are_numbers(row: Sequence[str]) -> list[bool]:
    return [number > 0 and value[:1].isdigit() for number, value in enumerate(row)]


def _text(name: str) -> str:
    cut = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", cut)


def _code(text: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{text}\n{fence}" if text else "None is known."


def _size(amount: Mapping[str, int]) -> str:
    return f"{format_number(amount['bytes'], 3)}B"
