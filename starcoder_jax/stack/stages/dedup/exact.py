"""Exact duplicates: rows of one kind whose contents are the same bytes."""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from starcoder_jax.stack.runner.steps import Map, Shuffle, Step
from starcoder_jax.stack.stages.dedup import ids, keep

_DIGEST = 16  # bytes


def steps(
    source: str, name: str, kinds: Sequence[str], preferences: Sequence[str], partitions: int
) -> list[Step]:
    """The steps from a source of `RECORD`s to one without exact duplicates, called by `name`."""
    return [
        Shuffle(
            "dedup.exact.losers",
            (source,),
            functools.partial(emit_digests, kinds=tuple(kinds), partitions=partitions),
            keep.contestant(pa.binary(_DIGEST)),
            functools.partial(keep.losers, keep=tuple(preferences)),
            partitions,
        ),
        Shuffle(
            "dedup.exact.drops",
            ("dedup.exact.losers",),
            functools.partial(ids.to_their_shards, column="id"),
            keep.LOSER,
            ids.as_it_is,
            partitions,
        ),
        Map(
            name,
            (source, "dedup.exact.drops"),
            functools.partial(keep.without, reason="exact duplicate", partitions=partitions),
        ),
    ]


def emit_digests(
    table: pa.Table, kinds: Sequence[str], partitions: int
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Sends what is needed to choose among duplicates to a partition of their contents' digest."""
    table, numbers = ids.taking_part(table, kinds, partitions)
    digests = bytearray()
    for kind, content in zip(table["kind"].to_pylist(), table["content"], strict=True):
        digest = hashlib.blake2b(kind.encode() + b"\0", digest_size=_DIGEST)
        digest.update(content.as_buffer())
        digests += digest.digest()
    keys = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(_DIGEST), len(table), [None, pa.py_buffer(bytes(digests))]
    )
    halves = np.frombuffer(bytes(digests), "<u8").reshape(-1, 2)
    yield halves[:, 0] % np.uint64(partitions), keep.contestants(table, keys, numbers)
