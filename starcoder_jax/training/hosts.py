"""The part of this process in what all processes do together."""

import bisect
import dataclasses
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from starcoder_jax.data.loader import fingerprint, format_fingerprint

_LINE_BYTES = 400


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process: all stop at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def any_text(text: str | None) -> str | None:
    """The first text that a process gives, with its number; None: none gives any."""
    if jax.process_count() == 1:
        return text
    line = np.zeros(_LINE_BYTES, np.uint8)
    if text is not None:
        encoded = text.encode()[:_LINE_BYTES] or b"?"
        line[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for index, row in enumerate(multihost_utils.process_allgather(line)):
        if row.any():
            return f"process {index}: {row.tobytes().rstrip(bytes(1)).decode(errors='replace')}"
    return None


def wait_for_file(path: pathlib.Path, seconds: float = 60) -> None:
    """Returns when this process sees a file that process 0 has written.

    Storage that hosts share may show a new file a little later to some of them.

    Raises:
        ValueError: it does not see it in time.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see {path}, which process 0 wrote: "
                "--workdir and data.directory must be on storage that all hosts share"
            )
        time.sleep(0.2)


@dataclasses.dataclass(frozen=True)
class RowShare:
    """What a process feeds of each batch.

    Attributes:
        batch_size: rows of the whole batch.
        sharding: of the batch, over its rows alone.
        rows: those that the devices of the process hold, in ascending order. Neighbors on the torus
            of a TPU need not hold neighboring rows, and other processes may hold the same ones.
        own: those of them that no process of a lower number holds.
    """

    batch_size: int
    sharding: jax.sharding.Sharding
    rows: tuple[int, ...]
    own: tuple[int, ...]

    def place(self, index: slice) -> slice:
        """Where a range of rows that a device holds lies among `rows`."""
        start, stop, _ = index.indices(self.batch_size)
        first = bisect.bisect_left(self.rows, start)
        return slice(first, first + stop - start)


def row_share(batch_size: int, sharding: jax.sharding.Sharding, process: int) -> RowShare:
    """The share of a process.

    Args:
        batch_size: rows of the whole batch.
        sharding: of the batch, over its rows alone.
        process: number of the process.
    """
    holders: dict[int, set[int]] = {row: set() for row in range(batch_size)}
    for device, (index, _) in sharding.devices_indices_map((batch_size, 1)).items():
        for row in range(batch_size)[index]:
            holders[row].add(device.process_index)
    rows = tuple(row for row, processes in holders.items() if process in processes)
    own = tuple(row for row in rows if min(holders[row]) == process)
    return RowShare(batch_size, sharding, rows, own)


def global_fingerprint(rows: np.ndarray, share: RowShare) -> str:
    """Of the whole batch, of which this process has these rows [rows, length]."""
    value = fingerprint(rows[np.isin(share.rows, share.own)], share.own)
    if jax.process_count() > 1:
        # As two halves: JAX has no 64-bit integers by default.
        part = np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)
        parts = multihost_utils.process_allgather(part).tolist()
        value = sum((high << 32) + low for high, low in parts) % 2**64
    return format_fingerprint(value)


def to_mesh(rows: np.ndarray, share: RowShare) -> jax.Array:
    """The whole batch [batch, length], of which this process has these rows [rows, length]."""
    shape = (share.batch_size, rows.shape[1])
    return jax.make_array_from_callback(
        shape, share.sharding, lambda index: rows[share.place(index[0])]
    )
