"""Fine-tuning starts from a checkpoint: its architecture, parameters and tokenizer."""

import dataclasses
import json
import shutil

import micro
import numpy as np
import pytest

import starcoder_jax as sj
from starcoder_jax.data.store import read_manifest
from starcoder_jax.data.tokenizer import load_tokenizer
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training.convert import convert
from starcoder_jax.training.initial import bring_tokenizer, open_initial_checkpoint
from starcoder_jax.training.metrics import read_metrics

STEPS = 20
# As published configurations of StarCoder2 have it.
DROPOUT = {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """The micro run as a Hugging Face checkpoint with a chat template."""
    path = tmp_path_factory.mktemp("initial") / "hf"
    convert(micro.trained(tmp_path_factory), path, "hf")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


@pytest.fixture(scope="module")
def flags(hf, micro_folder):
    """Those of the command that tunes it by a recipe that says nothing of model and tokenizer."""
    changes = {
        "train.initial_checkpoint": hf,
        "train.total_steps": STEPS,
        "train.batch_size": micro.BATCH,
        "train.sequence_length": micro.LENGTH,
        "train.log_every": 1,
        "optimizer.warmup_steps": 2,
        "model.dtype": "float32",
        "data.sources": {"mine": f"folder:{micro_folder / 'code'}"},
        "data.heldout_fraction": 0.2,
        "evaluation.max_files": 4,
        "evaluation.sample_tokens": 4,
    }
    return [
        "--gin_file=finetune/full.gin",
        *(f"--gin.{name}={value}" for name, value in changes.items()),
    ]


@pytest.fixture(scope="module")
def tuned(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    done = micro.run("train", *flags, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_architecture_parameters_and_tokenizer_come_with_it(tuned, hf, trained):
    before = load_recipe([str(trained / "config.gin")]).model
    after = load_recipe([str(tuned / "config.gin")]).model
    free = {"dtype": "float32", "rematerialization": before.rematerialization}
    assert dataclasses.replace(after, **free) == before
    assert after.rematerialization == "full"
    assert load_tokenizer(tuned).fingerprint == load_tokenizer(hf).fingerprint
    assert load_tokenizer(tuned / "data").fingerprint == load_tokenizer(hf).fingerprint
    first, last = read_metrics(trained)[0]["loss"], read_metrics(trained)[-1]["loss"]
    losses = [record["loss"] for record in read_metrics(tuned)]
    assert len(losses) == STEPS
    assert abs(losses[0] - last) < 0.2 * (first - last)  # not from the beginning
    assert read_metrics(tuned)[0]["learning_rate"] == pytest.approx(5e-5 / 2)  # a fresh schedule


def test_it_is_handed_back_with_all_that_came_along(tuned, hf, tmp_path):
    convert(tuned, tmp_path / "hf", "hf")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "hf" / name).read_bytes() == (hf / name).read_bytes()
    tokens = np.arange(24)[None]
    np.testing.assert_array_equal(
        sj.load_model(tmp_path / "hf")[0](tokens), sj.load_model(tuned)[0](tokens)
    )
    assert not np.array_equal(sj.load_model(hf)[0](tokens), sj.load_model(tuned)[0](tokens))


def test_a_run_that_goes_on_needs_its_initial_checkpoint_no_more(tuned, hf, flags, tmp_path):
    workdir = shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    # Nothing is left, so this is a beginning; the next is not.
    done = micro.run("train", *flags, f"--workdir={workdir}", "--gin.train.checkpoint_every=15")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    moved = hf.rename(hf.with_name("moved"))
    done = micro.run("train", f"--gin_file={workdir / 'config.gin'}", f"--workdir={workdir}")
    moved.rename(hf)
    assert done.returncode == 0 and "resuming after step 15" in done.stderr, done.stderr
    for first, second in zip(read_metrics(workdir), read_metrics(tuned), strict=True):
        assert first["batch_fingerprint"] == second["batch_fingerprint"]
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


def error(*overrides) -> str:
    with pytest.raises(ValueError) as raised:
        open_initial_checkpoint(load_recipe(["finetune/full.gin"], overrides))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_recipe_of_another_architecture_is_refused(hf):
    checkpoint = f"train.initial_checkpoint={hf}"
    assert "model.mlp_dim=128 (the checkpoint: 64)" in error(checkpoint, "model.mlp_dim=128")
    assert "model.norm_epsilon=1e-06" in error(checkpoint, "model.norm_epsilon=1e-6")
    free = ["rope_theta=1e6", "sliding_window=9", "max_length=999", "residual_dropout=0.1"]
    recipe = load_recipe(["finetune/full.gin"], [checkpoint, *(f"model.{field}" for field in free)])
    assert recipe.model.max_length == 999
    open_initial_checkpoint(recipe)
    learned = "model.positions='learned'"
    assert "model.max_length" in error(checkpoint, learned, "model.max_length=64")


def test_kernels_tune_what_was_published_with_dropout_of_attention(hf, tmp_path):
    checkpoint = tmp_path / "hf"
    shutil.copytree(hf, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | DROPOUT))
    for overlay in ("a100-80gb", "8xh100", "v5p-128"):
        files = ["finetune/full.gin", f"hardware/{overlay}.gin"]
        recipe = load_recipe(files, [f"train.initial_checkpoint={checkpoint}"])
        assert recipe.model.attention_backend in ("cudnn", "splash")
        assert (recipe.model.attention_dropout, recipe.model.residual_dropout) == (0, 0.1)
        open_initial_checkpoint(recipe)


def test_prepared_before_it_has_the_vocabulary_of_the_checkpoint(flags, tuned, tmp_path):
    done = micro.run("prepare", *flags, f"--directory={tmp_path / 'data'}")
    assert done.returncode == 0, done.stderr
    here, there = load_tokenizer(tmp_path / "data"), load_tokenizer(tuned / "data")
    assert here.fingerprint == there.fingerprint
    # So that it is the store that training would make.
    manifests = [read_manifest(folder / "data") for folder in (tmp_path, tuned)]
    assert manifests[0]["tasks"] == manifests[1]["tasks"]


def test_what_is_no_checkpoint_is_named(tmp_path):
    assert f"no checkpoint in {tmp_path}" in error(f"train.initial_checkpoint={tmp_path}")
    with pytest.raises(ValueError, match=r"train\.initial_checkpoint"):
        load_recipe(["finetune/full.gin"])


def test_another_tokenizer_may_be_named_if_it_fits(hf, trained, tmp_path):
    def recipe(path):
        overrides = [f"train.initial_checkpoint={hf}", f"tokenizer.path={path}"]
        return load_recipe(["finetune/full.gin"], overrides)

    assert bring_tokenizer(recipe(trained), tmp_path) == str(trained)
    assert not any(tmp_path.iterdir())
    content = (trained / "tokenizer.json").read_text()
    added = '"added_tokens": [{"id": 320, "content": "<new>", "special": true, "lstrip": false, '
    added += '"rstrip": false, "normalized": false, "single_word": false}, '
    (tmp_path / "tokenizer.json").write_text(re_added(content, added))
    with pytest.raises(ValueError, match=r"model\.vocab_size=320, but the tokenizer has 321 ids"):
        bring_tokenizer(recipe(tmp_path), tmp_path / "run")


def re_added(content, added):
    head, rest = content.split('"added_tokens":', 1)
    return head + added + rest.split("[", 1)[1]
