"""Opens models: of training runs, of conversions, and Hugging Face checkpoints."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.hf.checkpoint import HfParameters, is_hf_checkpoint
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.model.spec import unsharded
from starcoder_jax.parallel.sharding import sharding_rules
from starcoder_jax.training.checkpoint import find_checkpoint, placed
from starcoder_jax.training.orbax_parameters import OrbaxParameters
from starcoder_jax.training.parameters import place


def open_parameters(path: str | os.PathLike) -> HfParameters | OrbaxParameters:
    """The parameters at a path, to be read one by one, and what is known of them.

    Args:
        path: a Hugging Face directory (with config.json), the working directory of a run (its
            newest checkpoint is taken), or one of its checkpoints.

    Raises:
        ValueError: there is no checkpoint, or it cannot be read.
    """
    if is_hf_checkpoint(path):
        return HfParameters(path)
    return OrbaxParameters(find_checkpoint(pathlib.Path(path))[0])


def load_model(
    path: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Decoder, Tokenizer]:
    """A model and its tokenizer, read straight onto the devices.

    Args:
        path: a Hugging Face directory, a working directory, or a checkpoint in one.
        dtype: of parameters and computation, "float32", "bfloat16" or "float16"; None: as stored,
            computing as the model was trained.
        mesh: from `parallel.make_mesh`, to split the parameters over; use the model within
            `jax.set_mesh(mesh)`. None: on one device.

    Raises:
        ValueError: there is no checkpoint, it cannot be read, or its tokenizer has more ids than
            its embedding has rows.
    """
    source = open_parameters(path)
    tokenizer = load_tokenizer(source.folder)
    if tokenizer.vocab_size > source.config.vocab_size:
        raise ValueError(
            f"{source.folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model's "
            f"embedding only {source.config.vocab_size} rows: they do not belong together"
        )
    # A run on TPUs may have used a kernel that this machine, or a short text, cannot.
    computed = {"dtype": dtype or source.config.dtype, "attention_backend": "xla"}
    config = dataclasses.replace(source.config, **computed)
    spec = unsharded if mesh is None else sharding_rules(config, mesh)

    def abstract_model():
        return jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), spec=spec))

    if mesh is None:
        model = abstract_model()
    else:
        with jax.set_mesh(mesh):
            model = abstract_model()
    graph, state = nnx.split(model)
    stored = jnp.dtype(dtype or source.dtype)
    abstract = jax.tree.map(lambda x: x.update(dtype=stored), nnx.to_pure_dict(state))
    return nnx.merge(graph, place(source.read, placed(abstract, mesh))), tokenizer
