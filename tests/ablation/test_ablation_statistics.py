import math

import numpy as np
import pytest
from scipy import stats

from starcoder_jax.ablation.statistics import in_words, paired_difference, spread


def by_seed(values):
    return dict(enumerate(values))


def test_spread_is_of_the_finite_values():
    found = spread([1.0, math.nan, 3.0, math.inf])
    assert (found.count, found.mean) == (2, 2.0)
    assert found.deviation == pytest.approx(math.sqrt(2))
    assert spread([5.0]).deviation is None
    assert spread([math.nan]) is None and spread([]) is None


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_a_paired_t_test(count, confidence):
    rng = np.random.default_rng(count)
    first = rng.normal(3, 1, count).tolist()
    arm = (np.array(first) + rng.normal(0.1, 0.05, count)).tolist()
    found = paired_difference(by_seed(arm), by_seed(first), confidence)
    expected = stats.ttest_rel(arm, first).confidence_interval(confidence)
    assert found.count == count
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(arm) - np.mean(first))
    assert found.share == pytest.approx(found.mean / np.mean(first))


def test_pairing_takes_out_what_seeds_share():
    first = [1.0, 2.0, 3.0, 4.0]
    arm = [1.11, 2.09, 3.10, 4.10]
    paired = paired_difference(by_seed(arm), by_seed(first), 0.95)
    assert paired.is_seen and paired.low > 0.08
    crossed = paired_difference(by_seed(arm[::-1]), by_seed(first), 0.95)
    assert crossed.mean == pytest.approx(paired.mean) and not crossed.is_seen


def test_seeds_are_matched_by_name_and_only_whole_pairs_count():
    found = paired_difference({7: 5.0, 3: math.nan, 2: 1.0, 9: 8.0}, {2: 0.5, 3: 1.0, 7: 4.0}, 0.9)
    assert found.count == 2 and found.mean == pytest.approx(0.75)
    assert found.share == pytest.approx(0.75 / 2.25)
    assert paired_difference({1: 2.0}, {2: 2.0}, 0.9) is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        first = rng.normal(0, 3, 3)
        arm = first + rng.normal(0.5, 1, 3)
        found = paired_difference(by_seed(arm.tolist()), by_seed(first.tolist()), 0.8)
        hits += found.low <= 0.5 <= found.high
    assert 760 < hits < 840  # three standard deviations about 800


@pytest.mark.parametrize(
    ("arm", "first", "words"),
    [
        ([1.2, 1.1, 1.3], [1.0, 0.9, 1.09], "higher by 0.203, 20.4% (95 % interval +0.189 to +0."),
        ([0.8, 0.7, 0.9], [1.0, 0.9, 1.09], "lower by 0.197, 19.7% (95 % interval -0.211 to -0."),
        ([1.2, 0.8], [1.0, 1.0], "no difference seen at this scale (95 % interval -2.54 to +2.54)"),
        ([2.0, 3.0], [2.0, 3.0], "the same in all 2 seeds"),
        ([2.5, 3.5], [2.0, 3.0], "higher by 0.5, 20.0% (95 % interval +0.5 to +0.5)"),
        ([0.5, 0.5], [0.0, 0.0], "higher by 0.5 (95 % interval +0.5 to +0.5)"),
        ([2.0], [3.0], "-1 in the one seed there is, which says nothing of chance"),
        ([], [3.0], "cannot be compared: no seed has both values"),
    ],
)
def test_in_words(arm, first, words):
    found = in_words(paired_difference(by_seed(arm), by_seed(first), 0.95), 0.95)
    assert found.startswith(words)
    assert found.endswith((")", "chance", "seeds", "values"))


def test_the_level_is_named_as_it_is():
    difference = paired_difference({0: 1.0, 1: 2.0}, {0: 3.0, 1: 0.0}, 0.995)
    assert "(99.5 % interval" in in_words(difference, 0.995)
