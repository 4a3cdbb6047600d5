import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.inference.uncached import complete
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh

NEW = 8  # as many as the fixture `greedy` has


def test_greedy_is_the_argmax_step_by_step(loaded, prompt, greedy):
    assert len(set(greedy)) > 2
    new = complete(loaded[0], prompt, NEW)
    assert new.dtype == np.int32 and new.tolist() == greedy
    assert complete(loaded[0], prompt, NEW, rows=3).tolist() == greedy


def test_a_stop_id_ends_it_and_is_left_out(loaded, prompt, greedy):
    for stop in {greedy[0], greedy[3], greedy[-1]}:
        expected = greedy[: greedy.index(stop)]
        new = complete(loaded[0], prompt, NEW, stop_ids=frozenset([stop, 999]))
        assert new.tolist() == expected


def test_rows_that_pad_the_vocabulary_are_never_chosen(loaded, prompt, greedy):
    model = loaded[0]
    limit = max(greedy)
    new = complete(model, prompt, NEW, num_ids=limit)
    assert len(new) == NEW and new.max() < limit
    first = next(i for i, token in enumerate(greedy) if token == limit)
    assert new[:first].tolist() == greedy[:first]
    sequence = np.append(prompt, greedy[:first])
    logits = model(jnp.array(sequence, jnp.int32)[None])[0, -1]
    assert new[first] == int(jnp.argmax(logits[:limit]))


def test_on_a_mesh(trained, prompt, greedy):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    model, _ = sj.load_model(trained, mesh=mesh)
    assert model.embedding[...].sharding.spec == jax.P("tensor", "fsdp")
    with jax.set_mesh(mesh):
        assert complete(model, prompt, NEW, rows=4).tolist() == greedy


def test_learned_positions_are_a_limit():
    config = sj.DecoderConfig(
        vocab_size=16,
        num_layers=1,
        embed_dim=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=16,
        max_length=20,
        positions="learned",
        dtype="float32",
    )
    model = sj.Decoder(config, rngs=nnx.Rngs(0))
    prompt = np.arange(12)
    assert len(complete(model, prompt, 8)) == 8
    with pytest.raises(ValueError, match=r"12 tokens and 9 new ones .* 20 learned positions"):
        complete(model, prompt, 9)
