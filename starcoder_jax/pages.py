"""What reports share: numbers for people, and how a page looks."""

import math
from collections.abc import Iterable


def format_number(value: float, digits: int = 4) -> str:
    """A number for people: 5.123, 12.35k, 1.2G, 3e-4, NaN.

    Args:
      value: any float.
      digits: significant digits, at least 3.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    # Rounded first, so that 999.96 at four digits is 1k and not 1000.
    value = float(f"{value:.{digits}g}")
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if -3 <= exponent < 3:
        return f"{value:.{digits}g}"
    if 3 <= exponent < 15:
        thousands = exponent // 3
        return f"{value / 1000**thousands:.{digits}g}{'kMGT'[thousands - 1]}"
    return f"{value / 10.0**exponent:.{digits}g}e{exponent}"


def format_duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min, 2 h 5 min, 3 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="table card"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --quiet: #647084;
  --line: #e1e5eb; --curve: #2667b8; --good: #1c7a45; --bad: #b3372f; --mark: #d3e8ff; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --text: #e3e8ef;
  --quiet: #93a0b4; --line: #2c3541; --curve: #6eaef5; --good: #62c78c; --bad: #f0837b;
  --mark: #1f4470; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline;
  gap: 0 1rem; }
header p { margin: 0; }
h1 { margin: 0; font-size: 1.6rem; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; }
.quiet { color: var(--quiet); font-size: .875rem; }
.card, pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.figures { display: grid; gap: .75rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }
.figures .card { padding: .7rem 1rem; display: flex; flex-direction: column; }
.figures b { font-size: 1.7rem; line-height: 1.3; font-weight: 600; }
.charts { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
figure { margin: 0; padding: .7rem .6rem .3rem; }
figcaption { display: flex; justify-content: space-between; gap: 1rem; padding: 0 .4rem; }
.warning { margin: 0; padding: 0 .4rem; color: var(--bad); font-size: .875rem; }
svg { display: block; width: 100%; font-size: 12px; fill: var(--quiet); }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.grid { stroke: var(--line); }
polyline { fill: none; stroke: var(--curve); stroke-width: 1.75; stroke-linejoin: round; }
.dot, g circle { fill: var(--curve); } .bad { stroke: var(--bad); stroke-width: 1.5; }
rect { fill: transparent; } g circle { opacity: 0; } g:hover circle { opacity: 1; }
.bar { display: flex; height: 1.6rem; margin: .5rem .4rem; border-radius: 4px; overflow: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; margin: 0 .4rem .4rem; padding: 0;
  list-style: none; font-size: .875rem; }
.legend span { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem;
  border-radius: 2px; }
.part0 { background: #2f9e62; } .part1 { background: #8d6e63; } .part2 { background: #90a4ae; }
.part3 { background: #5c6bc0; } .part4 { background: #26a6b9; } .part5 { background: #f2b134; }
.part6 { background: #ab6bc4; } .part7 { background: #e2703a; } .part8 { background: #c8443c; }
.table { max-height: 34rem; overflow: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem; text-align: right; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { position: sticky; top: 0; background: var(--card); }
tfoot td { position: sticky; bottom: 0; background: var(--card); font-weight: 600; border: 0;
  border-top: 1px solid var(--line); }
.better { color: var(--good); } .worse { color: var(--bad); }
code, pre { font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
pre { margin: .5rem 0; padding: .8rem 1rem; overflow: auto; tab-size: 4; max-height: 40rem; }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
pre i { color: var(--quiet); }
summary { cursor: pointer; }
.command { user-select: all; white-space: pre-wrap; }
@media (max-width: 30rem) { th, td { padding: .3rem .4rem; } table { font-size: .8rem; }
  th:nth-child(2), td:nth-child(2) { display: none; } svg { font-size: 15px; } }
"""
