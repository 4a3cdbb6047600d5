"""Writes the tables and figures of ablations.md from what `ablate` found.

    python docs/update_ablations.py --add=runs/fim/ablation.json   # then the marks, by hand
    python docs/update_ablations.py

ablations.md says which metrics are shown: what lies between a line `<!-- fim: METRIC, METRIC -->`
and the next `<!-- end -->` comes from ablations/fim.json, an `ablation.json` as it was written.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from html import escape

from starcoder_jax.ablation.charts import intervals_chart
from starcoder_jax.ablation.results import interval_rows, mean_text
from starcoder_jax.ablation.statistics import signed
from starcoder_jax.files import replace_file

DOCS = pathlib.Path(__file__).parent
PAGE, RESULTS = "ablations.md", "ablations"
_BLOCK = re.compile(r"(<!-- (?P<name>\w+): (?P<metrics>[^>]*) -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH, _TITLE, _GAP = 480, 20, 14
_STYLE = """
  svg { --page: #fff; --line: #e1e5eb; --quiet: #59636e; --text: #1f2328; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #0d1117; --line: #2c3541; --quiet: #93a0b4; --text: #e3e8ef; } }
  svg { font: 12px system-ui, sans-serif; fill: var(--quiet); }
  .end { text-anchor: end; } .mid { text-anchor: middle; } .grid { stroke: var(--line); }
  .title { fill: var(--text); font-weight: 600; }
"""


def update(page: str, results: Mapping[str, dict]) -> tuple[str, dict[str, str]]:
    """The page with its tables, and its figures by name.

    Args:
        page: Markdown with blocks as above.
        results: of `ablate`, by name.

    Raises:
        ValueError: a block names results or a metric that there is not.
    """
    figures = {}

    def fill(block: re.Match) -> str:
        name, metrics = block["name"], block["metrics"].split(", ")
        if name not in results:
            raise ValueError(f"{PAGE} names {name!r}, which {RESULTS} has not: add it by --add")
        found = results[name]
        by_metric = {(c["metric"], c["equal"]): c for c in found["comparisons"]}
        shown = [comparison for key, comparison in by_metric.items() if key[0] in metrics]
        for metric in metrics:
            if not any(comparison["metric"] == metric for comparison in shown):
                known = ", ".join(dict.fromkeys(key[0] for key in by_metric))
                raise ValueError(f"{PAGE}: {name} has no metric {metric!r}; it has {known}")
        shown.sort(key=lambda comparison: metrics.index(comparison["metric"]))
        figures[name] = _figure(found, shown)
        text = f"differences to {found['first_arm']}, seed by seed"
        image = f"![{name}: {text}]({RESULTS}/{name}.svg)"
        data = f"All metrics and runs: [{name}.json]({RESULTS}/{name}.json)."
        return f"{block[1]}\n{_table(found, shown)}\n\n{image}\n\n{data}\n{block[4]}"

    return _BLOCK.sub(fill, page), figures


def _table(found: Mapping, shown: Sequence[Mapping]) -> str:
    """A row for each arm and budget, a column for each metric."""
    budgets = list(dict.fromkeys(comparison["equal"] for comparison in shown))
    metrics = list(dict.fromkeys(comparison["metric"] for comparison in shown))
    head = ["arm", *(["at equal"] if len(budgets) > 1 else []), *metrics]
    rows = [head, ["---"] * len(head)]
    for equal in budgets:
        for arm in found["arms"]:
            cells = [arm, *([equal] if len(budgets) > 1 else [])]
            for metric in metrics:
                entry = next(
                    c["arms"][arm] for c in shown if (c["metric"], c["equal"]) == (metric, equal)
                )
                cells.append(_cell(entry))
            rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(entry: Mapping) -> str:
    """Mean and deviation; below it the interval of the difference, bold where it excludes zero."""
    difference = entry["difference"]
    if difference is None or difference["low"] is None:
        return mean_text(entry)
    low, high = difference["low"], difference["high"]
    interval = f"{signed(low)} to {signed(high)}"
    if not low <= 0 <= high:
        interval = f"**{interval}**"
    return f"{mean_text(entry)}<br>{interval}"


def _figure(found: Mapping, shown: Sequence[Mapping]) -> str:
    several = len({comparison["equal"] for comparison in shown}) > 1
    about = f"Differences to {found['first_arm']}: seeds, their mean and its interval"
    parts = [f'<text x="8" y="{_GAP}">{escape(about)}</text>']
    top = _TITLE + _GAP
    for comparison in shown:
        title = comparison["metric"]
        title += f", at equal {comparison['equal']}" if several else ""
        chart = intervals_chart(title, "", interval_rows(found, comparison))
        height, body = re.search(r'<svg viewBox="0 0 \d+ ([\d.]+)"[^>]*>(.*)</svg>', chart).groups()
        parts.append(f'<text class="title" x="8" y="{top}">{escape(title)}</text>')
        parts.append(f'<g transform="translate(0 {top + _GAP / 2:g})">{body}</g>')
        top += float(height) + _TITLE + _GAP
    size = f'width="{_WIDTH}" height="{top:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:g}" {size} role="img">'
        f'<style>{_STYLE}</style>\n<rect {size} style="fill:var(--page)"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def read_results() -> dict[str, dict]:
    """All results beside the page, by name."""
    files = sorted((DOCS / RESULTS).glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def main() -> None:
    """Writes the page and its figures."""
    parser = argparse.ArgumentParser(description="Updates ablations.md.")
    parser.add_argument("--add", type=pathlib.Path, help="an ablation.json, named by its folder")
    args = parser.parse_args()
    if args.add is not None:
        target = DOCS / RESULTS / f"{args.add.resolve().parent.name}.json"
        target.parent.mkdir(exist_ok=True)
        replace_file(target, args.add.read_bytes())
    page, figures = update((DOCS / PAGE).read_text(encoding="utf-8"), read_results())
    replace_file(DOCS / PAGE, page.encode())
    for name, figure in figures.items():
        replace_file(DOCS / RESULTS / f"{name}.svg", figure.encode())


if __name__ == "__main__":
    main()
