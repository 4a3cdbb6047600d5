import difflib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.stack.stages.render.changes import changes, hexadecimal_fraction, hunks

LINES = st.lists(st.sampled_from(["a", "b", "c", "", "d e"]), max_size=30)


def _patched(old, found_hunks):
    """What old becomes by hunks whose line numbers count from its beginning."""
    new, at = [], 0
    for hunk in found_hunks:
        header, *lines = hunk.split("\n")
        start, size = map(int, header.split(" ")[1][1:].split(","))
        new += old[at : start - 1]
        shown = [line[1:] for line in lines if line[0] in " -"]
        assert shown == old[start - 1 : start - 1 + size]
        new += [line[1:] for line in lines if line[0] in " +"]
        assert f"+{len(new) - sum(line[0] in ' +' for line in lines) + 1}," in header
        at = start - 1 + size
    return new + old[at:]


@given(LINES, LINES, st.integers(0, 9))
def test_hunks_turn_the_old_version_into_the_new(old, new, context):
    found = changes(old, new)
    assert _patched(old, hunks(old, new, found, context, skip=0)) == new


@given(LINES, LINES)
def test_changes_are_ascending_and_nothing_else_differs(old, new):
    at_old = at_new = 0
    for i1, i2, j1, j2 in changes(old, new):
        assert old[at_old:i1] == new[at_new:j1]
        assert (i1, j1) < (i2, j2)
        at_old, at_new = i2, j2
    assert old[at_old:] == new[at_new:]


def test_hunks_are_those_of_diff():
    old = [f"line {n}" for n in range(40)]
    new = [*old[:10], "new", *old[11:30], *old[32:]]
    shown = [line for hunk in hunks(old, new, changes(old, new), 3, 0) for line in hunk.split("\n")]
    expected = list(difflib.unified_diff(old, new, n=3, lineterm=""))[2:]
    assert shown == expected


def test_lines_that_are_not_shown_are_not_counted():
    old = [f"line {n}" for n in range(10)]
    new = [*old[:5], "new", *old[6:]]
    assert list(hunks(old, new, changes(old, new), 3, skip=4)) == [
        "@@ -1,5 +1,5 @@\n line 4\n-line 5\n+new\n line 6\n line 7\n line 8"
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["x"] * 50_000, ["y"] * 50_000),
        (["a"] * 100_000, ["a"] * 99_999),
        (["a", "b"] * 350, ["b", "a", "c"] * 230),
        ([str(n % 101) for n in range(700)], [str(n * 7 % 101) for n in range(700)]),
        (["a"] * 199 + ["b"], ["b"] + ["a"] * 198),
    ],
)
def test_time_is_bounded(old, new):
    start = time.monotonic()
    found = changes(old, new)
    assert time.monotonic() - start < 5
    assert found


def test_hexadecimal_fraction():
    assert hexadecimal_fraction("0x1f, 0x2e, ") == pytest.approx(8 / 12)
    assert hexadecimal_fraction("deadbeef") == 1
    assert hexadecimal_fraction("x = g(y)") == 0
    assert hexadecimal_fraction("") == 0
