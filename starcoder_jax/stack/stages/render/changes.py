"""What differs between two versions of a file, in bounded time."""

import difflib
import re
from collections.abc import Iterator, Sequence

# From line, to line of the old version; from line, to line of the new one.
Change = tuple[int, int, int, int]

# Lines of both versions, multiplied. difflib takes seconds for the worst of so many; what is
# larger counts as one change.
_MAX_COMPARISONS = 500_000

_HEXADECIMAL = re.compile(r"\b(?:0[xX])?[0-9a-fA-F]{2,}\b")


def changes(old: Sequence[str], new: Sequence[str]) -> list[Change]:
    """The places where two versions differ, in ascending order."""
    start = _common(old, new)
    rest = min(len(old), len(new)) - start
    end = _common(list(reversed(old))[:rest], list(reversed(new))[:rest])
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    if not before and not after:
        return []
    if len(before) * len(after) > _MAX_COMPARISONS:
        return [(start, start + len(before), start, start + len(after))]
    matcher = difflib.SequenceMatcher(None, before, after)
    return [
        (start + i1, start + i2, start + j1, start + j2)
        for tag, i1, i2, j1, j2 in matcher.get_opcodes()
        if tag != "equal"
    ]


def hunks(
    old: Sequence[str], new: Sequence[str], found: Sequence[Change], context: int, skip: int
) -> Iterator[str]:
    """The changes with their context, as `diff -u` shows them.

    Args:
        old: lines of the old version.
        new: lines of the new version.
        found: their `changes`.
        context: number of unchanged lines around them.
        skip: lines of the old version that are not shown, and not counted in the headers.

    Yields:
        Each header and its lines, without a line feed at the end.
    """
    groups: list[list[Change]] = []
    for change in found:
        if groups and change[0] - groups[-1][-1][1] <= 2 * context:
            groups[-1].append(change)
        else:
            groups.append([change])
    for group in groups:
        before = min(context, group[0][0] - skip)
        after = min(context, len(old) - group[-1][1])
        i, j = group[0][0] - before, group[0][2] - before
        stop = group[-1][1] + after
        size = group[-1][3] + after - j
        shown = [f"@@ -{i - skip + 1},{stop - i} +{j - skip + 1},{size} @@"]
        for i1, i2, j1, j2 in group:
            shown += [f" {line}" for line in old[i:i1]]
            shown += [f"-{line}" for line in old[i1:i2]]
            shown += [f"+{line}" for line in new[j1:j2]]
            i = i2
        shown += [f" {line}" for line in old[i:stop]]
        yield "\n".join(shown)


def hexadecimal_fraction(text: str) -> float:
    """The share of a text's characters that stand in words of hexadecimal digits."""
    found = sum(match.end() - match.start() for match in _HEXADECIMAL.finditer(text))
    return found / max(1, len(text))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many lines both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
