"""The Jaccard similarity of candidates, from their sets of shingles."""

import numpy as np


def overlap(first: np.ndarray, second: np.ndarray) -> int:
    """How many elements two sets share, each given as distinct uint64."""
    # Sorting both together is quicker than looking one up in the other: numpy sorts in vectors.
    together = np.concatenate([first, second])
    together.sort()
    return int(np.count_nonzero(together[1:] == together[:-1]))


def similar(first: np.ndarray, second: np.ndarray, threshold: float) -> bool:
    """Whether |A and B| / |A or B| of two sets that are not both empty is at least `threshold`."""
    small, large = sorted((len(first), len(second)))
    if small < threshold * large:
        return False
    shared = overlap(first, second)
    return shared >= threshold * (small + large - shared)
