"""Writes tensors as safetensors, in one file or in shards with an index."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by name from here on)
import numpy as np

# Keyed by their names in safetensors headers.
DTYPES = {
    "BF16": np.dtype("bfloat16"),
    "BOOL": np.dtype("bool"),
    "F16": np.dtype("float16"),
    "F32": np.dtype("float32"),
    "F64": np.dtype("float64"),
    "I8": np.dtype("int8"),
    "I16": np.dtype("int16"),
    "I32": np.dtype("int32"),
    "I64": np.dtype("int64"),
    "U8": np.dtype("uint8"),
    "U16": np.dtype("uint16"),
    "U32": np.dtype("uint32"),
    "U64": np.dtype("uint64"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

SINGLE_FILE = "model.safetensors"
INDEX_SUFFIX = ".index.json"
_BLOCK_BYTES = 2**24


def write_tensors(
    directory: str | os.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    read: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes tensors as safetensors, in one file or in shards with an index.

    One tensor at a time is in memory, which is why the safetensors library does not write them: it
    wants all of a file at once. The files are on disk when the function returns.

    Args:
        directory: exists and has no tensor files yet.
        shapes: of the tensors by name, in the order to write them in.
        dtype: of all tensors.
        read: gives a tensor by name; called once for each, in order.
        max_shard_bytes: of tensors in one file. A larger tensor has a file of its own.

    Raises:
        ValueError: safetensors has no such dtype, or `read` gave another shape or dtype than
            announced.
        OSError: a file cannot be written.
    """
    directory, dtype = pathlib.Path(directory), np.dtype(dtype)
    if dtype not in _DTYPE_NAMES:
        raise ValueError(f"safetensors files cannot hold {dtype.name} tensors")
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards = _packed(sizes, max_shard_bytes)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [SINGLE_FILE]
    for file, names in zip(files, shards, strict=True):
        with open(directory / file, "xb") as stream:
            stream.write(_header({name: shapes[name] for name in names}, sizes, dtype))
            for name in names:
                _write_tensor(stream, name, read(name), shapes[name], dtype)
            _sync(stream)
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(math.prod(shape) for shape in shapes.values()),
                "total_size": sum(sizes.values()),
            },
            "weight_map": {name: files[i] for i, names in enumerate(shards) for name in names},
        }
        with open(directory / f"{SINGLE_FILE}{INDEX_SUFFIX}", "xb") as stream:
            stream.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")
            _sync(stream)


def _packed(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Divides names, in order, into shards that are as full as may be."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _header(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: np.dtype
) -> bytes:
    """Returns the first bytes of a safetensors file, up to the data of its first tensor."""
    # transformers refuses files that do not say whose layout their tensors have.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + sizes[name]
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _write_tensor(
    file: BinaryIO, name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    # A function of its own also so that nothing holds a tensor while the next one is read.
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise ValueError(
            f"{name!r} was announced as {dtype.name} {list(shape)} and turned out to be "
            f"{array.dtype.name} {list(array.shape)}"
        )
    rows = np.atleast_1d(array)
    # By blocks, so that a transposed array is never copied whole.
    step = max(1, _BLOCK_BYTES * len(rows) // max(1, rows.nbytes))
    for start in range(0, len(rows), step):
        block = np.ascontiguousarray(rows[start : start + step])
        file.write(block.reshape(-1).view(np.uint8))


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
