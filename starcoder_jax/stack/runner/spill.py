"""Rows of a shuffle on their way between two passes, on the disk of this machine.

FOLDER/STEP/spill/00003.arrow   what was emitted from the fourth input's shard, or item
FOLDER/STEP/spill/00003.json    its key, and the partition of each record batch
"""

import dataclasses
import functools
import json
import os
import pathlib

import numpy as np
import pyarrow as pa

from starcoder_jax.stack.runner.work import Emitting, Reducing

# Fast enough to be worth it even where the disk is fast.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclasses.dataclass(frozen=True)
class Spill:
    """The folder of a shuffle's rows."""

    folder: pathlib.Path

    def rows(self, number: int) -> pathlib.Path:
        """The file of what was emitted from an input's shard, or item."""
        return self.folder / f"{number:05}.arrow"

    def note(self, number: int) -> pathlib.Path:
        """The file that says what is in the other, and that it is complete."""
        return self.folder / f"{number:05}.json"

    def key(self, number: int) -> str | None:
        """What was emitted from there was emitted with this key; None: it is not complete."""
        try:
            note = json.loads(self.note(number).read_text())
            whole = self.rows(number).stat().st_size == note["bytes"]
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return note["key"] if whole else None


@dataclasses.dataclass(frozen=True)
class Spilling:
    """Writes what is emitted to a spill."""

    emitting: Emitting
    spill: Spill

    def place(self, task: tuple[int, object, str]) -> str:
        """What a message calls the task."""
        return self.emitting.place(task[0])

    def __call__(self, task: tuple[int, object, str]) -> None:
        """Emits from the source of a number, with a key."""
        number, source, key = task
        rows, note = self.spill.rows(number), self.spill.note(number)
        note.unlink(missing_ok=True)
        partitions = []
        with pa.ipc.new_file(rows, self.emitting.step.schema, options=_OPTIONS) as writer:
            for partition, batch in self.emitting.batches(source):
                writer.write_batch(batch)
                partitions.append(partition)
        new = note.with_suffix(".new")
        size = rows.stat().st_size
        new.write_text(json.dumps({"key": key, "bytes": size, "partitions": partitions}))
        os.replace(new, note)


@dataclasses.dataclass(frozen=True)
class Gathering:
    """Reduces the rows of a partition that a spill holds."""

    reducing: Reducing
    spill: Spill
    count: int

    def place(self, task: tuple[int, str]) -> str:
        """What a message calls the task."""
        return self.reducing.place(task[0])

    def __call__(self, task: tuple[int, str]) -> None:
        """Makes the shard of a partition, with a key."""
        partition, key = task
        batches = []
        for number, partitions in enumerate(self._partitions):
            found = np.flatnonzero(partitions == partition)
            if not found.size:
                continue
            with pa.OSFile(str(self.spill.rows(number))) as file:
                reader = pa.ipc.open_file(file)
                batches += [reader.get_batch(index) for index in found]
        self.reducing.reduce(partition, key, batches)

    @functools.cached_property
    def _partitions(self) -> list[np.ndarray]:
        """Of each record batch of each file; read once by a process."""
        notes = [json.loads(self.spill.note(number).read_text()) for number in range(self.count)]
        return [np.array(note["partitions"], np.int32) for note in notes]
