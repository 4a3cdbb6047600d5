"""Token store: tokenized documents on disk, readable at random as one stream of tokens.

    DIR/store.json                                   manifest, see `TokenStore.manifest`
    DIR/tokenizer.json or DIR/tokenizer.model        the vocabulary that made the tokens
    DIR/TASK/SPLIT-00000-of-00001.array_record       one piece of a document a record
    DIR/TASK/SPLIT.index.npz                         where documents and records begin
    DIR/TASK/SPLIT.documents.jsonl                   one line a document, in stored order

`starcoder_jax.data.shards` says what the files of a split hold.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from array_record.python import array_record_module

from starcoder_jax.data.folders import exclusive_folder
from starcoder_jax.data.shards import SplitWriter, open_shard
from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
MANIFEST = "store.json"


@dataclasses.dataclass(frozen=True)
class DocumentSpan:
    """Tokens [start, stop) of a window belong to one document, its <|endoftext|> included.

    Attributes:
        index: Number of the document in its split, in stored order.
        id: SHA-256 of the document's text, in hex.
        start: First token of the window that is the document's.
        stop: One past the last such token.
    """

    index: int
    id: str
    start: int
    stop: int


class StoreWriter:
    """Writes a token store, which appears under its name only when it is whole.

    Everything is written into `DIRECTORY.partial` and renamed by `finish`. What an interrupted
    writer left there is removed by the next one; a second writer waits for the first.

        with StoreWriter(directory, tokenizer) as writer:
            writer.write_split("python", "train", documents)
            writer.finish({"config": config})

    Args:
        directory: The store to write. It must not exist yet, or be empty, when `finish` is called.
        tokenizer: The vocabulary that made the tokens.
    """

    def __init__(self, directory: str | os.PathLike, tokenizer: Tokenizer):
        self.directory = pathlib.Path(directory).resolve()
        self._tokenizer = tokenizer
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        self._partial = self.directory.with_name(self.directory.name + ".partial")
        self._splits: dict[str, dict[str, dict]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "StoreWriter":
        self._stack.enter_context(exclusive_folder(self._partial))
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def write_split(
        self, task: str, split: str, documents: Iterable[tuple[Mapping, np.ndarray]]
    ) -> dict:
        """Writes the documents of one split of one task, in the order given.

        Args:
            task: Name of the task.
            split: "train" or "validation".
            documents: Pairs of a mapping with `id`, `path`, `repository`, `license` and `bytes`,
                and the document's ids as an integer array [n], the last one <|endoftext|>.

        Returns:
            The manifest's entry: `documents`, `tokens` (each document's <|endoftext|> included),
            `bytes` of text, `shards`, and `files` with their sizes.

        Raises:
            ValueError: A document does not end with <|endoftext|>, or an id is out of range.
        """
        folder = self._partial / task
        folder.mkdir(exist_ok=True)
        with SplitWriter(folder, split, self._dtype) as writer:
            for info, tokens in documents:
                self._check(info, tokens)
                writer.write(info, tokens)
        self._splits.setdefault(task, {})[split] = writer.summary
        return writer.summary

    def finish(self, description: Mapping) -> None:
        """Adds the manifest, with the entries of `description`, and gives the store its name.

        Raises:
            ValueError: Something else already bears that name.
        """
        self._tokenizer.save(self._partial)
        manifest = {
            "format_version": FORMAT_VERSION,
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "vocab_size": self._tokenizer.vocab_size,
            "token_dtype": self._dtype.name,
            "tasks": self._splits,
            **description,
        }
        with open(self._partial / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.rename(self._partial, self.directory)
        except OSError as error:
            raise ValueError(
                f"cannot put the token store at {self.directory}: {error.strerror}; "
                "choose another directory or remove what is there"
            ) from error

    def _check(self, info: Mapping, tokens: np.ndarray) -> None:
        if len(tokens) == 0 or tokens[-1] != self._tokenizer.end_of_text_id:
            raise ValueError(f"document {info['path']!r} does not end with <|endoftext|>")
        if tokens.min() < 0 or tokens.max() >= self._tokenizer.vocab_size:
            raise ValueError(
                f"document {info['path']!r} holds an id outside the vocabulary of "
                f"{self._tokenizer.vocab_size}"
            )


class TokenStore:
    """A token store that was prepared earlier.

    Attributes:
        directory: Where it lies.
        manifest: What store.json says: `format_version`, `tokenizer_fingerprint`, `vocab_size`,
            `token_dtype`, `tasks` (task, then split, to counts) and what the writer described.
        tokenizer: The vocabulary that made the tokens.
        tasks: Names of the tasks.

    Raises:
        ValueError: There is no store, it is incomplete or damaged, another version wrote it, or the
            vocabulary beside it is not the one that made its tokens.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = pathlib.Path(directory).absolute()
        self.manifest = read_manifest(self.directory)
        self.tasks = tuple(self.manifest["tasks"])
        self.tokenizer = load_tokenizer(self.directory)
        if self.tokenizer.fingerprint != self.manifest["tokenizer_fingerprint"]:
            raise ValueError(
                f"the tokenizer in {self.directory} is not the one that made its tokens: put the "
                "original back, or prepare the data again"
            )

    def split(self, task: str, split: str) -> "TokenSplit":
        """Opens the "train" or "validation" split of a task.

        Raises:
            ValueError: There is no such task or split, or one of its files is missing or truncated.
        """
        splits = self.manifest["tasks"].get(task)
        if splits is None:
            raise ValueError(
                f"no task {task!r} in the token store {self.directory}: it holds "
                f"{', '.join(self.tasks)}"
            )
        if split not in splits:
            raise ValueError(f"task {task!r} has no split {split!r}: it has {', '.join(splits)}")
        return TokenSplit(
            self.directory / task,
            split,
            splits[split],
            np.dtype(self.manifest["token_dtype"]).newbyteorder("<"),
        )

    def __reduce__(self):
        return TokenStore, (self.directory,)


class TokenSplit:
    """The documents of one split, each followed by <|endoftext|>, as one stream of tokens.

    Instances can be pickled and used after a fork: files are opened by the process that reads them.

    Attributes:
        num_documents: Number of documents.
        num_tokens: Length of the stream, with the <|endoftext|> after each document.
    """

    def __init__(self, folder: pathlib.Path, name: str, summary: Mapping, dtype: np.dtype):
        self._arguments = (folder, name, summary, dtype)
        self._dtype = dtype
        self._documents_path = folder / f"{name}.documents.jsonl"
        self._shards = [
            folder / shard for shard in summary["files"] if shard.startswith(f"{name}-")
        ]
        for file, size in summary["files"].items():
            _check_size(folder / file, size)
        with np.load(folder / f"{name}.index.npz") as index:
            self._document_starts = index["document_starts"]
            self._record_starts = index["record_starts"]
            self._line_starts = index["line_starts"]
            self._ids = index["ids"]
            self._shard_starts = np.concatenate([[0], np.cumsum(index["shard_records"])])
        self.num_documents = len(self._ids)
        self.num_tokens = int(self._document_starts[-1])
        self._readers: dict[tuple[int, int], array_record_module.ArrayRecordReader] = {}

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Returns ids [start, stop) of the stream as int32 [stop - start].

        Raises:
            ValueError: The range leaves the stream.
        """
        self._check_range(start, stop)
        out = np.empty(stop - start, np.int32)
        if start == stop:
            return out
        first = int(np.searchsorted(self._record_starts, start, side="right")) - 1
        end = int(np.searchsorted(self._record_starts, stop, side="left"))
        position = int(self._record_starts[first]) - start
        for payload in self._records(first, end):
            ids = np.frombuffer(payload, self._dtype)
            low, high = max(position, 0), min(position + len(ids), len(out))
            out[low:high] = ids[low - position : high - position]
            position += len(ids)
        return out

    def documents(self, start: int, stop: int) -> list[DocumentSpan]:
        """Returns which documents tokens [start, stop) of the stream belong to, in order.

        The spans cover the range without gap or overlap; positions count from `start`.

        Raises:
            ValueError: The range leaves the stream.
        """
        self._check_range(start, stop)
        if start == stop:
            return []
        first = int(np.searchsorted(self._document_starts, start, side="right")) - 1
        end = int(np.searchsorted(self._document_starts, stop, side="left"))
        bounds = np.clip(self._document_starts[first : end + 1], start, stop) - start
        return [
            DocumentSpan(index, self._ids[index].tobytes().hex(), int(low), int(high))
            for index, low, high in zip(range(first, end), bounds[:-1], bounds[1:], strict=True)
        ]

    def find_documents(self, ids: Iterable[str]) -> dict[str, list[int]]:
        """Returns the numbers of the documents that have these ids, for those that are there.

        Args:
            ids: SHA-256 in hex, as in `DocumentSpan`.

        Raises:
            ValueError: An id is no SHA-256 in hex.
        """
        wanted = {_digest(name) for name in ids}
        # Eight bytes tell nearly all apart, and compare as one number.
        beginnings = np.ascontiguousarray(self._ids[:, :8]).view("<u8")[:, 0]
        sought = np.array([int.from_bytes(digest[:8], "little") for digest in wanted], "<u8")
        found: dict[str, list[int]] = {}
        for number in np.flatnonzero(np.isin(beginnings, sought)).tolist():
            digest = self._ids[number].tobytes()
            if digest in wanted:
                found.setdefault(digest.hex(), []).append(number)
        return found

    def document_range(self, index: int) -> tuple[int, int]:
        """Returns which tokens [start, stop) of the stream are a document's.

        The <|endoftext|> after it is one of them.
        """
        self._check_document(index)
        return int(self._document_starts[index]), int(self._document_starts[index + 1])

    def document_info(self, index: int) -> dict:
        """Returns `id`, `path`, `repository`, `license`, `bytes` and `tokens` of a document."""
        self._check_document(index)
        with open(self._documents_path, "rb") as file:
            file.seek(int(self._line_starts[index]))
            return json.loads(file.readline())

    def document_tokens(self, index: int) -> np.ndarray:
        """Returns a document's ids, int32 [n], without its <|endoftext|>."""
        self._check_document(index)
        return self.tokens(
            int(self._document_starts[index]), int(self._document_starts[index + 1]) - 1
        )

    def __reduce__(self):
        return TokenSplit, self._arguments

    def _records(self, start: int, stop: int) -> Iterator[bytes]:
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        while start < stop:
            begin, end = int(self._shard_starts[shard]), int(self._shard_starts[shard + 1])
            yield from self._reader(shard).read(start - begin, min(stop, end) - begin)
            start, shard = end, shard + 1

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        # A reader's thread pool does not survive a fork, so that each process opens its own.
        key = (os.getpid(), shard)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers.setdefault(key, open_shard(self._shards[shard]))
        return reader

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(
                f"tokens [{start}, {stop}) are not among the {self.num_tokens} of the split"
            )

    def _check_document(self, index: int) -> None:
        if not 0 <= index < self.num_documents:
            raise ValueError(f"document {index} is not among the {self.num_documents} of the split")


def read_manifest(directory: str | os.PathLike) -> dict:
    """Reads a store's manifest without opening the store.

    Raises:
        ValueError: There is no store, or one of another format version.
    """
    path = pathlib.Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"no token store at {directory}: prepare the data first, or name another directory"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; prepare the data again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the token store at {directory} has format version {version}, this is version "
            f"{FORMAT_VERSION}: prepare the data again"
        )
    return manifest


def _digest(name: str) -> bytes:
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError(f"document id {name!r} is not a SHA-256 in hex: give 64 digits")
    return digest


def _check_size(path: pathlib.Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError:
        raise ValueError(f"{path} is missing: prepare the data again") from None
    if actual != size:
        raise ValueError(f"{path} has {actual} bytes instead of {size}: prepare the data again")
