"""Line charts as inline SVG and a stacked bar, for the report of a run."""

import itertools
import math
from collections.abc import Sequence
from html import escape

from starcoder_jax.pages import format_duration, format_number

# The SVG's view box, which the page scales to the width at hand, and the plot's edges in it.
_WIDTH, _HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 462, 10, 194

# Points drawn at most, but for one a bucket that marks a value that is not finite.
MAX_POINTS = 200


def line_chart(title: str, points: Sequence[tuple[int, float]], last_step: int) -> str:
    """One curve over steps 0 to `last_step`, as an HTML figure.

    Hovering shows step and value. Where a value is not finite the line is broken and a vertical
    mark stands in its place.

    Args:
      title: plain text, escaped here.
      points: (step, value), by ascending step; at least one.
      last_step: the right end of the axis, so that the charts of a page share it.
    """
    finite = [value for _, value in points if math.isfinite(value)]
    ticks = round_ticks(*_value_range(finite))
    low, high = ticks[0], ticks[-1]
    last_step = max(last_step, 1)

    def x(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / last_step, 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low), 1)

    shapes = []
    for tick in ticks:
        label = format_number(tick, 6)
        shapes.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_RIGHT}"/>')
        shapes.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4}" class="end">{label}</text>')
    for tick in round_ticks(0, last_step):
        if tick <= last_step and tick == int(tick):
            label = format_number(tick, 6)
            shapes.append(f'<text x="{x(tick)}" y="{_HEIGHT - 8}" class="mid">{label}</text>')

    drawn = downsample(points, MAX_POINTS)
    for is_finite, run in itertools.groupby(drawn, lambda point: math.isfinite(point[1])):
        places = [(x(step), y(value)) for step, value in run] if is_finite else []
        if len(places) == 1:
            shapes.append('<circle class="dot" cx="{}" cy="{}" r="3"/>'.format(*places[0]))
        elif places:
            line = " ".join(f"{across},{up}" for across, up in places)
            shapes.append(f'<polyline points="{line}"/>')

    # Each point answers to the pointer over a full-height strip, halfway to its neighbours.
    edges = [_LEFT, *(x((a[0] + b[0]) / 2) for a, b in itertools.pairwise(drawn)), _RIGHT]
    for (step, value), (start, stop) in zip(drawn, itertools.pairwise(edges), strict=True):
        if math.isfinite(value):
            mark = f'<circle cx="{x(step)}" cy="{y(value)}" r="3.5"/>'
        else:
            mark = f'<path class="bad" d="M{x(step)} {_TOP}V{_BOTTOM}"/>'
        shapes.append(
            f"<g><title>step {step:,}: {format_number(value, 5)}</title><rect "
            f'x="{start}" y="{_TOP}" width="{stop - start:.1f}" height="{_BOTTOM - _TOP}"/>'
            f"{mark}</g>"
        )

    note = ""
    if len(finite) < len(points):
        first = next(step for step, value in points if not math.isfinite(value))
        count = len(points) - len(finite)
        note = f'<p class="warning">{count:,} not finite, the first at step {first:,}</p>'
    return (
        f'<figure class="card"><figcaption>{escape(title)}'
        f"<b>{format_number(points[-1][1])}</b></figcaption>{note}"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(shapes)}</svg></figure>"
    )


def stacked_bar(title: str, parts: Sequence[tuple[str, float]]) -> str:
    """Shares of a time as one bar with its legend, as an HTML figure.

    Args:
      title: plain text, escaped here.
      parts: (name, seconds); those of zero are not drawn. A part has its colour by its place here.
    """
    total = math.fsum(seconds for _, seconds in parts)
    pieces, legend = [], []
    for number, (name, seconds) in enumerate(parts):
        if seconds <= 0:
            continue
        text = f"{escape(name)} {seconds / total:.1%} ({format_duration(seconds)})"
        share = f"{100 * seconds / total:.4f}"
        pieces.append(f'<span class="part{number}" style="width:{share}%" title="{text}"></span>')
        legend.append(f'<li><span class="part{number}"></span>{text}</li>')
    return (
        f'<figure class="card"><figcaption>{escape(title)}<b>{format_duration(total)}</b>'
        f'</figcaption><div class="bar">{"".join(pieces)}</div>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )


def round_ticks(low: float, high: float) -> list[float]:
    """Four to seven multiples of 1, 2 or 5 times a power of ten that enclose [low, high]."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def downsample(points: Sequence[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """At most `limit` finite points that keep each spike: the extremes of equal runs of points.

    A run that holds a value that is not finite also keeps the first such value. The first and
    the last point always stay. Up to `limit` points come back as they are.
    """
    if len(points) <= limit:
        return list(points)
    buckets = limit // 2 - 1
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        run = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        finite = [index for index in run if math.isfinite(points[index][1])]
        if finite:
            kept.add(min(finite, key=lambda index: points[index][1]))
            kept.add(max(finite, key=lambda index: points[index][1]))
        if len(finite) < len(run):
            kept.add(next(index for index in run if not math.isfinite(points[index][1])))
    return [points[index] for index in sorted(kept)]


def _value_range(values: Sequence[float]) -> tuple[float, float]:
    """The range the axis must show; never empty, and from zero where that costs little."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if 0 <= low < high / 2:
        low = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    return low, high
