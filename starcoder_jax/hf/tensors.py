"""Reads the tensor files of Hugging Face checkpoints: safetensors and PyTorch's pickles."""

import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import safetensors

from starcoder_jax.hf.shards import DTYPES, INDEX_SUFFIX, SINGLE_FILE

_TORCH_DTYPES = {f"torch.{dtype.name}": dtype for dtype in DTYPES.values()}

_TORCH = "pytorch_model.bin"

# The files of a checkpoint, with the names of the tensors that an index places in each.
_Files = Mapping[pathlib.Path, Collection[str] | None]


class SafetensorsFiles:
    """The tensors in safetensors files.

    Attributes:
        shapes: of every tensor in all files, by name.
        dtypes: likewise.

    Args:
        files: path to the names of the tensors that must be in it, or None if any may.

    Raises:
        ValueError: a file cannot be read, is damaged, or holds other tensors than it must.
    """

    def __init__(self, files: _Files):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._places: dict[str, tuple[pathlib.Path, int]] = {}
        for path, expected in files.items():
            header, data_start = _read_header(path)
            _check_names(path, header, expected)
            for name, entry in header.items():
                self.dtypes[name] = _known_dtype(path, name, entry["dtype"], DTYPES)
                self.shapes[name] = tuple(entry["shape"])
                self._places[name] = (path, data_start + entry["data_offsets"][0])

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as stored, a new array in C order; several threads may read at once.

        Raises:
            KeyError: there is no such tensor.
            ValueError: the file has shrunk since it was opened.
        """
        path, start = self._places[name]
        array = np.empty(self.shapes[name], self.dtypes[name])
        rest = memoryview(array.reshape(-1).view(np.uint8))
        # Not mapped: the pages of a mapped file count as memory of the process, so that reading a
        # checkpoint would seem to take all of its size. Opened anew: threads share no position.
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise ValueError(f"{path}: was cut short while it was being read")
                rest = rest[count:]
        return array


class TorchFiles:
    """The tensors in PyTorch's files of pickled weights.

    Only weights are unpickled, never other objects, whose unpickling could run code. The files are
    mapped into memory: what was read counts as memory of the process until the system wants it
    back. Files from before PyTorch 1.6 cannot be mapped and are held in memory whole.

    Attributes:
        shapes: of every tensor in all files, by name.
        dtypes: likewise.

    Args:
        files: path to the names of the tensors that must be in it, or None if any may.

    Raises:
        ValueError: PyTorch is not installed, or a file cannot be read, is damaged, or holds
            anything else than the tensors it must.
    """

    def __init__(self, files: _Files):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._tensors: dict[str, Any] = {}
        for path, expected in files.items():
            tensors = _load_torch(path)
            _check_names(path, tensors, expected)
            for name, tensor in tensors.items():
                self.dtypes[name] = _known_dtype(path, name, str(tensor.dtype), _TORCH_DTYPES)
                self.shapes[name] = tuple(tensor.shape)
            self._tensors |= tensors

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as stored, a new array in C order; several threads may read at once.

        Raises:
            KeyError: there is no such tensor.
        """
        import torch

        tensor = self._tensors[name]
        array = np.empty(self.shapes[name], self.dtypes[name])
        # By way of integers, because PyTorch does not know NumPy's bfloat16.
        integers = torch.from_numpy(array.view(f"i{array.itemsize}"))
        integers.view(tensor.dtype).copy_(tensor.detach())
        return array


def open_tensors(directory: str | os.PathLike) -> SafetensorsFiles | TorchFiles:
    """Opens the tensor files of a checkpoint.

    Looks for `model.safetensors`, then `model.safetensors.index.json` and the shards it names, then
    `pytorch_model.bin`, then `pytorch_model.bin.index.json` and its shards.

    Args:
        directory: of the checkpoint.

    Raises:
        ValueError: there are no such files, or they are damaged or contradict each other.
    """
    directory = pathlib.Path(directory)
    kinds = {SINGLE_FILE: SafetensorsFiles, _TORCH: TorchFiles}
    for name, kind in kinds.items():
        # A broken link counts as there: nobody means to have the next kind opened instead.
        if os.path.lexists(directory / name):
            return kind({directory / name: None})
        if os.path.lexists(directory / f"{name}{INDEX_SUFFIX}"):
            return kind(_read_index(directory / f"{name}{INDEX_SUFFIX}"))
    looked_for = " or ".join(f"{name}[{INDEX_SUFFIX}]" for name in kinds)
    raise ValueError(f"{directory}: has no tensors, which would be in {looked_for}")


def _read_index(index: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """Reads which tensors are in which files."""
    files: dict[pathlib.Path, set[str]] = {}
    try:
        for tensor, name in json.loads(index.read_bytes())["weight_map"].items():
            files.setdefault(pathlib.Path(name), set()).add(tensor)
    except OSError as error:
        raise ValueError(f"{index}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index}: not an index, whose weight_map names tensors' files") from None
    if not files:
        raise ValueError(f"{index}: its weight_map names no tensors")
    for name in files:
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{index}: names the file {str(name)!r}, outside of its directory")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: names the file {str(name)!r}, which is missing")
    return {index.parent / name: tensors for name, tensors in files.items()}


def _check_names(
    path: pathlib.Path, found: Collection[str], expected: Collection[str] | None
) -> None:
    if expected is None:
        return
    for name in expected:
        if name not in found:
            raise ValueError(f"{path}: lacks the tensor {name!r}, which the index places there")
    for name in found:
        if name not in expected:
            raise ValueError(
                f"{path}: holds the tensor {name!r}, which the index does not place there"
            )


def _known_dtype(
    path: pathlib.Path, name: str, dtype: str, known: Mapping[str, np.dtype]
) -> np.dtype:
    if dtype not in known:
        raise ValueError(
            f"{path}: the tensor {name!r} is {dtype}, which is not supported: convert it to a "
            "floating-point type of 16 bits or more"
        )
    return known[dtype]


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """Returns what a safetensors file says of each tensor, and where their data begins."""
    try:
        # Checks that the header is well-formed and the tensors fill the file, without overlap.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or damaged: {error}") from None
    header.pop("__metadata__", None)
    return header, 8 + length


def _load_torch(path: pathlib.Path) -> dict[str, Any]:
    """Returns the tensors in a file of PyTorch's by name."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{path}: reading it needs PyTorch; install starcoder_jax[parity], or convert the "
            "checkpoint to safetensors"
        ) from None
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: holds more than tensors, or is damaged; if you trust it, convert it to "
            "safetensors"
        ) from None
    except Exception as error:  # PyTorch's errors about damaged files are of many types.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: PyTorch cannot read it, is it whole? {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{path}: the tensor {name!r} is not dense, which is not supported")
    return content
