import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.stack.stages.dedup.jaccard import overlap, similar

SETS = st.sets(st.integers(0, 30) | st.integers(2**64 - 30, 2**64 - 1), min_size=1)


@given(SETS, SETS, st.sampled_from([0.1, 0.5, 0.7, 0.75, 1.0]))
def test_similarity_is_that_of_sets(first, second, threshold):
    arrays = [np.array(sorted(values), np.uint64) for values in (first, second)]
    assert overlap(*arrays) == len(first & second)
    assert similar(*arrays, threshold) == (len(first & second) >= threshold * len(first | second))


def test_exactly_the_threshold_is_similar():
    first, second = np.arange(8, dtype=np.uint64), np.arange(2, 10, dtype=np.uint64)
    assert similar(first, second, 0.6)
    assert not similar(first, second, 0.601)
