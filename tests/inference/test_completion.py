import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.data.fim import FimConfig
from starcoder_jax.inference.completion import complete, infill_prompt
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh

NEW = 8


@pytest.fixture(scope="module")
def loaded(trained):
    return sj.load_model(trained)


@pytest.fixture(scope="module")
def prompt(loaded):
    return loaded[1].encode("def read_line(line, limit=3):\n    for")


@pytest.fixture(scope="module")
def greedy(loaded, prompt):
    """The most likely continuation, by whole logits of the sequence alone."""
    sequence = list(prompt)
    for _ in range(NEW):
        logits = loaded[0](jnp.array([sequence], jnp.int32))
        sequence.append(int(jnp.argmax(logits[0, -1])))
    return sequence[len(prompt) :]


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


def test_generate_and_infill_return_text(loaded, prompt, greedy):
    model, tokenizer = loaded
    texts = [tokenizer.decode(prompt), "def "]
    completions = sj.generate(model, tokenizer, texts, max_tokens=NEW)
    assert completions[0] == tokenizer.decode(greedy)
    assert completions[1] == sj.generate(model, tokenizer, ["def "], max_tokens=NEW)[0]
    prefix, suffix = "def read_line(line, limit=", "):\n    for item in line:\n"
    filled = sj.infill(model, tokenizer, prefix, suffix, max_tokens=NEW)
    marked = f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    assert filled == sj.generate(model, tokenizer, [marked], max_tokens=NEW)[0]
    assert "<" not in filled


def test_infill_prompt(loaded):
    tokenizer = loaded[1]
    prompt = infill_prompt(tokenizer, FimConfig(), tokenizer.encode("a"), tokenizer.encode("b"))
    assert prompt.dtype == np.int32
    assert tokenizer.decode(prompt) == "<fim_prefix>a<fim_suffix>b<fim_middle>"
    with pytest.raises(ValueError, match="<nothing>"):
        infill_prompt(tokenizer, FimConfig(suffix_token="<nothing>"), prompt, prompt)


def test_an_empty_prompt_is_an_error(loaded):
    with pytest.raises(ValueError, match="the prompt is empty"):
        sj.generate(*loaded, [""])


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


def test_load_model(trained, loaded):
    model = sj.load_model(trained / "checkpoints" / "35", dtype="bfloat16")[0]
    assert model.config.dtype == "bfloat16"
    leaves, others = (jax.tree.leaves(nnx.state(m)) for m in (model, loaded[0]))
    for x, other in zip(leaves, others, strict=True):
        assert x.dtype == jnp.bfloat16 and other.dtype == np.float32 and x.shape == other.shape
        assert x.sharding.device_set == {jax.devices()[0]}
    assert not np.array_equal(model.embedding[...], loaded[0].embedding[...])
    with pytest.raises(ValueError, match="no checkpoint"):
        sj.load_model(trained.parent)
