"""A run that starts from a model: its architecture, its parameters and its tokenizer."""

import dataclasses
import pathlib

from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.hf.checkpoint import HfParameters
from starcoder_jax.hf.tokenizer_files import copy_companions
from starcoder_jax.recipes import Recipe
from starcoder_jax.training.checkpoint import has_begun
from starcoder_jax.training.load import open_parameters
from starcoder_jax.training.orbax_parameters import OrbaxParameters

# Fields of the architecture that a run may change on parameters that were trained with others:
# how it is computed, dropout, and what StarCoder2's long-context stage changed.
_FREE = (
    "dtype",
    "rematerialization",
    "attention_backend",
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "rope_theta",
    "sliding_window",
)
# A vocabulary table may have this many rows more than the tokenizer has ids: Megatron pads it to a
# multiple of 128 times the tensor-parallel size.
_MAX_PADDING = 1024


def open_initial_checkpoint(recipe: Recipe) -> HfParameters | OrbaxParameters:
    """The parameters at `train.initial_checkpoint`.

    Raises:
        ValueError: they cannot be read, or are those of another architecture.
    """
    path = recipe.train.initial_checkpoint
    source = open_parameters(path)
    wanted, found = dataclasses.asdict(recipe.model), dataclasses.asdict(source.config)
    free = _FREE if recipe.model.positions == "learned" else (*_FREE, "max_length")
    differences = [
        f"model.{name}={wanted[name]!r} (the checkpoint: {value!r})"
        for name, value in found.items()
        if wanted[name] != value and name not in free
    ]
    if differences:
        raise ValueError(
            f"{path} has another architecture than the recipe: {', '.join(differences)}. A recipe "
            "that leaves the section model open takes it from the checkpoint"
        )
    return source


def bring_tokenizer(recipe: Recipe, workdir: pathlib.Path) -> str | None:
    """Puts the tokenizer of the initial checkpoint into a new working directory.

    Returns:
        The path of the tokenizer to prepare data with; None: one is to be trained.

    Raises:
        ValueError: the initial checkpoint cannot be used, or the tokenizer does not fit it.
    """
    path = recipe.tokenizer.path
    if recipe.train.initial_checkpoint is None:
        return path
    if has_begun(workdir):  # a run that goes on needs its initial checkpoint no more
        return path or str(workdir)
    source = open_initial_checkpoint(recipe)
    tokenizer = load_tokenizer(path or source.folder)
    check_vocabulary(recipe, tokenizer)
    if path is None:
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer.save(workdir)
        copy_companions(source.folder, workdir)
    return path or str(workdir)


def check_vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Checks that model and tokenizer agree on the vocabulary.

    Raises:
        ValueError: they do not.
    """
    rows, ids = recipe.model.vocab_size, tokenizer.vocab_size
    if not ids <= rows <= ids + _MAX_PADDING:
        raise ValueError(
            f"model.vocab_size={rows}, but the tokenizer has {ids} ids: the model needs that many "
            f"rows, and at most {_MAX_PADDING} more as padding"
        )
