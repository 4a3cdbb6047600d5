import numpy as np
import pytest

from starcoder_jax.training.windows import overlapping_windows


@pytest.mark.parametrize("length", [1, 2, 7, 8, 40])
@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 33])
def test_every_target_counts_once_with_half_a_window_before_it(length, count):
    tokens = np.arange(1, count + 1, dtype=np.int32)
    stream = [0, *tokens.tolist(), 0]
    targets, start = [], 0
    for window in overlapping_windows(3, tokens, 0, length):
        assert window.file == 3 and window.tokens.dtype == np.int32
        assert 2 <= len(window.tokens) <= length + 1
        assert window.tokens.tolist() == stream[start : start + length + 1]
        places = range(start + 1 + window.first_target, start + len(window.tokens))
        assert start == 0 or all(place - start > (length - 1) / 2 for place in places)
        targets += places
        start += max(length // 2, 1)
    assert targets == list(range(1, len(stream)))
