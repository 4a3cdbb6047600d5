"""Writes, damages and compares tensor files, for the tests of them."""

import json

import ml_dtypes
import numpy as np
import pytest

from starcoder_jax.hf.shards import write_tensors
from starcoder_jax.hf.tensors import open_tensors

SHAPES = {"b.matrix": (3, 5), "a.scalar": (), "c.none": (0,), "d.empty": (2, 0, 3), "e": (7,)}
FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def arrays_of(shapes, dtype):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(directory, arrays, **options):
    shapes = {name: array.shape for name, array in arrays.items()}
    dtype = next(iter(arrays.values())).dtype
    write_tensors(directory, shapes, dtype, arrays.__getitem__, **options)


def check_holds(files, arrays):
    assert files.shapes == {name: array.shape for name, array in arrays.items()}
    assert files.dtypes == {name: array.dtype for name, array in arrays.items()}
    for name, expected in arrays.items():
        found = files.read(name)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.flags.c_contiguous and found.flags.writeable and found.flags.owndata
        assert found.tobytes() == expected.tobytes()


def message_of(directory, *names):
    """The message with which a checkpoint is refused, one line that has the names in it."""
    with pytest.raises(ValueError) as error:
        open_tensors(directory)
    message = str(error.value)
    assert "\n" not in message
    for name in [str(directory), *names]:
        assert name in message
    return message


def write_index(directory, weight_map, name="model.safetensors.index.json"):
    values = {"metadata": {"total_size": 1, "other": None}, "weight_map": weight_map}
    (directory / name).write_text(json.dumps(values))
