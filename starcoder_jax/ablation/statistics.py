"""What several seeds say of the difference between two arms."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

from starcoder_jax.pages import format_number


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of the values of an arm.

    Attributes:
        count: finite values.
        mean: of them.
        deviation: their sample standard deviation; None of fewer than two.
    """

    count: int
    mean: float
    deviation: float | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """Between an arm and the first one, over the seeds that both have.

    Attributes:
        count: pairs.
        mean: of the differences, arm minus first arm.
        low, high: the confidence interval of `mean`; None of fewer than two pairs.
        share: `mean` as a share of the first arm's mean; None where that is 0.
    """

    count: int
    mean: float
    low: float | None
    high: float | None
    share: float | None

    @property
    def is_seen(self) -> bool:
        """Whether there is an interval, and zero is not in it."""
        return self.low is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation of the values that are finite; None if none is."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    deviation = statistics.stdev(finite) if len(finite) > 1 else None
    return Spread(len(finite), statistics.fmean(finite), deviation)


def paired_difference(
    arm: Mapping[int, float], first: Mapping[int, float], confidence: float
) -> Difference | None:
    """The difference by seed, with Student's t interval of its mean.

    The interval of a paired t test: it takes the differences as independent and normal.

    Args:
        arm, first: value by seed. Seeds that either lacks, or where one is not finite, are left
            out.
        confidence: of the interval, between 0 and 1.

    Returns:
        None if no pair is left.
    """
    seeds = [
        seed
        for seed, value in arm.items()
        if math.isfinite(value) and math.isfinite(first.get(seed, math.nan))
    ]
    if not seeds:
        return None
    differences = [arm[seed] - first[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    scale = statistics.fmean([first[seed] for seed in seeds])
    low = high = None
    if len(seeds) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(seeds))
        half = float(stats.t.ppf((1 + confidence) / 2, len(seeds) - 1)) * error
        low, high = mean - half, mean + half
    return Difference(len(seeds), mean, low, high, mean / abs(scale) if scale else None)


def in_words(difference: Difference | None, confidence: float) -> str:
    """What may be said of a difference."""
    if difference is None:
        return "cannot be compared: no seed has both values"
    mean, share = difference.mean, difference.share
    if difference.low is None:
        return f"{signed(mean)} in the one seed there is, which says nothing of chance"
    if difference.low == difference.high == 0:
        return f"the same in all {difference.count} seeds"
    level = f"{round(100 * confidence, 6):g} %"
    interval = f"{level} interval {signed(difference.low)} to {signed(difference.high)}"
    if not difference.is_seen:
        return f"no difference seen at this scale ({interval})"
    size = format_number(abs(mean), 3)
    relative = f", {abs(share):.1%}" if share else ""
    return f"{'higher' if mean > 0 else 'lower'} by {size}{relative} ({interval})"


def signed(value: float) -> str:
    """A difference for people."""
    return f"{'-' if value < 0 else '+'}{format_number(abs(value), 3)}" if value else "0"
