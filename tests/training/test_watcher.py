"""A short run on one device, with all there is to watch: what it writes and shows."""

import dataclasses
import io
import math
import re
import sys
import types

import jax
import pytest

from starcoder_jax.data.store import TokenStore
from starcoder_jax.model.flops import training_flops
from starcoder_jax.parallel.hardware import CHIPS
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training import loop, watcher
from starcoder_jax.training.loop import open_workdir, train
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.parameters import parameter_shapes
from starcoder_jax.training.program import make_devices, make_program

OVERRIDES = [
    "train.total_steps=8",
    "train.log_every=2",
    "train.eval_every=8",
    "train.checkpoint_every=2",
    "train.profile_steps=(3, 4)",
    "optimizer.warmup_steps=1",
]
FORGETFUL_STEP = 5


@pytest.fixture(scope="module")
def watched(tmp_path_factory, micro_folder):
    """Its recipe, working directory, output, and the steps of which the watchdog heard.

    The device passes for a chip, and the fifth step finds its program forgotten.
    """
    recipe = load_recipe([str(micro_folder / "micro.gin")], OVERRIDES)
    workdir = tmp_path_factory.mktemp("watched") / "run"
    beats = []

    def forgetful(*arguments):
        program = make_program(*arguments)
        calls = iter(range(1, 9))

        def step(*inputs):
            if next(calls) == FORGETFUL_STEP:
                program.step.clear_cache()
            return program.step(*inputs)

        return dataclasses.replace(program, step=step)

    class Watchdog(watcher.Watchdog):
        def beat(self, step):
            beats.append(step)
            super().beat(step)

    with pytest.MonkeyPatch.context() as patch:
        stderr = io.StringIO()
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(loop, "make_devices", lambda recipe: make_devices(recipe, jax.devices()[:1]))
        patch.setattr(loop, "make_program", forgetful)
        patch.setattr(watcher, "chip_of", lambda kind: CHIPS["v5e"])
        patch.setattr(watcher, "Watchdog", Watchdog)
        open_workdir(recipe, workdir)
        train(recipe, workdir, TokenStore(micro_folder / "data"))
    return types.SimpleNamespace(
        recipe=recipe, workdir=workdir, output=stderr.getvalue(), beats=beats
    )


def test_mfu_is_that_of_the_model_flops_on_a_known_chip(watched):
    settings = watched.recipe.train
    flops = training_flops(watched.recipe.model, settings.batch_size, settings.sequence_length)
    records = read_metrics(watched.workdir)
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    for record in records:
        steps_per_second = record["tokens_per_second"] / (
            settings.batch_size * settings.sequence_length
        )
        assert record["mfu"] == pytest.approx(flops * steps_per_second / CHIPS["v5e"].peak_flops)
        shown = f"step {record['step']}/8 .* tokens/s  MFU {record['mfu']:.1%}"
        assert re.search(shown, watched.output)
    report = (watched.workdir / "report.html").read_text()
    assert "Model FLOPs utilisation (MFU)" in report
    assert f"<b>{records[-1]['mfu']:.1%}</b>" in report


def test_a_second_compilation_is_told_with_its_step(watched):
    counts = [record["compilations"] for record in read_metrics(watched.workdir)]
    assert counts == [1, 1, 2, 2]
    warnings = [line for line in watched.output.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert f"compiled again for step {FORGETFUL_STEP}, 2 times in all" in warnings[0]


def test_the_profile_holds_the_steps_asked_for(watched):
    (trace,) = (watched.workdir / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert steps == [3, 4]
    assert any(event.name == "PjitFunction(train_step)" for event in events)


def test_saves_are_in_a_record_after_them(watched):
    records = read_metrics(watched.workdir)
    told = [record for record in records if "checkpoint_seconds" in record]
    assert told
    count = sum(math.prod(shape) for shape in parameter_shapes(watched.recipe.model).values())
    for record in told:
        assert record["step"] > 2
        assert 0 < record["checkpoint_seconds"] < 60
        # float32 parameters and two moments; beside them some counters.
        assert 0 < record["checkpoint_bytes"] - 12 * count < 100


def test_the_watchdog_hears_of_each_logged_step_and_stays_quiet(watched):
    assert watched.beats == [2, 4, 6, 8]
    assert not list(watched.workdir.glob("stacks*"))
