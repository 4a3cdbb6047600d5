"""The command: what it refuses, and that no kill changes what it finds."""

import json
import os
import re
import signal
import time

import micro
import pytest

from starcoder_jax import ablate
from starcoder_jax.ablation.grid import make_grid
from starcoder_jax.gin_files import recipe_text

# What is computed is compared, not how fast; and these compile in half the time.
ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
RUNS = ["first-40-steps-seed-0", "wide-40-steps-seed-0"]


@pytest.fixture
def gin_file(tmp_path, micro_folder):
    fields = {
        "base": (str(micro_folder / "micro.gin"),),
        "overrides": (f"data.directory={micro_folder / 'data'}", "train.eval_every=40"),
        "arms": {"first": (), "wide": ("model.mlp_dim=256",)},
        "seeds": (0,),
    }
    path = tmp_path / "mine.gin"
    path.write_text("".join(f"ablation.{name} = {value!r}\n" for name, value in fields.items()))
    return path


def start(gin_file, workdir):
    """The command, as the leader of a group of processes."""
    return micro.start(
        "ablate",
        f"--gin_file={gin_file}",
        f"--workdir={workdir}",
        "--gin.fim.rate=0.0",  # nothing is infilled: half as much to compile
        environment=ENVIRONMENT,
        start_new_session=True,
    )


def finish(process):
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def wait_for_checkpoint(process, folder):
    while not any(path.name.isdigit() for path in (folder / "checkpoints").glob("*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_killed_in_every_run_it_finds_the_same(gin_file, tmp_path):
    status, expected, stderr = finish(start(gin_file, tmp_path / "calm"))
    assert status == 0, stderr
    assert "eval/bits_per_byte at equal tokens" in expected and "missing" not in expected

    workdir = tmp_path / "killed"
    folders = [workdir / "runs" / name for name in RUNS]
    # The first run with its ablation, as when a machine goes down.
    process = start(gin_file, workdir)
    wait_for_checkpoint(process, folders[0])
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    # The ablation alone: its second run goes on without it, and must not be begun a second time.
    process = start(gin_file, workdir)
    wait_for_checkpoint(process, folders[1])
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    status, found, stderr = finish(start(gin_file, workdir))
    assert status == 0, stderr
    first, wide = [(folder / "ablate.log").read_text() for folder in folders]
    assert re.findall(r"resuming after step \d+", first)[0] != "resuming after step 40"
    assert set(re.findall(r"resuming after step \d+", wide)) == {"resuming after step 40"}

    assert found.splitlines()[:-1] == expected.splitlines()[:-1]
    results = [json.loads((w / "ablation.json").read_text()) for w in (tmp_path / "calm", workdir)]
    assert results[0] == results[1] and results[0]["complete"]
    bits = results[0]["comparisons"][1]["arms"]
    assert bits["wide"]["difference"]["mean"] == pytest.approx(
        bits["wide"]["mean"] - bits["first"]["mean"]
    )
    assert (workdir / "ablation.html").exists()


def run(capfd, *arguments):
    """Exit status, and what was written."""
    status = 0
    try:
        ablate.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def put_result(run, workdir, bits_per_byte):
    """Leaves what a finished run leaves, as far as an ablation looks at it."""
    folder = workdir / "runs" / run.name
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(recipe_text(run.recipe))
    record = {"step": run.steps, "tokens": run.tokens, "eval/bits_per_byte": bits_per_byte}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "outcome.json").write_text('{"diverged": null}')


def test_a_list_names_the_runs_and_what_became_of_them(gin_file, tmp_path, capfd):
    workdir = tmp_path / "w"
    arguments = [f"--gin_file={gin_file}", f"--workdir={workdir}"]
    status, out, err = run(capfd, *arguments, "--list")
    assert (status, err) == (0, "") and not workdir.exists()
    states = [line.split(maxsplit=2) for line in out.splitlines()]
    assert states == [["0", RUNS[0], "not finished"], ["1", RUNS[1], "not finished"]]
    put_result(make_grid([str(gin_file)], [], workdir).runs[0], workdir, 1.5)
    status, out, _ = run(capfd, *arguments, "--list")
    states = [line.split(maxsplit=2)[2] for line in out.splitlines()]
    assert (status, states) == (0, ["done", "not finished"])
    status, out, err = run(capfd, *arguments, "--index=0")
    assert status == 0 and f"{RUNS[1]} is missing: not finished" in out, err
    assert not json.loads((workdir / "ablation.json").read_text())["complete"]
    # A change of what all arms are is not mixed with what is there.
    status, _, err = run(capfd, *arguments, "--gin.model.num_layers=1")
    assert status == 2 and "model.num_layers: 2 -> 1" in err


def test_what_is_far_behind_is_given_up_only_if_asked_for(gin_file, tmp_path, capfd):
    workdir = tmp_path / "w"
    seeds = "ablation.seeds=(0, 1)"
    for done in make_grid([str(gin_file)], [seeds], workdir).runs:
        if (done.arm, done.seed) != ("wide", 1):
            put_result(done, workdir, 3.0 if done.arm == "wide" else 1.5)
    arguments = [f"--gin_file={gin_file}", f"--workdir={workdir}", f"--gin.{seeds}"]
    status, out, err = run(capfd, *arguments, "--gin.ablation.give_up=0.5")
    assert status == 0
    reason = "100.0% more held-out bits per byte than first, seed 0"
    assert f"wide-40-steps-seed-1 is not run: {reason}" in err
    assert f"wide-40-steps-seed-1 is missing: given up ({reason})" in out
    assert "+1.5 in the one seed there is" in out
    _, out, _ = run(capfd, *arguments, "--list")
    assert "given up" not in out and "not finished" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index=2", "--gin_file=MINE"], "--index=2: there are runs 0 to 1; see --list"),
        (["--index=-1", "--gin_file=MINE"], "--index=-1: there are runs 0 to 1"),
        (["--index=0", "--gin_file=MINE", "--gin.ablation.give_up=0.1"], "give_up=None"),
        (["--gin_file=MINE", "--gin.ablation.sedes=(1,)"], "did you mean 'ablation.seeds'"),
        (["--gin_file=MINE", "--gin.modle.mlp_dim=1"], "did you mean 'model'"),
        (["--gin_file=tiny.gin"], "unknown section"),
        (["--gin_file=ablations/fin.gin"], "did you mean 'ablations/fim.gin'"),
        (["--gin_file=MINE", "--list", "--index=0"], "not allowed with argument"),
        (["--gin_file=MINE", "more"], "unknown argument 'more'"),
        ([], "required: --gin_file"),
    ],
)
def test_mistakes_are_answered_in_one_line(gin_file, tmp_path, capfd, arguments, message):
    arguments = [argument.replace("MINE", str(gin_file)) for argument in arguments]
    status, out, err = run(capfd, f"--workdir={tmp_path}/w", *arguments)
    lines = [line for line in err.splitlines() if not line.startswith(("usage:", " "))]
    assert (status, out, len(lines)) == (2, "", 1)
    assert message in lines[0]
    assert not (tmp_path / "w").exists()


def test_help(capfd):
    status, out, _ = run(capfd, "--help")
    assert status == 0
    assert "python -m starcoder_jax.ablate" in out and "--index" in out
