"""The files of one split of a token store.

    SPLIT-00000-of-00001.array_record    one piece of a tokenized document a record
    SPLIT.index.npz                      where documents and records begin
    SPLIT.documents.jsonl                one line a document, in stored order

A record holds little-endian uint16 ids, or uint32 where the vocabulary needs more. Pieces are at
most `RECORD_TOKENS` long, so that reading a window never reads a whole huge document.

The index holds int64 `document_starts [documents + 1]` and `record_starts [records + 1]`, both in
tokens of the stream, `shard_records [shards]`, `line_starts [documents + 1]` in bytes of the jsonl,
and uint8 `ids [documents, 32]`, the documents' SHA-256 digests.
"""

import array
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from array_record.python import array_record_module

RECORD_TOKENS = 16384
SHARD_TOKENS = 2**27

# group_size 1 lets a reader fetch one record without decompressing its neighbours.
_WRITER_OPTIONS = "group_size:1,zstd:1"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 32768


class SplitWriter:
    """Writes the files of one split, whole once the context is left.

    Attributes:
        summary: When the context was left: `documents`, `tokens` (each document's <|endoftext|>
            included), `bytes` of text, `shards`, and `files` with their sizes.
    """

    def __init__(self, folder: pathlib.Path, name: str, dtype: np.dtype):
        self._folder, self._name, self._dtype = folder, name, dtype
        self._shard = None
        self._shard_tokens = 0
        self._shard_records = array.array("q")
        self._record_lengths = array.array("q")
        self._document_lengths = array.array("q")
        self._line_lengths = array.array("q")
        self._ids = bytearray()
        self._bytes = 0
        self.summary: dict = {}

    def __enter__(self) -> "SplitWriter":
        self._documents = open(self._folder / f"{self._name}.documents.jsonl", "wb")
        return self

    def __exit__(self, kind, *_) -> None:
        self._documents.close()
        self._close_shard()
        if kind is None:
            self._finish()

    def write(self, info: Mapping, tokens: np.ndarray) -> None:
        """Adds a document: what is known of it, and its ids with <|endoftext|> at the end."""
        for start in range(0, len(tokens), RECORD_TOKENS):
            self._write_record(tokens[start : start + RECORD_TOKENS])
        fields = {name: info[name] for name in ("id", "path", "repository", "license", "bytes")}
        line = json.dumps({**fields, "tokens": len(tokens) - 1}).encode() + b"\n"
        self._documents.write(line)
        self._line_lengths.append(len(line))
        self._document_lengths.append(len(tokens))
        self._ids += bytes.fromhex(info["id"])
        self._bytes += info["bytes"]

    def _write_record(self, tokens: np.ndarray) -> None:
        if self._shard is None or self._shard_tokens >= SHARD_TOKENS:
            self._close_shard()
            path = self._shard_path(len(self._shard_records))
            self._shard = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
            self._shard_records.append(0)
            self._shard_tokens = 0
        self._shard.write(tokens.astype(self._dtype).tobytes())
        self._shard_records[-1] += 1
        self._shard_tokens += len(tokens)
        self._record_lengths.append(len(tokens))

    def _close_shard(self) -> None:
        if self._shard is not None:
            try:
                self._shard.close()
            except RuntimeError as error:  # as the library reports a full disk
                raise OSError(str(error)) from error

    def _finish(self) -> None:
        files = [f"{self._name}.documents.jsonl", f"{self._name}.index.npz"]
        shards = len(self._shard_records)
        for number, records in enumerate(self._shard_records):
            _check_records(self._shard_path(number), records)
            files.append(f"{self._name}-{number:05d}-of-{shards:05d}.array_record")
            os.rename(self._shard_path(number), self._folder / files[-1])
        np.savez(
            self._folder / f"{self._name}.index.npz",
            document_starts=_starts(self._document_lengths),
            record_starts=_starts(self._record_lengths),
            line_starts=_starts(self._line_lengths),
            shard_records=np.array(self._shard_records, np.int64),
            ids=np.frombuffer(bytes(self._ids), np.uint8).reshape(-1, 32),
        )
        self.summary = {
            "documents": len(self._document_lengths),
            "tokens": sum(self._document_lengths),
            "bytes": self._bytes,
            "shards": shards,
            "files": {file: (self._folder / file).stat().st_size for file in files},
        }

    def _shard_path(self, number: int) -> pathlib.Path:
        return self._folder / f"{self._name}-{number:05d}"


def open_shard(path: pathlib.Path) -> array_record_module.ArrayRecordReader:
    """Opens a file of records for random access; a read releases the GIL and is thread-safe."""
    return array_record_module.ArrayRecordReader(
        str(path), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES
    )


def _starts(lengths: array.array) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _check_records(path: pathlib.Path, records: int) -> None:
    reader = open_shard(path)
    if not reader.ok() or reader.num_records() != records:
        raise OSError(f"{path} was not written completely: is the disk full?")
    reader.close()
