"""Candidates for near duplicates: documents that agree in all rows of some band of the signature.

Of two documents whose signatures agree in a share s of their places, b bands of r rows make
candidates with probability 1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", 3.4).
"""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from starcoder_jax.stack.stages.dedup.shingles import mixed

# A document of a bucket is compared with that many others at most, see `candidate_pairs`.
REPRESENTATIVES = 128
_FEWEST = 8
_BUCKET_PAIRS = REPRESENTATIVES << 10  # 1,024 documents have all their representatives
_PAIRS_AT_ONCE = 1 << 20
# Candidates are verified: one too many costs some microseconds, one too few a duplicate. For 0.7
# and 256 hashes that makes 32 bands of 8 rows.
FALSE_POSITIVE_WEIGHT = 0.1

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_POINTS = 2000  # of the integrals, between 0 and 1


@functools.cache
def optimal_bands(
    threshold: float, num_hashes: int, false_positive_weight: float = FALSE_POSITIVE_WEIGHT
) -> tuple[int, int]:
    """Bands and rows that separate best at a similarity, all similarities being equally likely.

    That is the least weighted sum of the pairs below the threshold that become candidates and of
    those above it that do not. With weights of one half, as BigCode had it, that is 25 bands of 10
    rows for 0.7 and 250 or 256 hashes.
    """
    steps = (np.arange(_POINTS) + 0.5) / _POINTS
    below, above = steps * threshold, threshold + steps * (1 - threshold)
    best = (np.inf, 0, 0)
    for bands in range(1, num_hashes + 1):
        rows = np.arange(1, num_hashes // bands + 1)[:, None]
        false_positives = (1 - (1 - below**rows) ** bands).mean(1) * threshold
        false_negatives = ((1 - above**rows) ** bands).mean(1) * (1 - threshold)
        errors = (
            false_positive_weight * false_positives + (1 - false_positive_weight) * false_negatives
        )
        best = min(best, (errors.min(), bands, int(errors.argmin()) + 1))
    return best[1:]


def band_keys(signatures: np.ndarray, kinds: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Keys of the buckets that documents fall into.

    Args:
        signatures: uint32 [n, k], with k at least bands times rows.
        kinds: uint64 [n]: documents of different kinds share no bucket.
        bands, rows: how the signature is cut up.

    Returns:
        uint64 [n, bands].
    """
    values = signatures[:, : bands * rows].reshape(-1, bands, rows)
    keys = mixed(mixed(kinds)[:, None] + np.arange(bands, dtype=np.uint64))
    for row in range(rows):
        keys = mixed(keys * _MULTIPLIER + values[:, :, row])
    return keys


def candidate_pairs(
    keys: np.ndarray,
    fingerprints: np.ndarray,
    ids: np.ndarray,
    representatives: int = REPRESENTATIVES,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which documents of the buckets are to be compared.

    Of those with the same fingerprint, which have the same shingles, all are compared with the
    first alone. These firsts are compared with one another, in the order of their fingerprints: of
    a small bucket all with all, of a larger one each with the first `representatives` alone, or
    with fewer when more than `_BUCKET_PAIRS` pairs would come of it, but `_FEWEST` at least. So the
    work does not grow with the square of a bucket, and what is compared does not depend on how
    documents are spread over shards. Lost is, in a bucket that large, a pair whose similarity shows
    neither in another bucket nor through documents that both are similar to; who represents is as
    good as drawn at random.

    Args:
        keys: uint64 [n], of the buckets.
        fingerprints: uint64 [n], of the shingles.
        ids: int64 [n], of the documents.
        representatives: of a bucket, at most.

    Yields:
        int64 [m] twice, the ids of some pairs, the representative first. A pair that meets in
        several buckets comes several times.
    """
    order = np.lexsort((ids, fingerprints, keys))
    keys, fingerprints, ids = keys[order], fingerprints[order], ids[order]
    new_bucket = changes(keys)
    first = new_bucket | changes(fingerprints)
    firsts = ids[first]
    yield firsts[(np.cumsum(first) - 1)[~first]], ids[~first]

    starts = np.flatnonzero(new_bucket[first])
    sizes = np.diff(starts, append=len(firsts))
    limits = np.clip(_BUCKET_PAIRS // sizes, _FEWEST, representatives)
    begins, limits = np.repeat(starts, sizes), np.repeat(limits, sizes)
    degrees = np.minimum(np.arange(len(firsts)) - begins, limits)
    stops = np.cumsum(degrees)
    cuts = np.searchsorted(stops, np.arange(0, stops[-1:].sum(), _PAIRS_AT_ONCE), side="right")
    for start, stop in itertools.pairwise([*cuts.tolist(), len(firsts)]):
        count = degrees[start:stop]
        later = np.repeat(np.arange(start, stop), count)
        within = np.arange(len(later)) - np.repeat(np.cumsum(count) - count, count)
        yield firsts[begins[later] + within], firsts[later]


def changes(values: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before it, bool [n]."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
