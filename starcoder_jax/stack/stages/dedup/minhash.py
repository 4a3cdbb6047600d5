"""MinHash signatures by one permutation: of a document's shingles, the least in each of k bins.

One pass over the shingles fills all bins (Li, Owen and Zhang, 2012), where k permutations take k
passes. A bin that no shingle falls into is filled from another one, by optimal densification
(Shrivastava, 2017): it asks the others in an order of its own, the same for every document, until
one has a value. Filling from the next bin that has one (rotation) would repeat one value many times
over and make small documents look alike.
"""

import functools

import numpy as np

from starcoder_jax.stack.stages.dedup.shingles import mixed

EMPTY = np.uint32(0xFFFFFFFF)


def signatures(hashes: np.ndarray, offsets: np.ndarray, num_hashes: int) -> np.ndarray:
    """Sketches documents by the least shingle of each bin.

    Args:
        hashes: uint64, of the shingles of n documents (`shingles.shingle_hashes`).
        offsets: int64 [n + 1], where each document's begin and end.
        num_hashes: k, how many bins there are, less than 2^32.

    Returns:
        uint32 [n, k], `EMPTY` where no shingle falls; to be densified.
    """
    sketch = np.full((len(offsets) - 1) * num_hashes, EMPTY)
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # The upper half of a hash chooses the bin, without a division; the lower half is its value.
    bins = ((hashes >> np.uint64(32)) * np.uint64(num_hashes)) >> np.uint64(32)
    np.minimum.at(sketch, document * num_hashes + bins.astype(np.int64), hashes.astype(np.uint32))
    return sketch.reshape(-1, num_hashes)


def densified(sketch: np.ndarray) -> np.ndarray:
    """Fills the empty bins of `signatures`, uint32 [n, k]; rows without any value stay empty.

    Two documents of Jaccard similarity J then agree in a bin with probability J.
    """
    num_hashes = sketch.shape[1]
    filled = sketch.copy()
    rows, bins = np.nonzero(sketch == EMPTY)
    for sources in _probes(num_hashes):
        if len(rows) == 0:
            break
        values = sketch[rows, sources[bins]]
        found = values != EMPTY
        filled[rows[found], bins[found]] = values[found]
        rows, bins = rows[~found], bins[~found]
    return filled


@functools.cache
def _probes(num_hashes: int) -> np.ndarray:
    """[k, k]: row t holds for every bin which one it asks t-th; a column is a permutation."""
    draws = mixed(np.arange(1, num_hashes**2 + 1, dtype=np.uint64)).reshape(num_hashes, num_hashes)
    return np.argsort(draws, axis=0, kind="stable")
