"""Runs that are stopped and started again, as processes of their own."""

import pathlib
import random
import re
import signal
import time

import jax
import micro
import numpy as np
import pytest

from starcoder_jax import train as command
from starcoder_jax.data.store import TokenStore
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training import loop
from starcoder_jax.training.loop import open_workdir, train
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.orbax_parameters import OrbaxParameters
from starcoder_jax.training.parameters import parameter_shapes, reading_order


def start_and_signal(arguments, step, number, delay=0.0):
    """Starts training, sends a signal once it has logged `step`, and returns how it ended."""
    process = micro.start("train", *arguments)
    lines = []
    for line in process.stderr:
        lines.append(line)
        reached = re.match(r"step (\d+)/", line)
        if reached and int(reached[1]) >= step:
            time.sleep(delay)
            process.send_signal(number)
            break
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, "".join(lines) + stdout + stderr


def check_same_run(workdir, expected, rtol=None):
    """The same record, bit for bit or to `rtol`, and the same final parameters."""
    records, wanted = read_metrics(workdir), read_metrics(expected)
    assert [record["step"] for record in records] == list(range(1, micro.STEPS + 1))
    for record, other in zip(records, wanted, strict=True):
        record, other = micro.computed(record), micro.computed(other)
        assert record.keys() == other.keys()
        for name in record:
            if rtol is None or isinstance(other[name], str):
                assert record[name] == other[name], (record["step"], name)
            else:
                assert record[name] == pytest.approx(other[name], rel=rtol)
    if rtol is None:
        pairs = zip(parameters(workdir), parameters(expected), strict=True)
        assert all(first.tobytes() == second.tobytes() for first, second in pairs)


def parameters(workdir):
    """All parameters of the last checkpoint."""
    source = OrbaxParameters(workdir / "checkpoints" / str(micro.STEPS))
    order = reading_order(parameter_shapes(source.config), source.config.num_layers)
    return [source.read(path, layer) for path, layer in order]


def test_killed_at_random_times_it_computes_the_same(trained, micro_folder, tmp_path):
    arguments = micro.arguments(micro_folder, tmp_path / "run")
    rng = random.Random(3)
    for step in sorted(rng.sample(range(2, micro.STEPS - 4), 3)):
        status, output = start_and_signal(arguments, step, signal.SIGKILL, rng.uniform(0, 0.05))
        assert status == -signal.SIGKILL, output
    last = micro.run("train", *arguments)
    assert last.returncode == 0, last.stderr
    assert "resuming after step" in last.stderr
    check_same_run(tmp_path / "run", trained)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_reached_and_the_same_command_goes_on(
    trained, micro_folder, tmp_path, number
):
    workdir = tmp_path / "run"
    # No checkpoint of its own accord: what there is comes from the signal.
    arguments = [*micro.arguments(micro_folder, workdir), "--gin.train.checkpoint_every=1000"]
    status, output = start_and_signal(arguments, 6, number)
    assert status == 143, output
    reached = read_metrics(workdir)[-1]["step"]
    assert 6 <= reached < micro.STEPS
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(reached)]
    assert f"saved step {reached} and stopped" in output
    last = micro.run("train", *arguments)
    assert last.returncode == 0, last.stderr
    assert f"resuming after step {reached}" in last.stderr
    check_same_run(workdir, trained)


def test_a_run_goes_on_on_another_mesh(trained, micro_folder, tmp_path):
    workdir = tmp_path / "run"
    micro.without_checkpoints_after(trained, 30, workdir)
    recipe = load_recipe([str(micro_folder / "micro.gin")], ["mesh.fsdp=8"])
    assert len(jax.devices()) == 8
    open_workdir(recipe, workdir)
    train(recipe, workdir, TokenStore(micro_folder / "data"))
    check_same_run(workdir, trained, rtol=1e-4)
    losses = [[record["loss"] for record in read_metrics(w)] for w in (workdir, trained)]
    assert losses[0][:30] == losses[1][:30] and losses[0][30:] != losses[1][30:]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_broken_checkpoint_costs_the_steps_since_the_one_before(trained, micro_folder, tmp_path):
    workdir = tmp_path / "run"
    micro.without_checkpoints_after(trained, 35, workdir)
    for path in pathlib.Path(workdir / "checkpoints" / "35").rglob("d/*"):
        path.write_bytes(b"")
    done = micro.run("train", *micro.arguments(micro_folder, workdir))
    assert done.returncode == 0, done.stderr
    assert "warning: checkpoint 35 cannot be read" in done.stderr
    assert "resuming after step 30" in done.stderr
    check_same_run(workdir, trained)


def test_ctrl_c_before_training_is_one_line(micro_folder, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("starcoder_jax.train._train", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command.main(micro.arguments(micro_folder, tmp_path))
    assert stopped.value.code == 130
    message = "train: stopped; the same command goes on from what is saved\n"
    assert capsys.readouterr().err == message


def test_a_second_ctrl_c_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with loop._catch_signals() as stop:
            assert not stop.requested
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
