"""Opens a trained model."""

import dataclasses
import os
import pathlib

import jax
from flax import nnx

from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.model.decoder import Decoder, unsharded
from starcoder_jax.parallel.sharding import sharding_rules
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training.checkpoint import find_checkpoint, placed, restore_params


def load_model(
    path: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Decoder, Tokenizer]:
    """The model of a training run and its tokenizer.

    Args:
        path: a working directory (its newest checkpoint is taken) or one of its checkpoints.
        dtype: of activations and matrix products; None: as trained.
        mesh: from `parallel.make_mesh`, to split the parameters over; use the model within
            `jax.set_mesh(mesh)`. None: on one device.

    Raises:
        ValueError: there is no checkpoint, or it cannot be read.
    """
    checkpoint, workdir = find_checkpoint(pathlib.Path(path))
    recipe = load_recipe([str(workdir / "config.gin")])
    config = dataclasses.replace(recipe.model, dtype=dtype or recipe.model.dtype)
    spec = unsharded if mesh is None else sharding_rules(config, mesh)

    def abstract_model():
        return jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), spec=spec))

    if mesh is None:
        model = abstract_model()
    else:
        with jax.set_mesh(mesh):
            model = abstract_model()
    graph, state = nnx.split(model)
    params = restore_params(checkpoint, placed(nnx.to_pure_dict(state), mesh))
    return nnx.merge(graph, params), load_tokenizer(workdir)
