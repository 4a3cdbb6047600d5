"""Pass@k, without bias, and how far it may be off."""

import math
from collections.abc import Sequence

import numpy as np


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The chance that of k samples drawn without replacement at least one passes.

    1 - C(n-c, k) / C(n, k): the unbiased estimate of pass@k from n >= k independent samples of
    which c passed (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Raises:
        ValueError: there are fewer than k samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} cannot be told from {num_samples} sample(s) of a problem: give --k of at "
            "least 1 and at most the number of samples"
        )
    if not 0 <= num_passed <= num_samples:
        raise ValueError(f"{num_passed} of {num_samples} samples cannot have passed")
    return 1 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over problems and its standard error, float64.

    The error is the sample standard deviation (n - 1) of the values over the square root of their
    number: the problems count as drawn at random from all that could have been set, so it covers
    the choice of problems as well as the luck of the samples. NaN for a single problem.
    """
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)
