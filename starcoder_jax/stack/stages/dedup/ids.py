"""Numbers for the rows of a step's output: the number of the shard, times 2^32, plus the row's.

A shard's number is that of its repositories (`record.part_of`), so that a function which is given
only the shard knows it. Which rows survive must depend on no such number: they change with the
number of shards.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack.record import Output, part_of

_ROW_BITS = 32


def row_ids(table: pa.Table, partitions: int) -> np.ndarray:
    """The ids of a shard's rows, int64 [n].

    Raises:
        ValueError: the repositories belong to several of the `partitions` shards.
    """
    shards = {part_of(name, partitions) for name in table["repository"].unique().to_pylist()}
    if len(shards) > 1:
        raise ValueError(
            f"dedup: a shard holds repositories of {len(shards)} of {partitions} shards: write its "
            "input in as many shards as dedup has partitions, by part_of"
        )
    return (np.int64(sum(shards)) << _ROW_BITS) + np.arange(len(table))


def taking_part(
    table: pa.Table, kinds: Sequence[str], partitions: int
) -> tuple[pa.Table, np.ndarray]:
    """The rows of some kinds, and their ids."""
    ids = row_ids(table, partitions)
    chosen = pc.is_in(table["kind"], value_set=pa.array(kinds, pa.string()))
    # Taking all of them would copy all contents.
    if pc.all(chosen, min_count=0).as_py():
        return table, ids
    return table.filter(chosen), ids[chosen.to_numpy()]


def rows_of(ids: np.ndarray, table: pa.Table, partitions: int) -> np.ndarray:
    """The rows in their shard that some ids stand for, int64 [n].

    Raises:
        ValueError: they are of another shard.
    """
    rows = ids & ((1 << _ROW_BITS) - 1)
    if len(ids):
        known = row_ids(table, partitions)
        if rows.max() >= len(known) or not np.array_equal(known[rows], ids):
            raise ValueError("dedup: rows of another shard: its shards are not those of part_of")
    return rows


def shard_of(ids: np.ndarray) -> np.ndarray:
    """The number of the shard that each row is in, int64 [n]."""
    return ids >> _ROW_BITS


def to_their_shards(table: pa.Table, column: str) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """An `emit` that sends each row to the shard of the row whose id is in a column."""
    yield shard_of(table[column].to_numpy()), table


def as_it_is(table: pa.Table) -> Output:
    """A `reduce` that only brings rows together."""
    return Output(table)
