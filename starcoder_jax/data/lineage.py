"""Which training steps saw a document: the way back from documents to the rows of a run."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from grain.experimental import index_shuffle

from starcoder_jax.data.loader import Interleaving, num_windows, shuffle_seed
from starcoder_jax.data.store import TokenSplit, TokenStore

# Of the permutation that Grain shuffles with: a Feistel network on blocks of an even number of
# bits, walked until it is within range.
_ROUNDS = 4
_MIN_BLOCK_BITS = 16
# Below, walking back takes longer than trying all positions.
_MIN_INVERTED = 2**14


def steps_that_saw(
    store: TokenStore,
    document_ids: Iterable[str],
    *,
    rates: Mapping[str, float],
    batch_size: int,
    sequence_length: int,
    seed: int,
    steps: int,
    split: str = "train",
) -> dict[str, np.ndarray]:
    """Returns in which rows of which batches tokens of documents stood.

    It is the inverse of `Loader.trace`: a document is in a row if one of the window's spans is its,
    before fill-in-the-middle, which may cut off the end of a window.

    Args:
        store: The tokens.
        document_ids: SHA-256 of the documents' texts, in hex.
        rates: As the run's `Loader` was given, like `batch_size`, `sequence_length` and `seed`.
        batch_size: Rows in a global batch.
        sequence_length: Tokens a row trains on.
        seed: Seed of the run.
        steps: How many steps the run has done: batches 0 to `steps - 1` are looked at.
        split: "train" or "validation".

    Returns:
        Document id to int64 [n, 2]: steps, counted from 0, and rows, ascending. The array is empty
        where the store has the document and no step saw it; an id is missing that none of the
        tasks has.

    Raises:
        ValueError: An id is no SHA-256 in hex, or the store has no such task or split.
    """
    wanted = set(document_ids)
    rates = dict(sorted(rates.items()))
    interleaving = Interleaving(rates.values())
    found: dict[str, list[np.ndarray]] = {}
    for dataset, task in enumerate(rates):
        tokens = store.split(task, split)
        ranges = {
            name: [_windows(tokens, number, sequence_length) for number in numbers]
            for name, numbers in tokens.find_documents(wanted).items()
        }
        windows = _union([window for some in ranges.values() for window in some])
        places, positions = _seen(
            windows,
            epoch_length=num_windows(tokens.num_tokens, sequence_length),
            seed=shuffle_seed(task, seed),
            length=interleaving.count(dataset, steps * batch_size),
        )
        rows = np.array([interleaving.index(dataset, int(q)) for q in positions], np.int64)
        for name, some in ranges.items():
            for start, stop in some:
                low, high = np.searchsorted(places, (start, stop))
                found.setdefault(name, []).append(rows[low:high])
    return {
        name: np.stack(np.divmod(np.unique(np.concatenate(parts)), batch_size), axis=1)
        for name, parts in sorted(found.items())
    }


def _windows(tokens: TokenSplit, number: int, sequence_length: int) -> tuple[int, int]:
    """Windows [start, stop) that hold a token of a document."""
    start, stop = tokens.document_range(number)
    count = num_windows(tokens.num_tokens, sequence_length)
    # A window has one token more than it trains on, which is also the next one's first.
    first = max(0, -((sequence_length - start) // sequence_length))
    return min(first, count), min((stop - 1) // sequence_length + 1, count)


def _union(ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """The numbers in any of the ranges, ascending, int64 [n]."""
    parts = [np.arange(start, stop, dtype=np.int64) for start, stop in ranges]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def _seen(
    windows: np.ndarray, *, epoch_length: int, seed: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """When a run comes to windows of a task.

    Args:
        windows: int64 [n].
        epoch_length: Windows of the task in an epoch.
        seed: That shuffles the first epoch.
        length: How many windows of the task the run goes through, over all epochs.

    Returns:
        Windows, ascending, and the positions among the `length` at which the run reads them: int64
        [m] each.
    """
    found_windows, found_positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    # Without windows there may be no epochs either: a split can be shorter than a window.
    epochs = -(-length // epoch_length) if len(windows) else 0
    for epoch in range(epochs):
        which, positions = shuffled_positions(windows, epoch_length, (seed + epoch) % 2**32)
        found_windows.append(which)
        found_positions.append(positions + epoch * epoch_length)
    which, positions = np.concatenate(found_windows), np.concatenate(found_positions)
    order = np.argsort(which, kind="stable")
    which, positions = which[order], positions[order]
    return which[positions < length], positions[positions < length]


def shuffled_positions(values: np.ndarray, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where numbers stand in the order that Grain shuffles `range(length)` into.

    The permutation is inverted, and each answer checked with Grain's own function: so it is exact.
    All positions are tried, at a microsecond or two each, where the check fails (another version of
    Grain may shuffle otherwise), where there are few, and for the lengths that `num_windows`
    avoids, whose order has one number twice, and the last one never.

    Args:
        values: Numbers below `length`, int64 [n].
        length: How many numbers are shuffled.
        seed: Of the shuffle, 32 bits.

    Returns:
        Values and their positions, int64 [m] each; m is n, but for the lengths above.
    """

    def shuffled(position: int) -> int:
        return index_shuffle(position, max_index=length - 1, seed=seed, rounds=_ROUNDS)

    bits = max((length - 2).bit_length(), _MIN_BLOCK_BITS)
    bits += bits % 2
    if _MIN_INVERTED <= length <= 2**bits:
        positions = _inverse(values, length - 1, bits, seed)
        if all(shuffled(int(p)) == v for p, v in zip(positions, values, strict=True)):
            return values, positions
    wanted = set(values.tolist())
    pairs = [(value, p) for p in range(length) if (value := shuffled(p)) in wanted]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _inverse(values: np.ndarray, max_index: int, bits: int, seed: int) -> np.ndarray:
    """Undoes the network until each number is at most `max_index`, int64 [n]."""
    width = bits // 2
    mask = np.uint64(2**width - 1)
    keys = [np.uint64(key) & mask for key in _round_keys(seed)]

    def rotated(half: np.ndarray, by: int) -> np.ndarray:
        return ((half << np.uint64(by)) | (half >> np.uint64(width - by))) & mask

    def mixed(half: np.ndarray) -> np.ndarray:
        return (rotated(half, 1) & rotated(half, 8)) ^ rotated(half, 2)

    out = values.astype(np.uint64)
    walking = np.ones(len(out), bool)
    while walking.any():
        left, right = out[walking] >> np.uint64(width), out[walking] & mask
        for first, second in zip(keys[-2::-2], keys[::-2], strict=True):
            right = right ^ mixed(left) ^ second
            left = left ^ mixed(right) ^ first
        out[walking] = (left << np.uint64(width)) | right
        walking = out > max_index
    return out.astype(np.int64)


def _round_keys(seed: int) -> list[int]:
    """Four numbers of C++'s `std::seed_seq{seed}` (ISO C++, [rand.util.seedseq])."""
    numbers = [0x8B8B8B8B] * _ROUNDS
    for k in range(2 * _ROUNDS):
        here, after, last, before = (k % _ROUNDS, (k + 1) % _ROUNDS, (k + 2) % _ROUNDS, k - 1)
        a, b, c = (numbers[n % _ROUNDS] for n in (here, after, before))
        if k < _ROUNDS:
            first = 1664525 * _folded(a ^ b ^ c)
            second = first + (1, 1 + seed, 2, 3)[k]
            numbers[after] = (b + first) % 2**32
            numbers[last] = (numbers[last] + second) % 2**32
        else:
            first = 1566083941 * _folded((a + b + c) % 2**32) % 2**32
            second = (first - here) % 2**32
            numbers[after] = b ^ first
            numbers[last] ^= second
        numbers[here] = second % 2**32
    return numbers


def _folded(value: int) -> int:
    return value ^ (value >> 27)
