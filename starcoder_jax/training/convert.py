"""Writes models: as Hugging Face checkpoints or as Orbax checkpoints."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator

import jax
import numpy as np
import rich.console
import rich.progress

from starcoder_jax.data.folders import exclusive_folder
from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.hf.checkpoint import num_hf_tensors, write_hf_checkpoint
from starcoder_jax.hf.layout import Read
from starcoder_jax.hf.tokenizer_files import copy_companions
from starcoder_jax.model.config import DTYPES, DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.training.load import open_parameters
from starcoder_jax.training.orbax_parameters import num_orbax_tensors, write_orbax_checkpoint
from starcoder_jax.training.parameters import model_reader, parameter_shapes

FORMATS = ("hf", "orbax")


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    format: str,
    dtype: str | None = None,
) -> None:
    """Writes a checkpoint anew in another format, one tensor in memory at a time.

    The target appears when it is whole. Tokenizer files and generation_config.json go along. Of an
    Orbax source the parameters alone are taken: optimizer state stays behind.

    Args:
        source: a Hugging Face directory, a working directory, or a checkpoint in one.
        target: the directory to make; must not exist, or be empty.
        format: "hf" or "orbax".
        dtype: of the parameters written, "float32", "bfloat16" or "float16"; None: as stored.

    Raises:
        ValueError: the source cannot be read, the target is taken, or the format cannot express
            the architecture.
        OSError: the target cannot be written; nothing is left of it.
    """
    parameters = open_parameters(source)
    tokenizer = _tokenizer(parameters.folder)
    config = dataclasses.replace(parameters.config, dtype=dtype or parameters.config.dtype)
    dtype = dtype or parameters.dtype
    _write(config, parameters.read, target, format, dtype, tokenizer, parameters.folder)


def save_model(
    model: Decoder,
    path: str | os.PathLike,
    format: str = "hf",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes a model: with format "hf" what transformers and vLLM open, with "orbax" what we do.

    Args:
        model: on one device or on a mesh. The parameters are written in their own dtype.
        path: the directory to make; must not exist, or be empty.
        format: "hf" or "orbax".
        tokenizer: written beside the model.

    Raises:
        ValueError: the path is taken, the format cannot express the architecture, or the model
            lives on several hosts.
        OSError: the directory cannot be written; nothing is left of it.
    """
    if jax.process_count() > 1:
        raise ValueError("save_model writes from one host: convert the run's checkpoint instead")
    dtype = model.embedding[...].dtype.name
    _write(model.config, model_reader(model), path, format, dtype, tokenizer, None)


def _tokenizer(folder: pathlib.Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint, None where there is none: a model can be converted alone."""
    if any(folder.glob("tokenizer.json")) or any(folder.glob("*.model")):
        return load_tokenizer(folder)
    return None


def _write(
    config: DecoderConfig,
    read: Read,
    target: str | os.PathLike,
    format: str,
    dtype: str,
    tokenizer: Tokenizer | None,
    companions: pathlib.Path | None,
) -> None:
    for name, value, choices in (("format", format, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
    target = pathlib.Path(os.path.abspath(target))
    _check_free(target)
    count = num_hf_tensors(config) if format == "hf" else num_orbax_tensors(config)
    _check_space(target, config, dtype)
    with exclusive_folder(target.with_name(target.name + ".partial")) as folder:
        _check_free(target)  # another process may have written it while this one waited
        with _progress(f"writing {target.name}", count) as advance:
            if format == "hf":
                write_hf_checkpoint(
                    folder,
                    config,
                    read,
                    dtype=dtype,
                    tokenizer=tokenizer,
                    companions=companions,
                    advance=advance,
                )
            else:
                if tokenizer is not None:
                    tokenizer.save(folder)
                if companions is not None:
                    copy_companions(companions, folder)
                write_orbax_checkpoint(
                    folder / "checkpoints" / "0", config, read, dtype=dtype, advance=advance
                )
        folder.rename(target)


def _check_free(target: pathlib.Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is in the way: name another target, or remove it")


def _check_space(target: pathlib.Path, config: DecoderConfig, dtype: str) -> None:
    """Finds out early what would fail late; what fills up meanwhile is found when it happens."""
    parent = next(folder for folder in target.parents if folder.exists())
    values = sum(int(np.prod(shape)) for shape in parameter_shapes(config).values())
    needed, free = values * np.dtype(dtype).itemsize, shutil.disk_usage(parent).free
    if needed > free:
        raise OSError(
            f"{target} would need {needed / 1e9:.1f} GB, but {parent} has {free / 1e9:.1f} GB "
            "free: make space there, or name another target"
        )


@contextlib.contextmanager
def _progress(text: str, total: int) -> Iterator:
    """On a terminal, a bar; gives the function that moves it on by one."""
    console = rich.console.Console(stderr=True)
    columns = rich.progress.Progress.get_default_columns()
    bar = rich.progress.Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    )
    with bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
