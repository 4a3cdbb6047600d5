import json
import pathlib
import shutil

import jax
import micro
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj
from starcoder_jax.data.loader import Loader, fingerprint, format_fingerprint
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training import loop
from starcoder_jax.training.initial import check_vocabulary
from starcoder_jax.training.loop import DivergedError, open_workdir, train
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.optimizer import learning_rate
from starcoder_jax.training.program import make_devices

QUIET = "train.eval_every=40", "train.checkpoint_every=40"


@pytest.fixture
def one_device(monkeypatch):
    """Training takes the first device only, which compiles much faster than eight do."""
    monkeypatch.setattr(
        loop, "make_devices", lambda recipe: make_devices(recipe, jax.devices()[:1])
    )


@pytest.fixture
def recipe(micro_folder):
    def load(*overrides):
        return load_recipe([str(micro_folder / "micro.gin")], overrides)

    return load


def run(recipe, workdir, store):
    open_workdir(recipe, workdir)
    store.tokenizer.save(workdir)
    return train(recipe, workdir, store)


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def parameters(path):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(sj.load_model(path)[0]))]


def test_the_record_of_a_run(trained, recipe, store):
    records = read_metrics(trained)
    assert [record["step"] for record in records] == list(range(1, micro.STEPS + 1))
    loader = Loader(
        store,
        rates={"code": 1.0},
        batch_size=micro.BATCH,
        sequence_length=micro.LENGTH,
        seed=0,
        fim=recipe().fim,
    )
    schedule = learning_rate(recipe().optimizer, micro.STEPS)
    always = ["step", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second"]
    always += ["batch_fingerprint", "goodput", "compilations", "host_memory_bytes"]
    evaluated = [f"eval/{name}" for name in ("loss", "bits_per_byte", "xz_bits_per_byte")]
    for step, record in enumerate(records, 1):
        expected = {*always, *evaluated, "eval/infill_loss"} if step % 20 == 0 else {*always}
        assert set(record) - {"checkpoint_seconds", "checkpoint_bytes"} == expected
        rows = loader.batch(step - 1)
        assert record["batch_fingerprint"] == format_fingerprint(fingerprint(rows))
        assert record["tokens"] == step * rows[:, 1:].size
        assert record["learning_rate"] == pytest.approx(float(schedule(step - 1)), rel=1e-6)
        assert record["tokens_per_second"] > 0
        assert record["compilations"] == 1 and 0 < record["goodput"] < 1
    losses = [record["loss"] for record in records]
    assert losses[0] == pytest.approx(np.log(320), rel=0.2)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert records[-1]["eval/loss"] < records[19]["eval/loss"] < losses[0]


def test_the_working_directory_of_a_run(trained, recipe, micro_folder):
    config = load_recipe([str(trained / "config.gin")])
    assert config == recipe(f"data.directory={micro_folder / 'data'}")
    first = (trained / "config.gin").read_text().splitlines()[0]
    assert first.startswith("# python -m starcoder_jax.train --gin_file=")
    assert steps(trained) == [30, 35, 40]
    about = json.loads((trained / "checkpoints" / "40" / "about" / "metadata").read_text())
    assert set(about["versions"]) == {"starcoder_jax", "jax", "flax"}
    assert "model.embed_dim = 32" in about["recipe"]
    report = (trained / "report.html").read_text()
    for heading in ("Curves", "Held-out files", "Infilling", "Configuration", "Try next"):
        assert f"<h2>{heading}</h2>" in report
    assert any((trained / "tensorboard").iterdir())
    assert not (trained / "data").exists()


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 1, "tensor": 8}, {"fsdp": 4, "tensor": 2}])
def test_eight_devices_learn_what_one_learns(trained, recipe, store, tmp_path, mesh):
    overrides = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
    outcome = run(recipe(*overrides, *QUIET), tmp_path, store)
    assert (outcome.step, outcome.interrupted) == (micro.STEPS, False)
    expected, records = read_metrics(trained), read_metrics(tmp_path)
    for name in ("loss", "grad_norm"):
        first, second = ([record[name] for record in both] for both in (expected, records))
        np.testing.assert_allclose(second, first, rtol=1e-5 if name == "loss" else 1e-3)
    assert {record["compilations"] for record in records} == {1}
    for first, second in zip(expected, records, strict=True):
        assert first["batch_fingerprint"] == second["batch_fingerprint"]
    for name, value in expected[-1].items():
        if name.startswith("eval/"):
            assert records[-1][name] == pytest.approx(value, rel=1e-4)
    # A model trained on eight devices opens on one.
    for first, second in zip(parameters(trained), parameters(tmp_path), strict=True):
        np.testing.assert_allclose(second, first, atol=1e-3)


def test_a_finished_run_stays_as_it_is(trained, recipe, store, tmp_path, one_device):
    workdir = pathlib.Path(shutil.copytree(trained, tmp_path / "run"))
    outcome = run(recipe(), workdir, store)
    assert (outcome.step, outcome.interrupted) == (micro.STEPS, False)
    assert outcome.evaluation.metrics["eval/loss"] == pytest.approx(
        read_metrics(trained)[-1]["eval/loss"], rel=1e-5
    )
    assert (workdir / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert "Held-out files" in (workdir / "report.html").read_text()


def test_an_initial_checkpoint_gives_parameters_and_nothing_else(
    trained, recipe, store, tmp_path, one_device
):
    # With a learning rate of zero, what is saved is what it began with.
    still = recipe(
        f"train.initial_checkpoint={trained}",
        "train.total_steps=1",
        "optimizer.peak_learning_rate=0",
        "optimizer.final_learning_rate=0",
        "optimizer.warmup_steps=0",
    )
    assert run(still, tmp_path / "run", store).step == 1
    for first, second in zip(parameters(trained), parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(first, second)
    (record,) = read_metrics(tmp_path / "run")
    assert record["step"] == 1
    assert record["loss"] < 0.6 * read_metrics(trained)[0]["loss"]
    absent = recipe(f"train.initial_checkpoint={tmp_path / 'absent'}")
    with pytest.raises(ValueError, match="no checkpoint in"):
        run(absent, tmp_path / "other", store)


def test_divergence_names_the_step_and_saves_nothing_after_it(recipe, store, tmp_path, one_device):
    absurd = recipe("optimizer.peak_learning_rate=1e38", "train.log_every=5")
    with pytest.raises(DivergedError) as raised:
        run(absurd, tmp_path, store)
    # Found at step 5, where a checkpoint is due, and named by where it happened.
    assert "not finite at step 2 " in str(raised.value)
    assert "the last good checkpoint is of step 0" in str(raised.value)
    assert "optimizer.peak_learning_rate" in str(raised.value)
    assert steps(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mesh.fsdp=3"], "mesh.fsdp=3.* 8 "),
        (["mesh.fsdp=-1", "mesh.tensor=-1"], "one of them may be -1"),
        (["mesh.fsdp=1", "mesh.replica=8", "model.num_heads=8", "train.batch_size=12"], "=12 does"),
        (["train.micro_batches=2"], "train.micro_batches=2 times the 8 ways"),
        (["mesh.fsdp=4", "mesh.sequence=2", "train.sequence_length=63"], "sequence_length=63"),
        (["mesh.fsdp=1", "mesh.tensor=8", "model.mlp_dim=36"], "mlp of 36.*mesh.tensor=8"),
        (["model.vocab_size=319"], "model.vocab_size=319, but .* 320 ids"),
        (["train.total_steps=3"], "warmup_steps=4 is longer than train.total_steps=3"),
        (["train.sequence_length=50000"], "shorter than one window"),
    ],
)
def test_what_does_not_fit_is_named(recipe, store, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message) as raised:
        run(recipe(*overrides), tmp_path, store)
    assert "\n" not in str(raised.value)
    # The start that failed does not bind the directory to its mistake.
    open_workdir(recipe("train.seed=1"), tmp_path)


def test_check_vocabulary(recipe, store):
    for rows in (320, 384, 320 + 1024):
        check_vocabulary(recipe(f"model.vocab_size={rows}"), store.tokenizer)
    for rows in (319, 320 + 1025, 49152):
        with pytest.raises(ValueError, match=f"model.vocab_size={rows}, .* 320 ids"):
            check_vocabulary(recipe(f"model.vocab_size={rows}"), store.tokenizer)


def test_open_workdir(trained, recipe, tmp_path, micro_folder):
    workdir = pathlib.Path(shutil.copytree(trained, tmp_path / "run"))
    before = (workdir / "config.gin").read_bytes()
    with pytest.raises(ValueError) as raised:
        open_workdir(recipe("train.seed=7", "model.mlp_dim=128"), workdir)
    message = str(raised.value)
    assert "train.seed: 0 -> 7; model.mlp_dim: 64 -> 128. Give another --workdir" in message
    assert (workdir / "config.gin").read_bytes() == before
    free = recipe("train.log_every=7", "mesh.fsdp=2")
    open_workdir(free, workdir, header="a header")
    assert load_recipe([str(workdir / "config.gin")]) == free
    assert (workdir / "config.gin").read_text().startswith("# a header\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        open_workdir(free, tmp_path / "file" / "run")
