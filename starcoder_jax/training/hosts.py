"""The part of this process in what all processes do together."""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from starcoder_jax.data.loader import fingerprint, format_fingerprint
from starcoder_jax.parallel.sharding import ShardingRules


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process: all stop at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@dataclasses.dataclass(frozen=True)
class RowShare:
    """A process feeds part `index` of `count` equal parts of each batch."""

    index: int
    count: int


def row_share(batch_size: int, rules: ShardingRules) -> RowShare:
    """The rows that this process's devices hold; processes may share them (tensor parallelism).

    Raises:
        ValueError: they are not one range of rows, which the mesh's device order decides.
    """
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), rules("batch", None))
    indices = sharding.addressable_devices_indices_map((batch_size, 1)).values()
    ranges = sorted({rows.indices(batch_size)[:2] for rows, _ in indices})
    start, size = ranges[0][0], ranges[-1][1] - ranges[0][0]
    if sum(stop - first for first, stop in ranges) != size or start % size or batch_size % size:
        raise ValueError(
            f"the devices of process {jax.process_index()} hold rows {ranges} of a batch, which "
            "are no part of equal parts: choose mesh.replica and mesh.fsdp along the hosts"
        )
    return RowShare(start // size, batch_size // size)


def global_fingerprint(rows: np.ndarray, share: RowShare) -> str:
    """Of the global batch, of which this process has a share."""
    value = fingerprint(rows, share.index * rows.shape[0])
    if jax.process_count() > 1:
        # As two halves: JAX has no 64-bit integers by default.
        part = np.array([share.index, value >> 32, value & 0xFFFFFFFF], np.uint32)
        parts = multihost_utils.process_allgather(part).tolist()
        unique = {index: (high << 32) + low for index, high, low in parts}
        value = sum(unique.values()) % 2**64
    return format_fingerprint(value)


def to_mesh(rows: np.ndarray, rules: ShardingRules, batch_size: int | None = None) -> jax.Array:
    """This process's rows as its part of the global batch, split over the batch axes."""
    sharding = jax.NamedSharding(jax.sharding.get_mesh(), rules("batch", None))
    shape = (batch_size or rows.shape[0], rows.shape[1])
    if shape == rows.shape and jax.process_count() > 1:
        return jax.make_array_from_callback(shape, sharding, lambda index: rows[index])
    return jax.make_array_from_process_local_data(sharding, rows, shape)
