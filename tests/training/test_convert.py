"""Models written and opened again, in both formats, by function and by command."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import micro
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.data.tokenizer import load_tokenizer
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.training.convert import convert

SIZES = {"vocab_size": 320, "num_layers": 3, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64}
ARCHITECTURES = {
    "starcoder2": {"num_kv_heads": 2, "sliding_window": 8, "rope_theta": 1e5},
    "starcoder2, untied": {"num_kv_heads": 4, "tied_head": False, "activation": "gelu_erf"},
    "gpt_bigcode": {"num_kv_heads": 1, "positions": "learned", "residual_dropout": 0.1},
    "gpt_bigcode, multi-head": {"num_kv_heads": 4, "positions": "learned"},
    "bloom": {"num_kv_heads": 4, "positions": "alibi", "embedding_norm": True, "mlp_dim": 128},
}


def make_model(name="starcoder2", **changes):
    fields = SIZES | {"max_length": 32, "dtype": "float32"} | ARCHITECTURES[name] | changes
    return sj.Decoder(sj.DecoderConfig(**fields), rngs=nnx.Rngs(0))


def cast(model, dtype):
    graph, state = nnx.split(model)
    params = jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(state))
    model = nnx.merge(graph, params)
    model.config = model.layers.config = dataclasses.replace(model.config, dtype=dtype)
    return model


def check_equal(first, second):
    first, second = (nnx.to_pure_dict(nnx.state(model)) for model in (first, second))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(micro.folder(tmp_path_factory) / "data")


@pytest.fixture
def hf(tokenizer, tmp_path):
    """A Hugging Face checkpoint."""
    sj.save_model(make_model(), tmp_path / "hf", tokenizer=tokenizer)
    return tmp_path / "hf"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_formats_give_the_model_back_bit_for_bit(name, dtype, tokenizer, tmp_path):
    model = cast(make_model(name), dtype)
    sj.save_model(model, tmp_path / "hf", tokenizer=tokenizer)
    sj.save_model(model, tmp_path / "orbax", "orbax", tokenizer)
    for folder in ("hf", "orbax"):
        opened, its_tokenizer = sj.load_model(tmp_path / folder)
        assert opened.config == model.config
        assert its_tokenizer.fingerprint == tokenizer.fingerprint
        check_equal(opened, model)
    convert(tmp_path / "hf", tmp_path / "orbax2", "orbax")
    convert(tmp_path / "orbax2", tmp_path / "hf2", "hf")
    check_equal(sj.load_model(tmp_path / "orbax2")[0], model)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "hf2" / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()


def test_a_model_comes_from_a_mesh_and_goes_onto_one(hf, tokenizer, tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=1, tensor=2, replica=2))
    split, _ = sj.load_model(hf, mesh=mesh)
    assert split.embedding[...].sharding.spec == jax.P("tensor", "fsdp")
    check_equal(split, sj.load_model(hf)[0])
    sj.save_model(split, tmp_path / "again", tokenizer=tokenizer)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        hf / "model.safetensors"
    ).read_bytes()
    tokens = np.arange(16).reshape(4, 4)
    with jax.set_mesh(mesh):
        logits = split(jax.device_put(tokens, jax.P(("replica", "fsdp"))))
    np.testing.assert_allclose(np.asarray(logits), sj.load_model(hf)[0](tokens), atol=1e-5)


def test_dtype_is_of_parameters_and_computation(hf, tmp_path):
    model, _ = sj.load_model(hf, dtype="bfloat16")
    assert model.config.dtype == model.embedding[...].dtype == "bfloat16"
    assert model(np.zeros((1, 4), np.int32)).dtype == "float32"
    convert(hf, tmp_path / "half", "hf", "bfloat16")
    check_equal(sj.load_model(tmp_path / "half")[0], model)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    convert(hf, tmp_path / "orbax", "orbax", "bfloat16")
    check_equal(sj.load_model(tmp_path / "orbax")[0], model)
    assert sj.load_model(tmp_path / "orbax")[0].config.dtype == "bfloat16"


def test_what_came_with_the_tokenizer_goes_along(hf, tmp_path):
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    (hf / "generation_config.json").write_text('{"eos_token_id": 7}')
    convert(hf, tmp_path / "orbax", "orbax")
    convert(tmp_path / "orbax", tmp_path / "again", "hf")
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "again" / name).read_text() == (hf / name).read_text()


def test_a_model_without_tokenizer_is_converted_and_not_loaded(tmp_path):
    sj.save_model(make_model(), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "orbax", "orbax")
    with pytest.raises(ValueError, match="holds neither a tokenizer"):
        sj.load_model(tmp_path / "orbax")


def test_a_training_run_is_converted_by_the_command(trained, tmp_path):
    done = micro.run("convert", f"--source={trained}", f"--target={tmp_path / 'hf'}", "--format=hf")
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path / 'hf'}\n"), done.stderr
    check_equal(sj.load_model(tmp_path / "hf")[0], sj.load_model(trained)[0])
    done = micro.run(
        "convert", f"--source={tmp_path / 'hf'}", f"--target={tmp_path / 'orbax'}",
        "--format=orbax", "--dtype=bfloat16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_equal(sj.load_model(tmp_path / "orbax")[0], sj.load_model(trained, dtype="bfloat16")[0])
    # Not a run: nothing to resume, and nothing to spoil.
    done = micro.run(
        "train", f"--gin_file={trained / 'config.gin'}", f"--workdir={tmp_path / 'orbax'}"
    )
    assert done.returncode == 2 and "train.initial_checkpoint" in done.stderr


def edit_config(hf, **changes):
    values = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(values | changes))


def rename_tensor(hf, old, new):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(hf / "model.safetensors")
    tensors[new] = tensors.pop(old)
    save_file(tensors, hf / "model.safetensors")


def truncate(hf):
    content = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(content[:-100])


NORM = "model.norm.weight"
MISTAKES = {
    "lacks model.norm.weight and has unknown model.norm.weights": lambda hf: rename_tensor(
        hf, NORM, "model.norm.weights"
    ),
    "c_fc.weight is [64, 32] instead of [96, 32]": lambda hf: edit_config(hf, intermediate_size=96),
    "lacks model.layers.3.input_layernorm.weight, .* and 12 more": lambda hf: edit_config(
        hf, num_hidden_layers=4
    ),
    "norm_type": lambda hf: edit_config(hf, norm_type="rmsnorm"),
    "llama": lambda hf: edit_config(hf, model_type="llama"),
    "model.safetensors": truncate,
    "no checkpoint in": lambda hf: (hf / "config.json").unlink(),
    "config.json": lambda hf: (hf / "config.json").write_text("{"),
    "": lambda hf: (hf / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named_and_leave_nothing(hf, tmp_path, message):
    MISTAKES[message](hf)
    before = sorted(tmp_path.iterdir())
    for action in (
        lambda: convert(hf, tmp_path / "target", "orbax"),
        lambda: sj.load_model(hf),
    ):
        with pytest.raises(ValueError) as raised:
            action()
        assert "\n" not in str(raised.value)
        pattern = message if ".*" in message else re.escape(message)
        assert re.search(pattern, str(raised.value)) and str(hf) in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_vocabulary_larger_than_the_table_is_refused(tokenizer, tmp_path):
    sj.save_model(make_model(vocab_size=300), tmp_path / "hf", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"the tokenizer has 320 ids, .* only 300 rows"):
        sj.load_model(tmp_path / "hf")


def test_a_head_that_is_tied_and_differs_is_refused(hf):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(hf / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, hf / "model.safetensors")
    sj.load_model(hf)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, hf / "model.safetensors")
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        sj.load_model(hf)


def test_buffers_of_old_versions_and_absent_prefixes_are_understood(tokenizer, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = make_model("gpt_bigcode")
    sj.save_model(model, tmp_path / "hf", tokenizer=tokenizer)
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): x for name, x in load_file(file).items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), bool)
    tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(tensors, file)
    check_equal(sj.load_model(tmp_path / "hf")[0], model)


def test_what_the_format_cannot_express_is_named(tmp_path):
    with pytest.raises(ValueError, match="sliding_window"):
        sj.save_model(make_model("gpt_bigcode", sliding_window=4), tmp_path / "hf")
    for options in ({"format": "gguf"}, {"format": "hf", "dtype": "int8"}):
        sj.save_model(make_model(), tmp_path / "orbax", "orbax")
        with pytest.raises(ValueError, match="must be one of"):
            convert(tmp_path / "orbax", tmp_path / "hf", **options)
        shutil.rmtree(tmp_path / "orbax")
    assert list(tmp_path.iterdir()) == []


def test_a_target_in_use_stays_as_it_is(hf, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "file"):
        with pytest.raises(ValueError, match="in the way"):
            convert(hf, tmp_path / name, "orbax")
    assert (tmp_path / "taken" / "notes").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    convert(hf, tmp_path / "empty", "orbax")
    sj.load_model(tmp_path / "empty")


def test_too_little_space_is_found_before_writing(hf, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(OSError, match=r"would need .* free"):
        convert(hf, tmp_path / "target", "orbax")
    assert not list(tmp_path.glob("target*"))


@pytest.mark.parametrize("format", ["hf", "orbax"])
def test_a_disk_that_fills_up_leaves_nothing(hf, tmp_path, format):
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash"]  # KiB of one file
    command = [sys.executable, "-m", "starcoder_jax.convert", f"--source={hf}"]
    command += [f"--target={tmp_path / 'target'}", f"--format={format}"]
    done = subprocess.run([*limited, *command], capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("convert: ")]
    assert len(lines) == 1 and "File too large" in lines[0], done.stderr
    assert not list(tmp_path.glob("target*"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Hugging Face checkpoint of 350 MB."""
    config = sj.DecoderConfig(
        vocab_size=256, num_layers=32, embed_dim=512, num_heads=8, num_kv_heads=2, mlp_dim=2048,
        max_length=64, dtype="float32",
    )  # fmt: skip
    root = tmp_path_factory.mktemp("large")
    sj.save_model(jax.jit(lambda: sj.Decoder(config, rngs=nnx.Rngs(0)))(), root / "hf")
    yield root / "hf"
    shutil.rmtree(root)


def size(folder) -> int:
    """Bytes in a folder that another process writes to."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(parent, name))
    return total


def test_killed_at_any_time_the_target_is_absent_and_the_next_try_succeeds(large, tmp_path):
    flags = [f"--source={large}", f"--target={tmp_path / 'target'}"]
    for format in ("orbax", "hf"):
        process = micro.start("convert", *flags, f"--format={format}")
        partial = tmp_path / "target.partial"
        while size(partial) < 10**7:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert partial.exists() and not (tmp_path / "target").exists()
    convert(large, tmp_path / "target", "hf")
    assert not partial.exists()
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "target" / file).read_bytes() == (large / file).read_bytes()


# The peak is read from there; what is promised does not depend on the system.
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_is_a_few_tensors_whatever_the_size(large, tmp_path):
    """Both ways, a checkpoint of 350 MB goes through less than 150 MB of memory."""
    program = f"""
import re
from starcoder_jax.training.convert import convert
import jax; jax.devices()
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3
before = peak()
convert({str(large)!r}, {str(tmp_path / "orbax")!r}, "orbax")
between = peak()
convert({str(tmp_path / "orbax")!r}, {str(tmp_path / "hf")!r}, "hf")
print(between - before, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (large / "model.safetensors").stat().st_size > 3.5e8
    assert all(float(megabytes) < 150 for megabytes in done.stdout.split()), done.stdout
