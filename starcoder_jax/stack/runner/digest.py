"""A digest of the rows of a table, which does not depend on how they lie in memory or on disk."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


def content_digest(table: pa.Table) -> str:
    """SHA-256, as hex, of names, types and values of a table's columns.

    Chunks, slices, the version of a file format and what stands behind a null make no difference.

    Raises:
        ValueError: a column has a type that no step writes, such as a dictionary.
    """
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(repr((field.name, str(field.type), len(column))).encode())
        _update(digest, field.type, column.chunks)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", type_: pa.DataType, chunks: Sequence[pa.Array]) -> None:
    if any(chunk.null_count for chunk in chunks):
        valid = [chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in chunks]
        digest.update(np.packbits(np.concatenate(valid)))
        chunks = [chunk.drop_null() for chunk in chunks]
    else:
        digest.update(b"no nulls")
    if pt.is_struct(type_):
        for number, field in enumerate(type_):
            digest.update(repr((field.name, str(field.type))).encode())
            _update(digest, field.type, [chunk.flatten()[number] for chunk in chunks])
    elif pt.is_list(type_) or pt.is_large_list(type_):
        _update_numbers(digest, [pc.list_value_length(chunk) for chunk in chunks])
        _update(digest, type_.value_type, [chunk.flatten() for chunk in chunks])
    elif _has_offsets(type_):
        _update_numbers(digest, [pc.binary_length(chunk) for chunk in chunks])
        for chunk in chunks:
            digest.update(_text(chunk))
    elif pt.is_boolean(type_):
        for chunk in chunks:
            digest.update(chunk.to_numpy(zero_copy_only=False))
    elif pt.is_primitive(type_) or pt.is_fixed_size_binary(type_) or pt.is_decimal(type_):
        width = type_.bit_width // 8
        for chunk in chunks:
            if len(chunk):
                start = chunk.offset * width
                digest.update(memoryview(chunk.buffers()[1])[start : start + len(chunk) * width])
    elif not pt.is_null(type_):
        raise ValueError(f"a column has type {type_}, which no step may write")


def _has_offsets(type_: pa.DataType) -> bool:
    return (
        pt.is_string(type_)
        or pt.is_binary(type_)
        or pt.is_large_string(type_)
        or pt.is_large_binary(type_)
    )


def _update_numbers(digest: "hashlib._Hash", chunks: Sequence[pa.Array]) -> None:
    for chunk in chunks:
        digest.update(chunk.to_numpy().astype("<i8"))


def _text(chunk: pa.Array) -> memoryview:
    """All bytes of an array without nulls, one value after the other."""
    if not len(chunk):
        return memoryview(b"")
    large = pt.is_large_string(chunk.type) or pt.is_large_binary(chunk.type)
    _, offsets, data = chunk.buffers()
    bounds = np.frombuffer(offsets, np.int64 if large else np.int32)
    start, stop = bounds[chunk.offset], bounds[chunk.offset + len(chunk)]
    return memoryview(data)[start:stop] if data is not None else memoryview(b"")
