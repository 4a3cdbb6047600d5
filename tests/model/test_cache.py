"""Decoding with a cache is running the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from starcoder_jax.model.cache import Cache, empty_cache
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder, unstacked
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import sharding_rules

LENGTHS = np.array([1, 9, 12, 16])  # of prompts, padded to 16
STEPS = 14
ROWS = jnp.array([4, 0, 2, 5])  # of the cache
KINDS = {
    "multi-query": dict(num_kv_heads=1),
    "grouped-query": dict(num_kv_heads=2),
    "window": dict(num_kv_heads=2, sliding_window=6),
    "learned": dict(num_kv_heads=1, positions="learned"),
    "alibi": dict(num_kv_heads=4, positions="alibi", embedding_norm=True),
}


def make_model(kind: str, **fields) -> Decoder:
    shape = dict(num_layers=3, embed_dim=32, num_heads=4, mlp_dim=64, max_length=64)
    config = DecoderConfig(
        vocab_size=48, tied_head=False, **({"dtype": "float32"} | shape | KINDS[kind] | fields)
    )
    return Decoder(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 48, (len(LENGTHS), 16 + STEPS))


def logits_by_steps(model: Decoder, tokens: np.ndarray, stacked: bool, max_length: int = 40):
    """Of the prompts' last tokens and of each one after: [STEPS + 1, rows, vocab]."""
    prefill = jax.jit(lambda model, tokens, lengths: model.prefill(tokens, lengths))
    decode = jax.jit(lambda model, tokens, cache: model.decode(tokens, cache))
    hidden, prompts = prefill(model, jnp.array(tokens[:, :16]), jnp.array(LENGTHS))
    cache = empty_cache(model.config, 6, max_length, model.spec, stacked=stacked)
    # What a longer sequence left in the rows must not be seen.
    cache = Cache(jax.tree.map(lambda x: x + 7, cache.layers), cache.lengths + 29)
    cache = cache.insert(ROWS, prompts)
    found = [model.logits(hidden)]
    for step in range(STEPS):
        new = np.zeros(6, np.int32)
        new[ROWS] = tokens[np.arange(len(LENGTHS)), LENGTHS + step]
        hidden, cache = decode(model, jnp.array(new), cache)
        found.append(model.logits(hidden)[ROWS])
    return np.stack(found), cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "unstacked"])
def test_steps_give_the_logits_of_the_whole_sequence(kind, stacked, tokens):
    model = make_model(kind)
    whole = model(jnp.array(tokens))
    used = model if stacked else unstacked(model)
    found, cache = logits_by_steps(used, tokens, stacked)
    for step, logits in enumerate(found):
        expected = whole[np.arange(len(LENGTHS)), LENGTHS - 1 + step]
        np.testing.assert_allclose(logits, expected, atol=5e-6)
    assert cache.capacity == (6 if kind == "window" else 40)
    assert cache.lengths[ROWS].tolist() == (LENGTHS + STEPS).tolist()
    heads = model.config.num_kv_heads
    assert cache.nbytes == 2 * 3 * 6 * heads * cache.capacity * 8 * 4  # float32, heads of 8


def test_a_capacity_below_the_window_is_enough_for_short_sequences(tokens):
    model = make_model("window", sliding_window=50)
    whole = model(jnp.array(tokens))
    found, cache = logits_by_steps(model, tokens, True, max_length=30)
    assert cache.capacity == 30
    expected = whole[np.arange(len(LENGTHS)), LENGTHS - 1 + STEPS]
    np.testing.assert_allclose(found[-1], expected, atol=5e-6)


def test_the_cache_is_in_the_dtype_of_the_model():
    cache = empty_cache(
        make_model("window", dtype="bfloat16").config, 2, 8, lambda *_: None, stacked=True
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cache.layers)} == {"bfloat16"}


def test_positions_in_the_ring():
    cache = Cache((jnp.zeros((3, 1, 4, 2)),) * 2, jnp.array([0, 2, 9]))
    assert cache.positions().tolist() == [[0, -3, -2, -1], [0, 1, 2, -1], [8, 9, 6, 7]]


def test_released_layers_are_freed():
    model = make_model("multi-query")
    tokens = jnp.arange(5)[None]
    expected = model(tokens)
    stacked = jax.tree.leaves(nnx.state(model.layers))
    apart = unstacked(model, release=True)
    assert all(leaf.is_deleted() for leaf in stacked)
    np.testing.assert_allclose(apart(tokens), expected, atol=5e-6)


@pytest.mark.parametrize("tensor", [1, 2])
def test_prefill_and_decode_on_a_mesh(tensor, tokens):
    model = make_model("grouped-query")
    whole = model(jnp.array(tokens))
    mesh = make_mesh(MeshConfig(fsdp=4 // tensor, tensor=tensor, replica=1), jax.devices()[:4])
    spec = sharding_rules(model.config, mesh)
    with jax.set_mesh(mesh):
        graph, state = nnx.split(Decoder(model.config, rngs=nnx.Rngs(0), spec=spec))
        values = nnx.split(model)[1]
        placed = jax.tree.map(lambda x, y: jax.device_put(y, x.sharding), state, values)
        split = nnx.merge(graph, placed)
        prompts = jax.reshard(jnp.array(tokens[:, :16]), spec("batch", "length"))
        lengths = jax.reshard(jnp.array(LENGTHS), spec("batch"))
        hidden, kept = jax.jit(lambda m, t, n: m.prefill(t, n))(split, prompts, lengths)
        got = split.logits(hidden)
        assert got.sharding.spec == spec("batch", "vocab")
        rows = np.arange(len(LENGTHS))
        np.testing.assert_allclose(got, whole[rows, LENGTHS - 1], atol=5e-6)
        assert kept.layers[0].sharding.spec == spec("layers", "batch", None, "kv_heads", None)
