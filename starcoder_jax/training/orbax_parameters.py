"""An Orbax checkpoint as a source of parameters, and its writer: layer by layer, unlike Orbax."""

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Callable

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from starcoder_jax.hf.ahead import ahead
from starcoder_jax.hf.layout import Path, Read, Shape
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.training.checkpoint import combine_checksums, first_line, read_about
from starcoder_jax.training.parameters import parameter_shapes, reading_order, unflatten


class OrbaxParameters:
    """The parameters in a checkpoint of a training run or of a conversion, read one by one.

    Attributes:
        config: the architecture; its dtype is that of the run's activations.
        dtype: of the stored parameters.
        folder: where the tokenizer lies, the working directory.

    Args:
        checkpoint: the folder of one step.

    Raises:
        ValueError: it cannot be read, or its arrays are not those of its architecture.
    """

    def __init__(self, checkpoint: pathlib.Path):
        self._checkpoint = checkpoint
        try:
            about = read_about(checkpoint)
            self._checksum: int = about["checksums"]["params"]
            self.config = DecoderConfig(**about["model"])
            shapes = parameter_shapes(self.config)
            self._arrays = {
                path: tensorstore.open(_array(checkpoint / "params", path)).result()
                for path in shapes
            }
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {checkpoint} cannot be read: {first_line(error)}"
            ) from error
        for path, shape in shapes.items():
            if self._arrays[path].shape != shape:
                raise ValueError(
                    f"checkpoint {checkpoint}: {'.'.join(path)} is "
                    f"{list(self._arrays[path].shape)}, but its architecture makes it {list(shape)}"
                )
        self.dtype: str = self._arrays["embedding",].dtype.name
        self.folder = checkpoint.parent.parent
        self._sums = dict.fromkeys(self._arrays, 0)
        self._unread = set(reading_order(self._arrays, self.config.num_layers))

    def read(self, path: Path, layer: int | None = None) -> np.ndarray:
        """One parameter, of one layer where it is stacked.

        Raises:
            ValueError: its data are damaged. Flipped bits show when everything was read once.
        """
        array = self._arrays[path]
        try:
            values = (array if layer is None else array[layer]).read().result()
        except ValueError as error:
            raise ValueError(
                f"checkpoint {self._checkpoint}: {'.'.join(path)} is damaged: {first_line(error)}"
            ) from error
        if (path, layer) in self._unread:
            self._unread.remove((path, layer))
            self._sums[path] += words(values)
            if not self._unread and combine_checksums(self._sums.values()) != self._checksum:
                raise ValueError(
                    f"checkpoint {self._checkpoint}: its parameters are damaged: their checksum "
                    "is another one"
                )
        return values


def write_orbax_checkpoint(
    checkpoint: pathlib.Path,
    config: DecoderConfig,
    read: Read,
    *,
    dtype: str,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes parameters as a checkpoint without optimizer state, one tensor in memory at a time.

    Args:
        checkpoint: the folder to make.
        config: the architecture.
        read: gives the parameters.
        dtype: to write, "float32", "bfloat16" or "float16".
        advance: called when a parameter, or one layer of it, is written.

    Raises:
        OSError: it cannot be written.
    """
    shapes = parameter_shapes(config)
    # Orbax makes the folder, and with it everything that its readers look for, of arrays without
    # content; each is then made anew in its size and filled in parts, which Orbax itself cannot.
    empty = {path: np.zeros([1] * len(shape), dtype) for path, shape in shapes.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(checkpoint.absolute() / "params", unflatten(empty))
    arrays = {
        path: tensorstore.open(
            _array(checkpoint / "params", path) | {"metadata": _metadata(path, shape, dtype)},
            create=True,
            delete_existing=True,
        ).result()
        for path, shape in shapes.items()
    }
    sums = dict.fromkeys(shapes, 0)
    order = reading_order(shapes, config.num_layers)
    for (path, layer), values in ahead(lambda item: read(*item), order):
        values = values.astype(dtype, copy=False)
        sums[path] += words(values)
        try:
            (arrays[path] if layer is None else arrays[path][layer]).write(values).result()
        except ValueError as error:  # what this library makes of a full disk
            raise OSError(f"{checkpoint} cannot be written: {first_line(error)}") from error
        advance()
    about = {
        "model": dataclasses.asdict(config),
        "versions": {name: importlib.metadata.version(name) for name in ("starcoder_jax", "jax")},
        "checksums": {"params": combine_checksums(sums.values())},
    }
    (checkpoint / "about").mkdir()
    (checkpoint / "about" / "metadata").write_text(json.dumps(about))


def num_orbax_tensors(config: DecoderConfig) -> int:
    """How often `write_orbax_checkpoint` calls `advance`."""
    return sum(1 for _ in reading_order(parameter_shapes(config), config.num_layers))


def words(values: np.ndarray) -> int:
    """The sum of the bits of an array, seen as unsigned integers of its item size."""
    unsigned = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    return int(unsigned.sum(dtype=np.uint32))


def _array(params: pathlib.Path, path: Path) -> dict:
    """Where Orbax keeps an array: a zarr array, named by its keys, in an OCDBT database."""
    base = params.absolute().as_uri() + "/"
    return {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": ".".join(path) + "/"},
    }


def _metadata(path: Path, shape: Shape, dtype: str) -> dict:
    # A chunk for each layer; trained parameters are noise that no compressor makes smaller.
    chunks = [1, *shape[1:]] if path[0] == "layers" else list(shape)
    return {
        "shape": list(shape),
        "chunks": chunks,
        "dtype": _ZARR_DTYPES[dtype],
        "compressor": None,
    }


_ZARR_DTYPES = {"float32": "<f4", "bfloat16": "bfloat16", "float16": "<f2"}
