import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.model.mask import AttentionMask

LENGTH = 12


def dense_mask(window, segment_ids):
    """The definition, element by element: bool [batch, length, length]."""
    segment_ids = np.zeros((1, LENGTH)) if segment_ids is None else np.asarray(segment_ids)
    visible = np.zeros((len(segment_ids), LENGTH, LENGTH), bool)
    for row, query, key in np.ndindex(visible.shape):
        visible[row, query, key] = (
            key <= query
            and (window is None or query - key < window)
            and segment_ids[row, query] == segment_ids[row, key]
        )
    return visible


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4, LENGTH, 100])
def test_every_rectangle_is_cut_from_the_whole_mask(window, segmented):
    segment_ids = jnp.array([[0] * 5 + [1] * 7, [3] * 2 + [4] * 9 + [5]]) if segmented else None
    mask = AttentionMask(window=window, segment_ids=segment_ids)
    expected = dense_mask(window, segment_ids)
    cuts = [0, 4, 8, LENGTH]
    ranges = [slice(*pair) for pair in itertools.combinations(cuts, 2)]
    for queries, keys in itertools.product(ranges, ranges):
        cut = expected[:, queries, keys]
        block = mask.block(queries, keys)
        if block is None:
            assert cut.all(), (queries, keys)
        else:
            np.testing.assert_array_equal(np.broadcast_to(block, cut.shape), cut)


def test_nothing_is_masked_where_everything_is_visible():
    assert AttentionMask().block(slice(8, 12), slice(0, 9)) is None
    assert AttentionMask(window=9).block(slice(8, 12), slice(2, 9)) is not None
    assert AttentionMask(window=9).block(slice(8, 12), slice(3, 9)) is None


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_first_visible_is_the_first_key_of_the_query(window):
    mask = AttentionMask(window=window)
    for query, row in enumerate(dense_mask(window, None)[0]):
        assert mask.first_visible(query) == np.flatnonzero(row)[0]
