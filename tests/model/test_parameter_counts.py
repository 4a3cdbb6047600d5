import dataclasses
import math

import jax
import pytest
from flax import nnx

from starcoder_jax.gin_files import packaged_recipes
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.recipes import load_recipe

# The published checkpoints hold so many values; a tied head counts once.
COUNTS = {
    "santacoder_1b": 1_124_886_528,
    "starcoderbase_1b": 1_137_207_296,
    "starcoderbase_3b": 3_043_311_104,
    "starcoderbase_7b": 7_327_263_232,
    "starcoderbase_15b": 15_517_456_384,
    "starcoder2_3b": 3_030_371_328,
    "starcoder2_7b": 7_173_923_840,
    "starcoder2_15b": 15_957_889_024,
    "bloom_176b": 176_247_271_424,
}
# What an overlay leaves to the recipe: how the run computes, not what the model is.
OF_THE_RUN = {"dtype", "rematerialization", "attention_backend"}


def load_model(name):
    return load_recipe(["tiny.gin", f"model/{name}.gin"]).model


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_model_has_its_published_size(name):
    config = load_model(name)
    state = nnx.state(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    leaves = jax.tree.leaves(state)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == COUNTS[name]
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    assert config.head_dim == 128


def test_every_packaged_model_is_counted():
    packaged = {name for name in packaged_recipes() if name.startswith("model/")}
    assert packaged == {f"model/{name}.gin" for name in COUNTS}


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_file_says_all_of_the_architecture(name):
    """Whatever recipe it is laid over, nothing of that recipe's model shows through."""
    other = "starcoderbase_1b" if name.startswith("starcoder2") else "starcoder2_15b"
    overlaid = load_recipe(["tiny.gin", f"model/{other}.gin", f"model/{name}.gin"]).model
    # The rotation's base has no meaning without rotation.
    ignored = OF_THE_RUN | (set() if overlaid.positions == "rope" else {"rope_theta"})
    for field in dataclasses.fields(overlaid):
        if field.name not in ignored:
            expected = getattr(load_model(name), field.name)
            assert getattr(overlaid, field.name) == expected, field.name


def test_what_tells_the_models_apart():
    models = {name: load_model(name) for name in COUNTS}
    erf = {name for name, model in models.items() if model.activation == "gelu_erf"}
    assert erf == {"starcoderbase_7b", "starcoderbase_15b"}
    untied = {name for name, model in models.items() if not model.tied_head}
    assert untied == {"starcoder2_15b"}
    for name, model in models.items():
        assert model.embedding_norm == (name == "bloom_176b")
        if name.startswith("starcoder2"):
            kind = ("rope", 4096, 16384, 0.0)
        elif name == "bloom_176b":
            kind = ("alibi", None, 2048, 0.0)
            assert model.num_kv_heads == model.num_heads
        else:
            kind = ("learned", None, 2048 if name == "santacoder_1b" else 8192, 0.1)
            assert model.num_kv_heads == 1
        found = (model.positions, model.sliding_window, model.max_length, model.residual_dropout)
        assert found == kind, name
        assert model.embedding_dropout == model.attention_dropout == model.residual_dropout
