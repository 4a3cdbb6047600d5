import itertools
import math
import statistics

import pytest

from starcoder_jax.evals.passk import mean_and_error, pass_at_k


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_pass(num_samples):
    for num_passed, k in itertools.product(range(num_samples + 1), range(1, num_samples + 1)):
        draws = list(itertools.combinations(range(num_samples), k))
        good = sum(any(index < num_passed for index in draw) for draw in draws)
        assert pass_at_k(num_samples, num_passed, k) == pytest.approx(good / len(draws))


def test_pass_at_k_of_many_samples_is_exact():
    # The product of the paper's listing, in exact arithmetic for 200 samples.
    product = math.prod(1 - 100 / i for i in range(200 - 13 + 1, 201))
    assert pass_at_k(200, 13, 100) == pytest.approx(1 - product, rel=1e-12)


@pytest.mark.parametrize(("num_samples", "k"), [(1, 2), (10, 11), (3, 0), (0, 1)])
def test_too_few_samples_are_refused(num_samples, k):
    with pytest.raises(ValueError, match=f"pass@{k} cannot be told from {num_samples} sample"):
        pass_at_k(num_samples, 0, k)


def test_more_passes_than_samples_are_refused():
    with pytest.raises(ValueError, match="5 of 3"):
        pass_at_k(3, 5, 1)


def test_the_error_is_that_of_a_mean():
    values = [0.0, 1.0, 1.0, 0.25, 0.5]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    assert mean_and_error([0.5])[0] == 0.5 and math.isnan(mean_and_error([0.5])[1])
