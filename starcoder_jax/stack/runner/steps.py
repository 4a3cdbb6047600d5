"""Steps of a pipeline, as values: a runner decides where and when each shard is worked on.

Functions are pure: what they return depends on their arguments alone. They are module-level
functions, or `functools.partial`s of such with frozen dataclasses and plain values, so that they
can be sent to other processes and machines, and be told from others: a shard is made anew if its
function or an argument of it changes. A file that a function reads is to be among its arguments by
what is in it, such as its SHA-256. Functions must do with tables without rows, too.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from starcoder_jax.stack.record import Output


@dataclasses.dataclass(frozen=True)
class Map:
    """Shard i of the step is `function` of shard i of each input.

    Attributes:
        name: of the step and of what it writes, such as "filter" or "dedup.exact".
        inputs: names of earlier steps. All have the same number of shards, except that those with
            a single shard are given whole to every call.
        function: takes a table an input.
    """

    name: str
    inputs: tuple[str, ...]
    function: Callable[..., Output]


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """Rows find together by partition.

    Attributes:
        name: of the step and of what it writes.
        inputs: names of earlier steps, whose shards are all emitted from; or none, for a step that
            begins a pipeline, see `items`.
        emit: takes the table of one shard, or one of the items, and yields pairs of partitions,
            integers [n], and n rows that go there. Every table it ever yields has the same schema.
            A table of some megabytes at a time keeps memory bounded.
        schema: that schema.
        reduce: takes all the rows of a partition, in the order of (input, shard or item, row), and
            makes a shard of them; of a partition without rows as well.
        partitions: how many there are, and so how many shards the step writes.
        items: what `emit` takes where there is no input; picklable, each with an attribute
            `fingerprint`, a string that changes when what is read through it changes.
    """

    name: str
    inputs: tuple[str, ...]
    emit: Callable[[object], Iterable[tuple[np.ndarray, pa.Table]]]
    schema: pa.Schema
    reduce: Callable[[pa.Table], Output]
    partitions: int
    items: Sequence[object] = ()


Step = Map | Shuffle
