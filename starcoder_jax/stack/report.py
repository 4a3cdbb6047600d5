"""The report of a pipeline: report.json for scripts, report.html for people."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from starcoder_jax.files import replace_file
from starcoder_jax.pages import STYLE, format_number, table

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"

# Of rows of a table, and of characters of a name.
_SHOWN_LANGUAGES = 5
_MAX_NAME = 300

_AXES = {"language": "Languages", "kind": "Kinds", "license_type": "License types"}

# Characters that are not seen, or that make others stand in another order.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)

_MORE_STYLE = """
details.card { padding: .5rem 1rem; margin: .5rem 0; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1rem; }
h4 { margin: .8rem 0 0; font-weight: 600; font-size: .875rem; }
td { vertical-align: top; }
.funnel { padding: .8rem 1rem; margin-bottom: .75rem; }
.names td:last-child, .names th:last-child { text-align: left; }
.funnel text { fill: var(--text); } .funnel .note { fill: var(--quiet); }
.kept { fill: var(--curve); } .gone { fill: var(--bad); opacity: .45; }
.legend .kept { background: var(--curve); } .legend .gone { background: var(--bad); }
"""


def write_report(report: Mapping, folder: pathlib.Path, title: str) -> None:
    """Writes report.json and report.html.

    The page needs no network and no JavaScript. All that comes from the input is escaped; what is
    not to be seen in it, such as characters that reverse others, is shown by its number.

    Args:
        report: of `accounting.account`.
        folder: exists.
        title: the heading of the page.

    Raises:
        OSError: naming the file.
    """
    text = json.dumps(report, indent=1, sort_keys=True)
    replace_file(folder / REPORT_JSON, text.encode() + b"\n")
    stages = report["stages"]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}{_MORE_STYLE}</style></head><body>"
        f"<header><h1>{_text(title)}</h1></header>"
        + _figures(stages)
        + _section("From stage to stage", _funnel(stages) + _overview(stages))
        + "".join(map(_stage, stages))
        + _section("Licenses of what came out", _licenses(report["licenses"]))
        + _section("Configuration", _details("as it was used", _pre(report["configuration"])))
        + "</body></html>\n"
    )
    replace_file(folder / REPORT_HTML, page.encode())


def _figures(stages: Sequence[Mapping]) -> str:
    first, last = stages[0]["in"], stages[-1]["out"]
    dropped = sum(stage["dropped"]["rows"] for stage in stages)
    figures = [
        ("Came in", _rows(first), _size(first["bytes"])),
        ("Came out", _rows(last), _size(last["bytes"])),
        ("Of the bytes", _share(last["bytes"], first["bytes"]), "are left"),
        ("Dropped", f"{dropped:,}", "rows, each for a reason that is named below"),
    ]
    cards = "".join(
        f'<div class="card"><span class="quiet">{label}</span><b>{value}</b>'
        f'<span class="quiet">{note}</span></div>'
        for label, value, note in figures
    )
    return f'<section class="figures">{cards}</section>'


def _funnel(stages: Sequence[Mapping]) -> str:
    """A bar a stage: bytes that went on, and bytes that were dropped, to one scale."""
    largest = max(1, *(stage["out"]["bytes"] + stage["dropped"]["bytes"] for stage in stages))
    height = 26
    parts = []
    for number, stage in enumerate(stages):
        y = number * height
        kept = 420 * stage["out"]["bytes"] / largest
        gone = 420 * stage["dropped"]["bytes"] / largest
        note = f"{_size(stage['out']['bytes'])} · {_rows(stage['out'])} rows"
        parts.append(
            f'<text x="110" y="{y + 16}" class="end">{_text(stage["name"])}</text>'
            f'<rect class="kept" x="120" y="{y + 3}" width="{kept:.1f}" height="18"></rect>'
            f'<rect class="gone" x="{120 + kept:.1f}" y="{y + 3}" width="{gone:.1f}" height="18">'
            f'</rect><text class="note" x="{130 + kept + gone:.1f}" y="{y + 16}">{note}</text>'
        )
    # Text may grow by a glue of documents: some room is left at the right.
    box = f"0 0 820 {len(stages) * height}"
    label = "Bytes that went on from each stage, and bytes it dropped"
    legend = (
        '<ul class="legend"><li><span class="kept"></span>bytes that went on</li>'
        '<li><span class="gone"></span>bytes dropped</li></ul>'
    )
    picture = f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<div class="card funnel">{picture}{legend}</div>'


def _overview(stages: Sequence[Mapping]) -> str:
    rows = [
        (
            stage["name"],
            _rows(stage["in"]),
            _rows(stage["dropped"]),
            f"{stage['made']:,}",
            f"{stage['joined']:,}",
            _rows(stage["out"]),
            "" if stage["parts"] is None else f"{stage['parts']:,}",
            _size(stage["in"]["bytes"]),
            _size(stage["dropped"]["bytes"]),
            _size(stage["out"]["bytes"]),
            f"{stage['changed_bytes']:+,}" if stage["changed_bytes"] else "0",
        )
        for stage in stages
    ]
    heads = (
        *("Stage", "Rows in", "Dropped", "Made", "Joined", "Rows out", "Parts"),
        *("In", "Dropped", "Out", "Bytes changed"),
    )
    note = (
        '<p class="quiet">The books balance: every row that went in came out or was dropped, but '
        "for those that rendering made or joined. The parts of documents are rows of before.</p>"
    )
    return _table(heads, rows) + note


def _stage(stage: Mapping) -> str:
    body = _reasons(stage)
    if stage["counts"]:
        rows = [(name, f"{count:,}") for name, count in stage["counts"].items()]
        body += f"<h3>Counted</h3>{_table(('What', 'How many'), rows)}"
    for axis, heading in _AXES.items():
        body += _details(heading, _by(stage["by"][axis]))
    for reason, samples in stage["samples"].items():
        about = f"Samples of what was dropped: {reason}"
        body += _details(about, "".join(map(_sample, samples)))
    if stage["withheld"]:
        body += (
            f'<p class="quiet">{stage["withheld"]:,} samples are not shown, since they are, or may '
            "be, of somebody who opted out.</p>"
        )
    return _section(f"Stage {stage['name']}", body)


def _reasons(stage: Mapping) -> str:
    if not stage["reasons"]:
        return '<p class="quiet">Nothing was dropped.</p>'
    rows = []
    for reason, about in _largest_first(stage["reasons"], lambda entry: entry["dropped"]):
        languages = _largest_first(about["by"], lambda amount: amount)
        names = [f"{name or 'unknown'} {amount['rows']:,}" for name, amount in languages]
        more = len(names) - _SHOWN_LANGUAGES
        names[_SHOWN_LANGUAGES:] = [f"{more:,} more"] if more > 0 else []
        amount = about["dropped"]
        share = _share(amount["rows"], stage["in"]["rows"])
        rows.append((reason, _rows(amount), share, _size(amount["bytes"]), ", ".join(names)))
    heads = ("Reason", "Rows", "Of those in", "Bytes", "Languages")
    return f'<div class="names">{_table(heads, rows)}</div>'


def _by(axis: Mapping[str, Mapping]) -> str:
    rows = []
    for value, amounts in _largest_first(axis, lambda entry: entry["in"]):
        columns = [f(amounts[key]) for f in (_rows, _bytes) for key in ("in", "dropped", "out")]
        rows.append((value or "unknown", *columns))
    return _table(("", "Rows in", "Dropped", "Out", "Bytes in", "Dropped", "Out"), rows)


def _licenses(licenses: Mapping[str, Mapping]) -> str:
    if not licenses:
        return '<p class="quiet">No license is known of anything.</p>'
    rows = [
        (name, _rows(amount), _size(amount["bytes"]))
        for name, amount in _largest_first(licenses, lambda amount: amount)
    ]
    note = '<p class="quiet">What has several licenses is counted under each.</p>'
    return _table(("License", "Documents", "Bytes"), rows) + note


def _sample(row: Mapping) -> str:
    place = " / ".join(_text(row[name]) for name in ("repository", "path") if row[name])
    about = [row["kind"], row["language"], row["license_type"], f"{row['bytes']:,} bytes"]
    about += [row["detail"], row["swhid"]]
    notes = " · ".join(_text(value) for value in about if value)
    return f'<h4>{place}</h4><p class="quiet">{notes}</p>{_pre(row["sample"])}'


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{body}</section>"


def _details(summary: str, body: str) -> str:
    return f'<details class="card"><summary>{_text(summary)}</summary>{body}</details>'


def _pre(text: str) -> str:
    # HTML drops a newline right after <pre>; this one is dropped in place of the text's own.
    return f"<pre>\n{escape(_seen(text))}</pre>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return table(heads, (map(_text, row) for row in rows))


def _text(name: str) -> str:
    cut = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
    return escape(_seen(cut))


def _seen(text: str) -> str:
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _largest_first(amounts: Mapping[str, Mapping], of) -> list[tuple[str, Mapping]]:
    return sorted(amounts.items(), key=lambda item: (-of(item[1])["rows"], item[0]))


def _rows(amount: Mapping[str, int]) -> str:
    return f"{amount['rows']:,}"


def _bytes(amount: Mapping[str, int]) -> str:
    return _size(amount["bytes"])


def _size(size: int) -> str:
    return f"{format_number(size, 3)}B"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
