"""Curves of several arms, and intervals of their differences, as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from starcoder_jax.pages import format_number
from starcoder_jax.training.report_charts import round_ticks

# The SVG's view box, which the page scales to the width at hand, and the plot's edges in it.
_WIDTH, _HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 462, 10, 194
_ROW = 26  # height of an arm among the intervals
_NAMES = 152  # width of the arms' names there
_LONGEST_NAME = 21  # characters that fit into it

# Distinct for the color-blind (Okabe and Ito), and by lightness on both pages; then they repeat.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")


Curve = Sequence[tuple[float, float]]


def curves_chart(title: str, note: str, arms: Mapping[str, Sequence[Curve]]) -> str:
    """Curves of all arms: a thin line for each seed, a thick one for their mean, as a figure.

    Args:
        title: plain text, as `note` below it; escaped here.
        note: what the curves go over.
        arms: of each, the curves of its seeds, none of them empty and all values finite. An arm
            without any has a legend alone.

    Returns:
        Nothing, if no arm has a curve.
    """
    points = [point for curves in arms.values() for curve in curves for point in curve]
    if not points:
        return ""
    right = max(place for place, _ in points)
    values = [value for _, value in points]
    ticks = _ticks(min(values), max(values))

    def x(place: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * place / right, 1)

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(_BOTTOM - (_BOTTOM - _TOP) * share, 1)

    shapes = []
    for tick in ticks:
        label = format_number(tick, 6)
        shapes.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_RIGHT}"/>')
        shapes.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4}" class="end">{label}</text>')
    for tick in round_ticks(0, right):
        if tick <= right:
            label = format_number(tick, 6)
            shapes.append(f'<text x="{x(tick)}" y="{_HEIGHT - 8}" class="mid">{label}</text>')
    for number, (arm, curves) in enumerate(arms.items()):
        color = COLORS[number % len(COLORS)]
        lines = [(curve, "opacity:.35;stroke-width:1") for curve in curves]
        lines += [(_mean(curves), "stroke-width:2.5")] if len(curves) > 1 else []
        for curve, style in lines:
            if not curve:
                continue  # the mean of curves that have no place in common
            last = format_number(curve[-1][1], 5)
            places = " ".join(f"{x(place)},{y(value)}" for place, value in curve)
            shapes.append(
                f'<polyline points="{places}" style="stroke:{color};{style}">'
                f"<title>{escape(arm)}: {last} in the end</title></polyline>"
            )
    legend = "".join(
        f'<li><span style="background:{COLORS[number % len(COLORS)]}"></span>{escape(arm)}</li>'
        for number, arm in enumerate(arms)
    )
    return _figure(title, note, _HEIGHT, shapes) + f'<ul class="legend">{legend}</ul></figure>'


def intervals_chart(
    title: str, note: str, rows: Sequence[tuple[str, Sequence[float], Mapping[str, float]]]
) -> str:
    """Differences to the first arm: a dot for each seed, mean and interval above, as a figure.

    Args:
        title: plain text, as `note` below it; escaped here.
        note: what the zero line is.
        rows: arm, its differences by seed, and their `mean`, `low` and `high` (None: no interval).
    """
    ends = [0.0]
    for _, differences, about in rows:
        ends += [*differences, *(v for v in (about["low"], about["high"]) if v is not None)]
    ticks = _ticks(min(ends), max(ends))
    bottom = _TOP + _ROW * len(rows)

    def x(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return round(_NAMES + (_RIGHT - _NAMES) * share, 1)

    shapes = []
    for tick in ticks:
        style = ' style="stroke:var(--quiet)"' if abs(tick) < 1e-12 else ""
        shapes.append(f'<path class="grid"{style} d="M{x(tick)} {_TOP}V{bottom}"/>')
        label = format_number(tick, 6) if tick else "0"
        shapes.append(f'<text x="{x(tick)}" y="{bottom + 16}" class="mid">{label}</text>')
    for number, (arm, differences, about) in enumerate(rows):
        color = COLORS[(number + 1) % len(COLORS)]  # the first arm has the first
        middle = _TOP + _ROW * number + _ROW / 2
        name = arm if len(arm) <= _LONGEST_NAME else f"{arm[: _LONGEST_NAME - 1]}…"
        shapes.append(f'<text x="{_NAMES - 8}" y="{middle + 4}" class="end">{escape(name)}</text>')
        for value in differences:
            shapes.append(
                f'<circle cx="{x(value)}" cy="{middle + 6}" r="2.5" '
                f'style="fill:{color};opacity:.5"><title>{format_number(value, 4)}</title></circle>'
            )
        if about["low"] is not None:
            shapes.append(
                f'<path d="M{x(about["low"])} {middle - 3}H{x(about["high"])}" '
                f'style="stroke:{color};stroke-width:2.5"/>'
            )
        shapes.append(
            f'<circle cx="{x(about["mean"])}" cy="{middle - 3}" r="4" style="fill:{color}">'
            f"<title>{escape(arm)}: mean {format_number(about['mean'], 4)}</title></circle>"
        )
    return _figure(title, note, bottom + 24, shapes) + "</figure>"


def _figure(title: str, note: str, height: float, shapes: Sequence[str]) -> str:
    """A figure that is left open."""
    return (
        f'<figure class="card"><figcaption>{escape(title)}<span class="quiet">{escape(note)}</span>'
        f'</figcaption><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(shapes)}</svg>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round values that enclose both, which may be the same."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    return round_ticks(low, high)


def _mean(curves: Sequence[Curve]) -> Curve:
    """Of the values where all curves have one."""
    values = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*map(set, values)))
    return [(place, math.fsum(curve[place] for curve in values) / len(curves)) for place in shared]
