"""Where in a text something personal or secret stands."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

# What StarCoder's annotators told apart; the order settles what the union of spans is taken for.
TYPES = ("KEY", "PASSWORD", "EMAIL", "NAME", "IP_ADDRESS")

# Also told apart by StarPII, and left as they are. `render` replaces the names of users.
IGNORED_TYPES = ("USERNAME", "EMAIL_EXAMPLE", "AMBIGUOUS")


class Span(NamedTuple):
    """The characters [start, stop) of a text, and one of `TYPES` or `IGNORED_TYPES`."""

    start: int
    stop: int
    type: str


# Spans of a text in ascending order; those of one detector do not overlap. Pure.
Detector = Callable[[str], list[Span]]


def union(spans: Iterable[Span]) -> list[Span]:
    """Spans in ascending order; those that overlap become one, so that nothing of them is left."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start < merged[-1].stop:
            last = merged[-1]
            of = min(last.type, span.type, key=TYPES.index)
            merged[-1] = Span(last.start, max(last.stop, span.stop), of)
        else:
            merged.append(span)
    return merged
