"""Recipes of training runs: what the sections of their gin files are."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starcoder_jax import gin_files
from starcoder_jax.data.config import DataConfig, TokenizerConfig
from starcoder_jax.data.fim import FimConfig
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.parallel.mesh import MeshConfig
from starcoder_jax.training.config import EvaluationConfig, TrainConfig
from starcoder_jax.training.loss import LossConfig
from starcoder_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that defines a run; the field names are the sections of a gin file."""

    train: TrainConfig
    model: DecoderConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    mesh: MeshConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    fim: FimConfig
    evaluation: EvaluationConfig


# What may change when a run goes on: where it runs and what it reports, not what it computes.
_FREE_ON_RESUME = re.compile(
    r"mesh\..*|evaluation\..*|data\.(directory|read_workers)|model\.(rematerialization|"
    r"attention_backend)|train\.(log_every|eval_every|checkpoint_every|keep_checkpoints|"
    r"micro_batches|hang_seconds|profile_steps)"
)


def load_recipe(files: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """Reads gin files in order, then overrides.

    Args:
        files: paths, or names among `gin_files.packaged_recipes()`; ".gin" may be left out.
        overrides: "section.field=value". A value that is no Python literal is taken as a string.

    Raises:
        ValueError: a file, a name or a value is wrong, or one is missing; one line that says so.
    """
    return gin_files.load(Recipe, files, overrides, _architecture)


def changed_fields(before: Recipe, after: Recipe) -> list[str]:
    """What keeps `after` from going on with a run of `before`: "section.field: old -> new"."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    return [
        f"{section}.{name}: {old[section][name]!r} -> {value!r}"
        for section, fields in new.items()
        for name, value in fields.items()
        if old[section][name] != value and not _FREE_ON_RESUME.fullmatch(f"{section}.{name}")
    ]


def _architecture(section: str, before: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says of its model; how to compute it is the recipe's to say."""
    if section != "model" or before["train"].initial_checkpoint is None:
        return {}
    from starcoder_jax.training.load import open_parameters  # opens what recipes describe

    fields = dataclasses.asdict(open_parameters(before["train"].initial_checkpoint).config)
    for name in ("dtype", "rematerialization", "attention_backend"):
        del fields[name]
    return fields
