"""Batches of packed windows, as a pure function of the step.

Windows of each task are shuffled anew every epoch by an index permutation, tasks are interleaved
at their rates, and fill-in-the-middle draws its coins from the row's number in the run. No step
depends on another one, so that a run resumes anywhere at once, on any number of processes.
"""

import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import grain
import numpy as np
from absl import flags

from starcoder_jax.data.fim import FillInTheMiddle, FimConfig
from starcoder_jax.data.store import DocumentSpan, TokenSplit, TokenStore

# Elements of the pipeline are whole batches: enough of them to hide a slow read, few enough for
# memory. Threads pay because both file reading and tokenizing leave Python's lock.
_THREADS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
_WORKER_THREADS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
_WORKER_BUFFER = 2


@dataclasses.dataclass(frozen=True)
class RowTrace:
    """Where a row of a batch comes from.

    Attributes:
        task: Name of the task.
        epoch: How many times the run has gone through the task's windows before, counted from 0.
        window: Number of the window in the task's split, in stored order.
        spans: Documents of the window, before fill-in-the-middle moved parts of them.
    """

    task: str
    epoch: int
    window: int
    spans: tuple[DocumentSpan, ...]


class Loader:
    """Reads the batches of a run from a token store.

    Row r of global batch k is row k * batch_size + r of the run. What a row holds depends on the
    store, `rates`, `split`, `sequence_length`, `seed`, `fim` and the row's number in the run alone.

    A window is `sequence_length + 1` tokens of a split's stream, inputs and shifted targets;
    neighbours share one token. What is left at the end of the stream is not used.

    Args:
        store: The tokens.
        rates: Task name to its rate in the mixture, counted in windows. Only ratios matter.
        split: "train" or "validation".
        batch_size: Rows in a global batch.
        sequence_length: Tokens a row trains on.
        seed: Seed of shuffling and of fill-in-the-middle.
        fim: How to permute documents for fill-in-the-middle; None leaves them as they are.
        rows: Those of each global batch to read, in this order: what a process holds of it; None
            is all.
        read_workers: Worker processes that `batches` reads with; 0 reads in threads.

    Attributes:
        tokens_per_epoch: Task name to the tokens trained on when going through its windows once.

    Raises:
        ValueError: An argument is out of range, a rate names a task that is not there or is not
            positive, a split is shorter than one window, or the vocabulary lacks a special token
            that `fim` needs.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        rates: Mapping[str, float],
        split: str = "train",
        batch_size: int,
        sequence_length: int,
        seed: int,
        fim: FimConfig | None,
        rows: Sequence[int] | None = None,
        read_workers: int = 0,
    ):
        rows = range(batch_size) if rows is None else rows
        _check_numbers(batch_size, sequence_length, seed, rows)
        _check_rates(rates, store.tasks)
        if read_workers < 0:
            raise ValueError(f"read_workers is {read_workers}: it must not be negative")
        self._batch_size = batch_size
        self._read_workers = read_workers
        # Sorted, because a mapping's order is no part of the recipe.
        rates = dict(sorted(rates.items()))
        self._read = _Reader({task: store.split(task, split) for task in rates}, sequence_length)
        windows = {task: self._read.num_windows(task) for task in rates}
        for task, count in windows.items():
            if count < 1:
                raise ValueError(
                    f"the {split} split of task {task!r} is shorter than one window of "
                    f"{sequence_length + 1} tokens: lower the sequence length or add documents"
                )
        self.tokens_per_epoch = {task: n * sequence_length for task, n in windows.items()}
        self._windows = grain.MapDataset.select_from_datasets(
            [_shuffled_windows(task, count, seed) for task, count in windows.items()],
            Interleaving(rates.values()),
        )
        run = self._windows.map(self._read)
        if fim is not None and fim.rate > 0:
            run = run.random_map(FillInTheMiddle(fim, store.tokenizer), seed=seed)
        run = grain.MapDataset.select_from_datasets([run], _RowsOfBatches(batch_size, rows))
        self._batches = run.batch(len(rows), drop_remainder=True)

    def batch(self, step: int) -> np.ndarray:
        """Returns the loader's rows of global batch `step`, counted from 0.

        Returns:
            int32 [rows, sequence_length + 1].

        Raises:
            ValueError: `step` is negative.
        """
        return self._batches[_checked_step(step)]

    def batches(self, start: int) -> grain.DatasetIterator[np.ndarray]:
        """Iterates over `batch(start)`, `batch(start + 1)`, ... without end, reading ahead.

        With `read_workers`, the iterator starts processes by spawning: the program's main module
        must be importable without side effects. `close()` on the iterator ends them, and so does
        the end of this process, however it ends.

        Raises:
            ValueError: `start` is negative.
        """
        batches = self._batches[_checked_step(start) :]
        if self._read_workers == 0:
            return iter(batches.to_iter_dataset(_THREADS))
        # Grain reads absl flags when it starts processes; outside of an absl app nobody parsed any.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(self._read_workers, _WORKER_BUFFER)
        return iter(batches.to_iter_dataset(_WORKER_THREADS).mp_prefetch(options, _end_with_parent))

    def trace(self, step: int, row: int) -> RowTrace:
        """Returns where a row of global batch `step` comes from.

        Args:
            step: Number of the batch, counted from 0.
            row: Row of the global batch, whether or not this loader reads it.

        Raises:
            ValueError: `step` is negative, or `row` is not in the batch.
        """
        if not 0 <= row < self._batch_size:
            raise ValueError(f"row {row} is not within the batch of {self._batch_size}")
        window = self._windows[_checked_step(step) * self._batch_size + row]
        return RowTrace(window.task, window.epoch, window.index, self._read.documents(window))


def fingerprint(rows: np.ndarray, numbers: Iterable[int] | None = None) -> int:
    """Returns a checksum of rows of a global batch, which sums over processes.

    It is the sum modulo 2**64 of an 8-byte BLAKE2b, little-endian, of each row's number (uint64)
    and tokens (int32): the fingerprint of a batch is the sum modulo 2**64 of those of its parts.

    Args:
        rows: int32 [rows, length].
        numbers: Those that the rows have in the global batch; None: these are all rows.
    """
    numbers = range(len(rows)) if numbers is None else numbers
    total = 0
    for number, row in zip(numbers, np.ascontiguousarray(rows, "<i4"), strict=True):
        digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8)
        digest.update(row)
        total += int.from_bytes(digest.digest(), "little")
    return total % 2**64


def format_fingerprint(value: int) -> str:
    """Returns a fingerprint as 16 hexadecimal digits."""
    return f"{value:016x}"


@dataclasses.dataclass(frozen=True)
class _Window:
    task: str
    epoch: int
    index: int


@dataclasses.dataclass(frozen=True)
class _Named:
    """Says of which task and epoch a shuffled window is."""

    task: str
    num_windows: int

    def __call__(self, position: int, index: int) -> _Window:
        return _Window(self.task, position // self.num_windows, index)


def _shuffled_windows(task: str, num_windows: int, seed: int) -> grain.MapDataset[_Window]:
    return (
        grain.MapDataset.range(num_windows)
        .shuffle(seed=shuffle_seed(task, seed))
        .repeat()
        .map_with_index(_Named(task, num_windows))
    )


def num_windows(num_tokens: int, sequence_length: int) -> int:
    """How many windows of a split an epoch goes through.

    Of 4**k + 1 windows, from 65,537 on, it is one less: Grain's shuffle of so many visits one twice
    and the last never (released versions up to 0.2.18).
    """
    count = (num_tokens - 1) // sequence_length
    power = count - 1
    is_power_of_four = power.bit_count() == 1 and power.bit_length() % 2 == 1
    return power if power >= 2**16 and is_power_of_four else count


def shuffle_seed(task: str, seed: int) -> int:
    """The seed, of 32 bits, that shuffles a task's windows in the first epoch of a run.

    Grain shuffles epoch e with this seed + e: seeds of tasks and runs must lie far apart, or one
    task would follow the order that another had an epoch before.
    """
    digest = hashlib.blake2b(f"{seed} {task}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class _Reader:
    """Reads windows of several splits."""

    def __init__(self, splits: Mapping[str, TokenSplit], sequence_length: int):
        self._splits = splits
        self._sequence_length = sequence_length

    def num_windows(self, task: str) -> int:
        return num_windows(self._splits[task].num_tokens, self._sequence_length)

    def __call__(self, window: _Window) -> np.ndarray:
        return self._splits[window.task].tokens(*self._range(window))

    def documents(self, window: _Window) -> tuple[DocumentSpan, ...]:
        return tuple(self._splits[window.task].documents(*self._range(window)))

    def _range(self, window: _Window) -> tuple[int, int]:
        start = window.index * self._sequence_length
        return start, start + self._sequence_length + 1


class _RowsOfBatches(grain.transforms.DatasetSelectionMap):
    """Of the one dataset of all rows of a run, these rows of each batch."""

    def __init__(self, batch_size: int, rows: Sequence[int]):
        self._batch_size = batch_size
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, place = divmod(index, len(self._rows))
        return 0, step * self._batch_size + self._rows[place]


class Interleaving(grain.transforms.DatasetSelectionMap):
    """Interleaves endless datasets at exact rates.

    Of the first n elements, floor(n * share) belong to all datasets but the last, where share is
    what those have of the sum of rates; the same rule then divides these among them. So each count
    stays within a fixed distance of its rate, and an element's place follows from its number alone.

    `grain.MapDataset.mix` is not used: it rounds rates to multiples of a hundredth of the smallest
    one, which puts long-run shares up to 1 % off.
    """

    def __init__(self, rates):
        # str: 0.7 and 0.3 are meant to be 7 and 3 tenths, not the nearest binary fractions.
        fractions = [Fraction(str(rate)) for rate in rates]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        weights = [int(fraction * scale) for fraction in fractions]
        self._sums = list(itertools.accumulate(weights))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        for dataset in range(len(self._sums) - 1, 0, -1):
            share = self._sums[dataset - 1], self._sums[dataset]
            before = index * share[0] // share[1]
            if (index + 1) * share[0] // share[1] == before:
                return dataset, index - before
            index = before
        return 0, index

    def count(self, dataset: int, length: int) -> int:
        """How many of the first `length` elements belong to a dataset."""
        for last in range(len(self._sums) - 1, dataset, -1):
            length = length * self._sums[last - 1] // self._sums[last]
        if dataset == 0:
            return length
        return length - length * self._sums[dataset - 1] // self._sums[dataset]

    def index(self, dataset: int, position: int) -> int:
        """Where the element at a position of a dataset stands: the inverse of `[...]`."""
        index = position
        if dataset > 0:
            rest, whole = self._sums[dataset - 1], self._sums[dataset]
            index = position * whole // (whole - rest)
        for last in range(dataset + 1, len(self._sums)):
            index = -(-(index + 1) * self._sums[last] // self._sums[last - 1]) - 1
        return index


def _end_with_parent(*_: int) -> None:
    """Ends this worker process with its parent, even if that is killed.

    Else it would wait forever for room for its next batch.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _checked_step(step: int) -> int:
    if step < 0:
        raise ValueError(f"step {step} is negative: steps count from 0")
    return step


def _check_numbers(batch_size: int, sequence_length: int, seed: int, rows: Sequence[int]) -> None:
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}: it must be at least 2")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must not be negative")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    if not rows or not 0 <= min(rows) <= max(rows) < batch_size:
        raise ValueError(f"rows are {list(rows)}: give some of the {batch_size} of a batch")


def _check_rates(rates: Mapping[str, float], tasks: tuple[str, ...]) -> None:
    if not rates:
        raise ValueError(f"rates is empty: give one to at least one of {', '.join(tasks)}")
    for task, rate in rates.items():
        if task not in tasks:
            raise ValueError(f"rate for unknown task {task!r}: the store has {', '.join(tasks)}")
        if not 0 < rate < math.inf:
            raise ValueError(
                f"rate of task {task!r} is {rate}: it must be positive; leave out a task that is "
                "not wanted"
            )
