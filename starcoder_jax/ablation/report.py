"""The page about an ablation: one HTML file that needs nothing else."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from starcoder_jax.ablation.charts import curves_chart, intervals_chart
from starcoder_jax.ablation.results import DONE, interval_rows, mean_text, reason_text
from starcoder_jax.files import replace_file
from starcoder_jax.pages import STYLE, format_number, table

REPORT_FILE = "ablation.html"

_NAMES = {"tokens": "tokens", "flops": "FLOPs"}

_MORE_STYLE = """
td { vertical-align: top; }
.words td:last-child, .words th:last-child { text-align: left; white-space: normal; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; }
"""


def write_report(workdir: pathlib.Path, found: Mapping[str, object]) -> None:
    """Writes WORKDIR/ablation.html.

    Args:
        workdir: of the ablation.
        found: of `results.collate`.

    Raises:
        OSError: naming the file.
    """
    title = f"Ablation: {workdir.resolve().name}"
    done = sum(run["state"] == DONE for run in found["runs"])
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_MORE_STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="quiet">{done} of {len(found["runs"])} runs '
        f"done</p></header>"
        + _how(found)
        + "".join(_budget(found, *budget) for budget in _by_budget(found))
        + _section("Arms", _arms(found))
        + _section("Runs", _runs(found))
        + _section("As data", _data(found))
        + "</body></html>\n"
    )
    replace_file(workdir / REPORT_FILE, page.encode("utf-8", "replace"))


def _how(found: Mapping[str, object]) -> str:
    level = f"{round(100 * found['confidence'], 6):g} %"
    seeds = ", ".join(map(str, found["seeds"]))
    text = (
        f"<p>All arms are compared with <b>{escape(found['first_arm'])}</b>, seed by seed (seeds "
        f"{seeds}). Intervals are Student's, of the mean of paired differences, at {level} each: "
        "of many comparisons some exclude zero by chance. Where an interval contains zero, no "
        "difference was seen at this scale; that is not to say that there is none.</p>"
    )
    caveats = "".join(f'<p class="warning">{escape(caveat)}</p>' for caveat in found["caveats"])
    missing = "".join(
        f'<p class="warning">{escape(run["name"])}: {run["state"]}{escape(reason_text(run))}</p>'
        for run in found["runs"]
        if run["state"] != DONE
    )
    return text + caveats + missing


def _by_budget(found: Mapping[str, object]) -> list[tuple[str, list[Mapping]]]:
    budgets: dict[str, list[Mapping]] = {}
    for comparison in found["comparisons"]:
        budgets.setdefault(comparison["equal"], []).append(comparison)
    return list(budgets.items())


def _budget(found: Mapping[str, object], equal: str, comparisons: Sequence[Mapping]) -> str:
    charts = [_curves(found, equal)]
    charts += [_intervals(found, comparison) for comparison in comparisons]
    body = f'<div class="charts">{"".join(charts)}</div>'
    for comparison in comparisons:
        body += f"<h3>{escape(comparison['metric'])}</h3>{_table_of(comparison)}"
    return _section(f"At equal {_NAMES[equal]}", body)


def _table_of(comparison: Mapping[str, object]) -> str:
    rows = [
        (
            arm,
            str(sum(value is not None for value in entry["values"].values())),
            mean_text(entry),
            entry["words"] or "the others are compared with this one",
        )
        for arm, entry in comparison["arms"].items()
    ]
    heads = ("Arm", "Seeds", "Mean ± deviation", "Against the first arm")
    return f'<div class="words">{_table(heads, rows)}</div>'


def _curves(found: Mapping[str, object], equal: str) -> str:
    arms: dict[str, list] = {}
    for arm, about in found["arms"].items():
        cost = about["cost"][equal]
        per_token = cost[equal] / cost["tokens"]
        arms[arm] = [
            [(tokens * per_token, value) for tokens, value in run["curve"] if value is not None]
            for run in found["runs"]
            if run["arm"] == arm and run["steps"] == cost["steps"]
        ]
    drawn = {arm: [curve for curve in curves if curve] for arm, curves in arms.items()}
    return curves_chart("Held-out bits per byte", f"over {_NAMES[equal]}", drawn)


def _intervals(found: Mapping[str, object], comparison: Mapping[str, object]) -> str:
    rows = interval_rows(found, comparison)
    if not rows:
        return ""
    return intervals_chart(comparison["metric"], f"minus that of {found['first_arm']}", rows)


def _arms(found: Mapping[str, object]) -> str:
    rows = [
        (
            arm,
            *(", ".join(about["changes"]) or "the base recipe", equal),
            *(format_number(about["cost"][equal][name]) for name in ("steps", "tokens", "flops")),
        )
        for arm, about in found["arms"].items()
        for equal in about["cost"]
    ]
    return _table(("Arm", "Changes", "At equal", "Steps", "Tokens", "FLOPs of the model"), rows)


def _runs(found: Mapping[str, object]) -> str:
    items = "".join(
        f'<li><a href="runs/{escape(run["name"])}/report.html">{escape(run["name"])}</a>: '
        f"{run['state']}</li>"
        for run in found["runs"]
    )
    return f"<ul>{items}</ul>"


def _data(found: Mapping[str, object]) -> str:
    shown = {name: value for name, value in found.items() if name != "runs"}
    text = escape(json.dumps(shown, indent=1))
    return (
        f"<details><summary>ablation.json, but for the runs</summary><pre>\n{text}</pre></details>"
    )


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return table(map(escape, heads), (map(escape, row) for row in rows))
