import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.stack.record import records
from starcoder_jax.stack.stages.dedup.keep import PREFERENCES, contestants, losers


def compete(rows, keys=None, keep=tuple(PREFERENCES)):
    """Who is dropped, by path, and for whom."""
    table = records(
        [{"kind": "file", "repository": "o/r", "path": f"{i}", **row} for i, row in enumerate(rows)]
    )
    keys = pa.array(keys or [1] * len(rows), pa.int64())
    result = losers(contestants(table, keys, np.arange(len(rows))), keep).table
    paths = table["path"].to_pylist()
    return {
        paths[row["id"]]: row["detail"] for row in sorted(result.to_pylist(), key=lambda r: r["id"])
    }


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"license_type": "permissive"}, {"license_type": "no_license"} | {"stars": 10**6}),
        ({"license_type": "no_license"}, {"license_type": "non_permissive", "stars": 5}),
        ({"license_type": "non_permissive"}, {"stars": 5}),
        ({"stars": 3, "forks": 0}, {"stars": 2, "forks": 99}),
        ({"stars": 0}, {"stars": None, "forks": 99}),
        ({"forks": 3, "timestamp": 0}, {"forks": 2, "timestamp": 10**9}),
        ({"timestamp": 2_000_000_000}, {"timestamp": 1_000_000_000}),
        ({"timestamp": -5}, {"timestamp": None}),
        ({"repository": "a/b", "path": "z"}, {"repository": "a/c", "path": "a"}),
        ({"path": "B"}, {"path": "a"}),
        ({"path": "a"}, {"path": "a/b"}),
    ],
)
def test_order_of_preference(better, worse):
    # By their paths alone, the worse one would stay.
    better = {"repository": "o/r", "path": "z", **better}
    worse = {"repository": "o/r", "path": "x", **worse}
    name = f"{better['repository']}: {better['path']}"
    for rows in ([better, worse], [worse, better], [worse, better, worse]):
        dropped = compete(rows)
        assert set(dropped.values()) == {name}
        assert set(dropped) == {worse["path"]}


def test_the_order_can_be_changed():
    rows = [{"stars": 5, "timestamp": 1}, {"stars": 1, "timestamp": 2}]
    assert compete(rows) == {"1": "o/r: 0"}
    assert compete(rows, keep=("timestamp", "stars")) == {"0": "o/r: 1"}
    assert compete(rows[::-1], keep=()) == {"1": "o/r: 0"}


def test_only_rows_of_the_same_key_compete():
    rows = [{"stars": stars} for stars in (1, 2, 3, 4, 5)]
    assert compete(rows, keys=[7, 8, 7, 9, 8]) == {"0": "o/r: 2", "1": "o/r: 4"}


def test_a_row_without_a_path_is_named_by_its_repository():
    assert compete([{"path": None, "stars": 2}, {"path": "x"}]) == {"x": "o/r"}


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "license_type": st.sampled_from(["permissive", "no_license", None]),
                "stars": st.none() | st.integers(0, 2),
                "timestamp": st.none() | st.integers(0, 2),
                "repository": st.sampled_from(["a/a", "b/b"]),
            }
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_who_stays_does_not_depend_on_the_order_of_rows(rows, random):
    rows = [{"path": f"file {number}", **row} for number, row in enumerate(rows)]
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert compete(shuffled) == pytest.approx(compete(rows))
    assert len(compete(rows)) == len(rows) - 1


def test_nobody_competes():
    assert compete([{}]) == {}
    assert (
        len(
            losers(
                contestants(records([]), pa.array([], pa.int64()), np.empty(0, np.int64)), ()
            ).table
        )
        == 0
    )
