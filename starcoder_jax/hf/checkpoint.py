"""A Hugging Face checkpoint as a source of parameters, and its writer."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable

import ml_dtypes  # noqa: F401 (NumPy knows bfloat16 by name from here on)
import numpy as np

from starcoder_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from starcoder_jax.hf.ahead import ahead
from starcoder_jax.hf.config import config_json, model_type, read_config
from starcoder_jax.hf.layout import HEAD, PREFIXES, Path, Read, Tensor, hf_tensors
from starcoder_jax.hf.shards import write_tensors
from starcoder_jax.hf.tensors import open_tensors
from starcoder_jax.hf.tokenizer_files import copy_companions, write_tokenizer
from starcoder_jax.model.config import DecoderConfig

# Masks and tables that older versions of transformers saved beside the parameters.
_BUFFERS = re.compile(r".*(attn\.(masked_)?bias|rotary_emb\.inv_freq)")
_LISTED = 4  # names at most in a message


def is_hf_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a directory is a Hugging Face checkpoint, by its config.json."""
    return (pathlib.Path(path) / "config.json").is_file()


class HfParameters:
    """The parameters in a Hugging Face checkpoint, read one by one in the layout of `Decoder`.

    Attributes:
        config: the architecture; its dtype is that of the stored parameters.
        dtype: the same.
        folder: where the tokenizer lies, the directory.

    Args:
        directory: with config.json and tensor files.

    Raises:
        ValueError: config or files cannot be read, are of a model this codebase has no layout for,
            or their tensors are not those that the config announces.
    """

    def __init__(self, directory: str | os.PathLike):
        directory = pathlib.Path(directory)
        found = read_config(directory)
        self._files = open_tensors(directory)
        tensors = hf_tensors(found.decoder, found.model_type)
        prefix = PREFIXES[found.model_type]
        if not any(name.startswith(prefix) for name in self._files.shapes):
            # Saved from the base model, which has no head and knows nothing of being a part.
            tensors = [
                dataclasses.replace(tensor, name=tensor.name.removeprefix(prefix))
                for tensor in tensors
            ]
        self._check(directory, tensors)
        if found.decoder.tied_head and HEAD in self._files.shapes:
            self._check_tied_head(directory, tensors[0].name)
        self._holders = {
            (part.path, tensor.layer): tensor for tensor in tensors for part in tensor.parts
        }
        dtypes = {self._files.dtypes[tensor.name].name for tensor in tensors}
        # Mixed files, of float32 norms among bfloat16 matrices say, lose nothing in float32.
        dtype: str = dtypes.pop() if len(dtypes) == 1 else "float32"
        self.config: DecoderConfig = dataclasses.replace(found.decoder, dtype=dtype)
        self.dtype = dtype
        self.folder = directory
        self._last: tuple[str, dict[Path, np.ndarray]] | None = None

    def read(self, path: Path, layer: int | None = None) -> np.ndarray:
        """One parameter, of one layer where it is stacked, in the dtype of `config`.

        Parameters that share a tensor (queries, keys and values) are best asked for one after the
        other: the last tensor is kept.
        """
        tensor = self._holders[path, layer]
        if self._last is None or self._last[0] != tensor.name:
            self._last = None  # Before the next is read: there is never a second one.
            array = self._files.read(tensor.name).astype(self.config.dtype, copy=False)
            self._last = (tensor.name, tensor.split(array))
        return self._last[1][path]

    def _check(self, directory: pathlib.Path, tensors: list[Tensor]) -> None:
        expected = {tensor.name: tensor.shape for tensor in tensors}
        shapes = self._files.shapes
        missing = [name for name in expected if name not in shapes]
        extra = [
            name
            for name in shapes
            if name not in expected and name != HEAD and not _BUFFERS.fullmatch(name)
        ]
        if missing or extra:
            parts = [
                f"{what} {_listing(names)}"
                for what, names in (("lacks", missing), ("has unknown", extra))
                if names
            ]
            raise ValueError(
                f"{directory} does not hold what its config.json says: it {' and '.join(parts)}"
            )
        wrong = [
            f"{name} is {list(shapes[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if shapes[name] != shape
        ]
        if wrong:
            raise ValueError(
                f"{directory}: tensors have other shapes than config.json says: {_listing(wrong)}"
            )
        floats = ("float32", "bfloat16", "float16")
        wrong = [name for name in expected if self._files.dtypes[name].name not in floats]
        if wrong:
            raise ValueError(
                f"{directory}: {wrong[0]} is {self._files.dtypes[wrong[0]].name}; parameters must "
                f"be {', '.join(floats)}: quantized checkpoints are not supported"
            )

    def _check_tied_head(self, directory: pathlib.Path, embedding: str) -> None:
        """A tied head is the embedding; some files hold it nevertheless."""
        if not np.array_equal(self._files.read(HEAD), self._files.read(embedding)):
            raise ValueError(
                f"{directory}: config.json ties the output head to the embedding, but {HEAD} "
                f"differs from {embedding}: set tie_word_embeddings to false there"
            )


def write_hf_checkpoint(
    directory: pathlib.Path,
    config: DecoderConfig,
    read: Read,
    *,
    dtype: str,
    tokenizer: Tokenizer | None,
    companions: pathlib.Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Writes parameters as a Hugging Face checkpoint, two tensors in memory at a time.

    Args:
        directory: exists and is empty.
        config: the architecture.
        read: gives the parameters in the layout of `Decoder`.
        dtype: to write, "float32", "bfloat16" or "float16".
        tokenizer: to write beside the model, if any.
        companions: a directory whose further tokenizer files and generation_config.json go along.
        advance: called for each tensor.

    Raises:
        ValueError: no architecture of transformers can express the config.
        OSError: the files cannot be written.
    """
    tensors = {tensor.name: tensor for tensor in hf_tensors(config, model_type(config))}

    def join(name: str) -> np.ndarray:
        tensor = tensors[name]
        parts = {part.path: read(part.path, tensor.layer) for part in tensor.parts}
        return tensor.join(parts).astype(dtype, copy=False)

    end_of_text = None if tokenizer is None else tokenizer.special_tokens.get(END_OF_TEXT)
    values = config_json(config, dtype=dtype, end_of_text_id=end_of_text)
    _write_json(directory / "config.json", values)
    ids = {name: values[name] for name in ("bos_token_id", "eos_token_id") if name in values}
    _write_json(directory / "generation_config.json", ids)
    if tokenizer is not None:
        write_tokenizer(tokenizer, directory)
    if companions is not None:
        copy_companions(companions, directory)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    joined = ahead(join, tensors)

    def next_tensor(name: str) -> np.ndarray:
        advance()
        found, array = next(joined)
        assert found == name
        return array

    with contextlib.closing(joined):
        write_tensors(directory, shapes, np.dtype(dtype), next_tensor)


def num_hf_tensors(config: DecoderConfig) -> int:
    """How many tensors `write_hf_checkpoint` writes.

    Raises:
        ValueError: no architecture of transformers can express the config.
    """
    return len(hf_tensors(config, model_type(config)))


def _write_json(path: pathlib.Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
