"""Checkpoints go from transformers to us and back, and from us to transformers, unchanged."""

import json

import jax
import micro
import numpy as np
import pytest
import reference
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.training.convert import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

TOLERANCE = 1e-4  # of the largest absolute logit
TOKENS = np.random.default_rng(0).integers(0, 320, (2, 24)).astype(np.int32)
SHARED = dict(vocab_size=320, num_layers=3, embed_dim=24, num_heads=6, max_length=64)
OURS = {
    "multi-query": dict(num_kv_heads=1, mlp_dim=40, positions="learned"),
    "multi-head, erf, untied": dict(
        num_kv_heads=6, mlp_dim=96, positions="learned", activation="gelu_erf", tied_head=False
    ),
    "grouped-query, window": dict(num_kv_heads=2, mlp_dim=40, sliding_window=7, rope_theta=500.0),
    "erf, untied": dict(num_kv_heads=3, mlp_dim=40, activation="gelu_erf", tied_head=False),
    "alibi": dict(num_kv_heads=6, mlp_dim=96, positions="alibi", embedding_norm=True),
}


def opened_by_transformers(directory):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    return model


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits.float().numpy()


def assert_close(actual, expected):
    assert np.abs(actual - expected).max() < TOLERANCE * np.abs(expected).max()


def bits(directory):
    """Every tensor in a directory's safetensors files: dtype, shape and bytes by name."""
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= safetensors_torch.load_file(file)
    assert tensors, f"no tensors in {directory}"
    return {
        name: (tensor.dtype, tensor.shape, tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def parameters(directory):
    model, _ = sj.load_model(directory)
    return nnx.to_pure_dict(nnx.state(model))


def assert_equal(actual, expected):
    """Of two trees of parameters: the same values in the same dtypes."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(lambda x: x.dtype, expected)


@pytest.mark.parametrize("case", OURS)
def test_transformers_opens_what_we_write(case, tmp_path):
    config = DecoderConfig(**SHARED, **OURS[case], norm_epsilon=1e-3, dtype="float32")

    @reference.jit
    def random_model():
        model = sj.Decoder(config, rngs=nnx.Rngs(0))
        leaves, structure = jax.tree.flatten(model)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [
            leaf + 0.3 * jax.random.normal(key, leaf.shape)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    model = random_model()
    sj.save_model(model, tmp_path / "ours", tokenizer=reference.tokenizer())
    theirs = opened_by_transformers(tmp_path / "ours")
    assert_close(their_logits(theirs), np.asarray(reference.jit(model.__call__)(TOKENS)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", reference.CONFIGS)
def test_their_checkpoint_comes_back_bit_for_bit(architecture, dtype, tmp_path):
    theirs = reference.random_model(reference.CONFIGS[architecture]()).to(getattr(torch, dtype))
    original = tmp_path / "original"
    reference.save(theirs, original)
    model, tokenizer = sj.load_model(original)
    assert model.config.dtype == model.embedding[...].dtype.name == dtype
    sj.save_model(model, tmp_path / "hf", tokenizer=tokenizer)
    sj.save_model(model, tmp_path / "orbax", format="orbax", tokenizer=tokenizer)
    convert(tmp_path / "orbax", tmp_path / "orbax-hf", "hf")
    expected = their_logits(opened_by_transformers(original))
    for name in ("hf", "orbax-hf"):
        assert bits(tmp_path / name) == bits(original)
        again = opened_by_transformers(tmp_path / name)
        assert again.dtype == theirs.dtype
        np.testing.assert_array_equal(their_logits(again), expected)
    for name in ("hf", "orbax", "orbax-hf"):
        assert_equal(parameters(tmp_path / name), parameters(original))


def test_the_command_converts_both_ways(tmp_path):
    theirs = reference.random_model(reference.starcoder2())
    reference.save(theirs, tmp_path / "original")
    for source, target, form in (("original", "orbax", "orbax"), ("orbax", "hf", "hf")):
        arguments = [f"--source={tmp_path / source}", f"--target={tmp_path / target}"]
        done = micro.run("convert", *arguments, f"--format={form}")
        assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "hf") == bits(tmp_path / "original")
    assert_equal(parameters(tmp_path / "orbax"), parameters(tmp_path / "original"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_conversion_to_fewer_bits_rounds_as_torch_does(dtype, tmp_path):
    theirs = reference.random_model(reference.gpt_bigcode())
    reference.save(theirs, tmp_path / "original")
    reference.save(theirs.to(getattr(torch, dtype)), tmp_path / "rounded")
    convert(tmp_path / "original", tmp_path / "ours", "hf", dtype)
    assert bits(tmp_path / "ours") == bits(tmp_path / "rounded")


def save_as_pickles(model, directory, num_files):
    """What older versions of transformers wrote: a tied head is there under both its names."""
    model.config.save_pretrained(directory)
    reference.tokenizer().save(directory)
    state = model.state_dict()
    assert "lm_head.weight" in state
    if num_files == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return
    places = {
        name: f"pytorch_model-{index % num_files + 1:05}-of-{num_files:05}.bin"
        for index, name in enumerate(state)
    }
    for file in set(places.values()):
        held = {name: state[name] for name, place in places.items() if place == file}
        torch.save(held, directory / file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("architecture", reference.CONFIGS)
def test_every_kind_of_file_is_opened(architecture, tmp_path):
    theirs = reference.random_model(reference.CONFIGS[architecture]())
    model = reference.reopened(theirs, tmp_path / "whole")
    assert_close(np.asarray(reference.jit(model.__call__)(TOKENS)), their_logits(theirs))
    reference.save(theirs, tmp_path / "shards", max_shard_size="30KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    save_as_pickles(theirs, tmp_path / "pickle", 1)
    save_as_pickles(theirs, tmp_path / "pickles", 3)
    for name in ("shards", "pickle", "pickles"):
        assert_equal(parameters(tmp_path / name), parameters(tmp_path / "whole"))
