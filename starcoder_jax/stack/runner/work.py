"""What is done for one shard, wherever that is: the same for all engines."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from starcoder_jax.stack.record import DROP, Output
from starcoder_jax.stack.runner.digest import content_digest
from starcoder_jax.stack.runner.keys import combined
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.runner.steps import Map, Shuffle


class StepError(RuntimeError):
    """A step failed; the message is one line that names step and shard."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A shard to read: what a shuffle that has inputs emits from."""

    name: str
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class Mapping:
    """Makes shards of a `Map`.

    Attributes:
        step: the step.
        store: where inputs are and outputs go.
        inputs: how many shards each input has.
        count: how many shards the step writes.
    """

    step: Map
    store: Store
    inputs: tuple[int, ...]
    count: int

    def place(self, task: tuple[int, str]) -> str:
        """What a message calls the task."""
        return f"step {self.step.name}, shard {task[0]} of {self.count}"

    def __call__(self, task: tuple[int, str]) -> None:
        """Makes the shard of an index, with a key."""
        index, key = task
        tables = [
            self._whole(name) if count == 1 else self.store.table(name, index, count)
            for name, count in zip(self.step.inputs, self.inputs, strict=True)
        ]
        output = _checked(self.step.function(*tables))
        self.store.write(self.step.name, index, self.count, output, key, None)

    @functools.cached_property
    def _shared(self) -> dict[str, pa.Table]:
        return {}

    def _whole(self, name: str) -> pa.Table:
        if self.count == 1:
            return self.store.table(name, 0, 1)
        if name not in self._shared:
            self._shared[name] = self.store.table(name, 0, 1)
        return self._shared[name]


@dataclasses.dataclass(frozen=True)
class Emitting:
    """Emits the rows of a `Shuffle`, a bounded number at a time, in the order of partitions.

    Attributes:
        step: the step.
        store: where inputs are.
        count: how many inputs' shards, or items, there are.
        memory_bytes: of rows that are held until they are sorted.
    """

    step: Shuffle
    store: Store
    count: int
    memory_bytes: int

    def place(self, number: int) -> str:
        """What a message calls the emission from an input's shard, or item."""
        what = "input" if self.step.inputs else "item"
        return f"step {self.step.name}, {what} {number} of {self.count}"

    def batches(self, source: object) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields pairs of a partition and rows of it, several of the same partition maybe."""
        if isinstance(source, Source):
            source = self.store.table(source.name, source.index, source.count)
        held, size = [], 0
        for partitions, table in self.step.emit(source):
            self._check(partitions, table)
            held.append((partitions.astype(np.int64), table))
            size += table.nbytes
            if size >= self.memory_bytes:
                yield from _by_partition(held)
                held, size = [], 0
        if held:
            yield from _by_partition(held)

    def _check(self, partitions: np.ndarray, table: pa.Table) -> None:
        if not table.schema.equals(self.step.schema):
            raise ValueError("emit yielded a table of another schema than the step's")
        if partitions.shape != (len(table),) or partitions.dtype.kind not in "iu":
            raise ValueError(
                f"emit yielded partitions {partitions.dtype}{list(partitions.shape)} "
                f"for {len(table)} rows"
            )
        if len(table) and not 0 <= partitions.min() <= partitions.max() < self.step.partitions:
            raise ValueError(f"emit yielded a partition that is not in [0, {self.step.partitions})")


@dataclasses.dataclass(frozen=True)
class Reducing:
    """Makes shards of a `Shuffle`.

    Attributes:
        step: the step.
        store: where the outputs go.
        key: of the step's `reduce`.
    """

    step: Shuffle
    store: Store
    key: str

    def place(self, partition: int) -> str:
        """What a message calls the partition."""
        return f"step {self.step.name}, shard {partition} of {self.step.partitions}"

    def reduce(self, partition: int, input_key: str, batches: list[pa.RecordBatch]) -> None:
        """Makes the shard of a partition from all its rows, unless it was made of the same.

        Empties the list of batches.
        """
        step = self.step
        # How rows lie in memory must not tell a function how they came.
        table = pa.Table.from_batches(batches, step.schema).combine_chunks()
        batches.clear()  # once in memory is enough
        emitted = combined(self.key, content_digest(table))
        known = self.store.shard(step.name, partition, step.partitions)
        if known is not None and known.emitted == emitted:
            self.store.rename(step.name, partition, step.partitions, known, input_key)
            return
        output = _checked(step.reduce(table))
        self.store.write(step.name, partition, step.partitions, output, input_key, emitted)


def describe(error: Exception) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _checked(output: Output) -> Output:
    if not isinstance(output, Output) or not isinstance(output.table, pa.Table):
        raise ValueError(f"the function returned {type(output).__name__}, not an Output of a Table")
    if output.drops is not None and not output.drops.schema.equals(DROP):
        raise ValueError("the function returned drops of another schema than DROP")
    return output


def _by_partition(
    held: list[tuple[np.ndarray, pa.Table]],
) -> Iterator[tuple[int, pa.RecordBatch]]:
    partitions = np.concatenate([numbers for numbers, _ in held])
    if not len(partitions):
        return
    table = pa.concat_tables([table for _, table in held]).combine_chunks()
    if np.any(np.diff(partitions) < 0):
        order = np.argsort(partitions, kind="stable")
        partitions, table = partitions[order], table.take(pa.array(order))
    starts = np.flatnonzero(np.diff(partitions, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(partitions)], strict=True):
        for batch in table.slice(start, stop - start).to_batches():
            yield int(partitions[start]), batch
