"""Where the shards of steps lie, and what is known of each without reading it.

    FOLDER/STEP/shard-00003-of-00016.parquet        the rows
    FOLDER/STEP/shard-00003-of-00016.drops.parquet  those dropped, if the step drops any by nature
    FOLDER/STEP/shard-00003-of-00016.json           a `Shard`; there once the others are complete
    FOLDER/STEP/step.json                           all of them; there while the step is complete

The folder is one of this machine, or a URI of what `pyarrow.fs` knows, such as gs://bucket/folder.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import posixpath
import uuid
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from starcoder_jax.stack.record import Output
from starcoder_jax.stack.runner.digest import content_digest

_SHARD, _TABLE, _DROPS, _NOTE = "shard-", ".parquet", ".drops.parquet", ".json"
_STEP = "step.json"
# Beside the shards, while a step is at work that needs it.
SPILL = "spill"
# Requests at a time where each takes long.
_READERS = 16


@dataclasses.dataclass(frozen=True)
class Drops:
    """How many rows were dropped, and the bytes of their contents."""

    rows: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of a finished shard.

    Attributes:
        key: of the step's function, its code, its arguments and what it was given (see `keys`).
        emitted: of a shuffle, the same with the rows of the partition in place of the inputs.
        digest: of the rows that go on (`digest.content_digest`).
        rows: how many go on.
        bytes: of their column `content`; 0 where there is none.
        counts: as the step gave them.
        drops: None if the step drops none by nature.
        sizes: of the files, in bytes, by the end of their names.
    """

    key: str
    emitted: str | None
    digest: str
    rows: int
    bytes: int
    counts: Mapping[str, int]
    drops: Drops | None
    sizes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a finished step wrote.

    Attributes:
        name: of the step.
        store: where it is.
        shards: all of them, in order.
        made: how many of them this run has made; the others were there.
    """

    name: str
    store: "Store"
    shards: tuple[Shard, ...]
    made: int = 0

    def tables(self) -> Iterator[pa.Table]:
        """Reads the rows that go on, shard by shard."""
        for index in range(len(self.shards)):
            yield self.store.table(self.name, index, len(self.shards))

    def drops(self) -> Iterator[pa.Table]:
        """Reads the rows that were dropped, shard by shard, of those that have such a file."""
        for index, shard in enumerate(self.shards):
            if shard.drops is not None:
                yield self.store.drops(self.name, index, len(self.shards))


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of a pipeline.

    Attributes:
        folder: absolute path, or URI.
    """

    folder: str

    @functools.cached_property
    def _place(self) -> tuple[pyarrow.fs.FileSystem, str]:
        if "://" in self.folder:
            return pyarrow.fs.FileSystem.from_uri(self.folder)
        return pyarrow.fs.LocalFileSystem(), self.folder

    def __getstate__(self) -> dict:
        return {"folder": self.folder}  # and not the connection

    def table(self, name: str, index: int, count: int) -> pa.Table:
        """Reads the rows of a shard."""
        return self._read(self._path(name, index, count, _TABLE))

    def drops(self, name: str, index: int, count: int) -> pa.Table:
        """Reads the rows of schema `DROP` of a shard that has some."""
        return self._read(self._path(name, index, count, _DROPS))

    def write(
        self, name: str, index: int, count: int, output: Output, key: str, emitted: str | None
    ) -> None:
        """Writes a shard; until all of it is there, nothing of it counts."""
        path = functools.partial(self._path, name, index, count)
        self._place[0].create_dir(posixpath.dirname(path("")))
        self._remove(path(_NOTE))
        sizes = {_TABLE: self._write_table(path(_TABLE), output.table)}
        dropped = None
        if output.drops is not None:
            sizes[_DROPS] = self._write_table(path(_DROPS), output.drops)
            total = pc.sum(output.drops["bytes"]).as_py() or 0
            dropped = Drops(len(output.drops), total)
        shard = Shard(
            key=key,
            emitted=emitted,
            digest=content_digest(output.table),
            rows=len(output.table),
            bytes=_content_bytes(output.table),
            counts={name: int(output.counts[name]) for name in sorted(output.counts)},
            drops=dropped,
            sizes=sizes,
        )
        self._write_json(path(_NOTE), dataclasses.asdict(shard))

    def rename(self, name: str, index: int, count: int, shard: Shard, key: str) -> None:
        """Gives a shard another key, whose rows are the same."""
        renamed = dataclasses.asdict(dataclasses.replace(shard, key=key))
        self._write_json(self._path(name, index, count, _NOTE), renamed)

    def shard(self, name: str, index: int, count: int) -> Shard | None:
        """A shard, or None if it is not finished."""
        entry = self._read_json(self._path(name, index, count, _NOTE))
        paths = [self._path(name, index, count, end) for end in (_TABLE, _DROPS, _NOTE)]
        return self._checked(name, index, count, entry, self._sizes(paths))

    def shards(self, name: str, count: int) -> list[Shard | None]:
        """All shards of a step that writes so many, None where one is not finished."""
        entries = self._step(name)
        if len(entries) != count:
            paths = [self._path(name, index, count, _NOTE) for index in range(count)]
            with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
                entries = list(pool.map(self._read_json, paths))
        folder = posixpath.join(self._place[1], name)
        sizes = self._sizes(pyarrow.fs.FileSelector(folder, allow_not_found=True))
        return [
            self._checked(name, index, count, entry, sizes) for index, entry in enumerate(entries)
        ]

    def load(self, name: str) -> StepResult:
        """What a step wrote that is complete.

        Raises:
            ValueError: it is not.
        """
        entries = self._step(name)
        shards = tuple(shard for shard in self.shards(name, len(entries)) if shard is not None)
        if not shards or len(shards) != len(entries):
            raise ValueError(f"step {name} is not complete in {self.folder}: run it first")
        return StepResult(name, self, shards)

    def begin(self, name: str) -> None:
        """Says that a step is no longer complete."""
        self._remove(posixpath.join(self._place[1], name, _STEP))

    def finish(self, name: str, shards: Sequence[Shard]) -> None:
        """Says that a step is complete, and removes what is left of earlier runs of it."""
        files, root = self._place
        count = len(shards)
        wanted = {
            self._path(name, index, count, end)
            for index, shard in enumerate(shards)
            for end in (*shard.sizes, _NOTE)
        }
        folder = posixpath.join(root, name)
        for entry in files.get_file_info(pyarrow.fs.FileSelector(folder)):
            if entry.base_name == SPILL:
                files.delete_dir(entry.path)
            elif entry.base_name.startswith((_SHARD, f"{_STEP}.")) and entry.path not in wanted:
                files.delete_file(entry.path)
        entries = [dataclasses.asdict(shard) for shard in shards]
        self._write_json(posixpath.join(folder, _STEP), {"shards": entries})

    def _path(self, name: str, index: int, count: int, end: str) -> str:
        return posixpath.join(self._place[1], name, f"{_SHARD}{index:05}-of-{count:05}{end}")

    def _step(self, name: str) -> list[dict]:
        step = self._read_json(posixpath.join(self._place[1], name, _STEP))
        return step["shards"] if step else []

    def _sizes(self, where: pyarrow.fs.FileSelector | list[str]) -> dict[str, int]:
        return {entry.path: entry.size for entry in self._place[0].get_file_info(where)}

    def _checked(
        self, name: str, index: int, count: int, entry: dict | None, sizes: Mapping[str, int]
    ) -> Shard | None:
        """The shard of an entry if its files are those that were written with it."""
        if entry is None:
            return None
        shard = Shard(**entry | {"drops": entry["drops"] and Drops(**entry["drops"])})
        found = {
            end: sizes.get(self._path(name, index, count, end)) for end in (*shard.sizes, _NOTE)
        }
        whole = found.pop(_NOTE) is not None and found == shard.sizes
        return shard if whole else None

    def _read(self, path: str) -> pa.Table:
        with self._place[0].open_input_file(path) as file:
            return pq.ParquetFile(file).read()

    def _read_json(self, path: str) -> dict | None:
        try:
            with self._place[0].open_input_stream(path) as file:
                return json.loads(file.read())
        except (FileNotFoundError, json.JSONDecodeError):  # the latter after a loss of power
            return None

    def _write_table(self, path: str, table: pa.Table) -> int:
        # Where chunks end decides where Parquet's pages do.
        whole = table.combine_chunks()
        with self._replacing(path) as file:
            pq.write_table(whole, file, compression="zstd")
            return file.tell()

    def _write_json(self, path: str, value: dict) -> None:
        with self._replacing(path) as file:
            file.write(json.dumps(value, sort_keys=True).encode() + b"\n")

    @contextlib.contextmanager
    def _replacing(self, path: str) -> Iterator[pa.NativeFile]:
        """Opens a file that comes to stand at the path once it is complete."""
        files = self._place[0]
        # Beam may let two machines make the same shard.
        new = f"{path}.{uuid.uuid4().hex}"
        with files.open_output_stream(new) as file:
            yield file
        files.move(new, path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._place[0].delete_file(path)


def _content_bytes(table: pa.Table) -> int:
    if "content" not in table.column_names:
        return 0
    return pc.sum(pc.binary_length(table["content"])).as_py() or 0
