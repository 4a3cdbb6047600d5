import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.stack.stages.dedup.components import Forest, components

EDGES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=30) | st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=30
)


def groups(edges):
    """Each id's component, by relabeling until nothing changes."""
    labels = {id_: id_ for edge in edges for id_ in edge}
    changed = True
    while changed:
        changed = False
        for first, second in edges:
            least = min(labels[first], labels[second])
            changed |= (labels[first], labels[second]) != (least, least)
            labels[first] = labels[second] = least
    return labels


@given(EDGES)
def test_components_are_labeled_by_their_least_id(edges):
    first, second = np.array(edges, np.int64).reshape(-1, 2).T
    ids, labels = components(first, second)
    assert dict(zip(ids.tolist(), labels.tolist(), strict=True)) == groups(edges)
    assert (np.diff(ids) > 0).all()


@given(EDGES)
def test_forest_finds_the_same(edges):
    labels = groups(edges)
    forest = Forest()
    for first, second in edges:
        forest.link(first, second)
        assert forest.linked(first, second)
    for first in labels:
        for second in labels:
            assert forest.linked(first, second) == (labels[first] == labels[second])


def test_a_long_path_is_one_component():
    ends = np.random.default_rng(0).permutation(100_000)
    ids, labels = components(ends[:-1], ends[1:])
    assert len(ids) == 100_000 and not labels.any()
    forest = Forest()
    for first, second in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        forest.link(first, second)
    assert forest.linked(int(ends[0]), int(ends[-1]))
