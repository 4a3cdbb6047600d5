import json
import os
import subprocess

import pytest
from stand_ins import ARGUMENTS, dumping_python, make_machine


@pytest.fixture
def storage(launcher, tmp_path):
    """Where the commit is installed already."""
    git = ["git", "-C", str(launcher.checkout), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    made = tmp_path / "made"
    make_machine(made, launcher.checkout, dumping_python(tmp_path / "dump"))
    (made / "starcoder").rename(made / f"starcoder-{commit}")
    return made


def test_submitted_arguments_reach_every_process_as_they_were(launcher, storage, tmp_path):
    flags = [f"--storage={storage}", "--nodes=4", "--name=mine"]
    done = launcher.run("slurm.sh", "run", *flags, "--", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call[:6] == [
        "sbatch",
        "--job-name=mine",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        f"--output={storage}/mine-%j.log",
    ]
    assert batch(launcher, call[6:], 0).returncode == 0
    (step,) = launcher.calls()[1:]
    assert step[0] == "srun" and "--wait=300" in step
    subprocess.run(step[step.index("bash") :], check=True)
    arguments, environment = json.loads((tmp_path / "dump").read_text())
    assert arguments == ["-m", "starcoder_jax.train", *ARGUMENTS]
    assert "--xla_gpu_" in environment["XLA_FLAGS"]


def batch(launcher, command, status, requeue=0, **environment):
    """Runs the batch script as Slurm does: by name, from a copy of its own."""
    launcher.answer({"srun": [(status, "")], "scontrol": [(requeue, "")]})
    copy = launcher.home / "slurm_script"
    with open(command[0]) as script:
        copy.write_text(script.read())
    path = f"{launcher.home / 'bin'}:{os.environ['PATH']}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        ["bash", str(copy), *command[1:]],
        env=clean | {"PATH": path, "SLURM_JOB_ID": "77"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("status", "restarts", "seconds", "again"),
    [
        (0, "", "9", False),
        (2, "", "9", False),
        (3, "", "5000", False),
        (143, "", "9", True),
        (143, "500", "9", True),  # preemptions are no fault
        (1, "", "9", True),
        (4, "19", "9", True),
        (137, "20", "9", False),
        (4, "500", "5000", True),
    ],
)
def test_what_is_queued_again(launcher, checkout, status, restarts, seconds, again):
    script = [str(checkout / "launch" / "slurm.sbatch"), "/code", "--gin_file=a"]
    # Bash counts on from the SECONDS that it finds.
    environment = {"SECONDS": seconds} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    done = batch(launcher, script, status, **environment)
    requeued = ["scontrol", "requeue", "77"] in launcher.calls()
    assert requeued == again
    assert done.returncode == (0 if again else status)


def test_after_stop_a_job_does_not_come_back(launcher, checkout):
    launcher.answer({"squeue": [(0, "7\n31\n9")]})
    done = launcher.run("slurm.sh", "stop", "--name=mine")
    assert done.returncode == 0, done.stderr
    assert launcher.calls()[0][:2] == ["squeue", "--me"] and "--name=mine" in launcher.calls()[0]
    assert launcher.calls()[1:] == [
        ["scontrol", "update", "JobId=31", "Requeue=0"],
        ["scancel", "--signal=TERM", "31"],
    ]
    script = [str(checkout / "launch" / "slurm.sbatch"), "/code", "--gin_file=a"]
    assert batch(launcher, script, 143, requeue=1).returncode == 143


def test_the_batch_script_asks_for_what_saving_needs(checkout):
    text = (checkout / "launch" / "slurm.sbatch").read_text()
    head = text.partition("\nset ")[0]
    for option in ("--requeue", "--signal=TERM@600", "--open-mode=append", "--exclusive"):
        assert f"\n#SBATCH {option}\n" in head


def test_install_is_of_the_commit(launcher, tmp_path):
    """A stand-in for Python makes the environment."""
    python = tmp_path / "bin" / "python3.13"
    python.write_text(
        '#!/bin/sh\n[ "$1 $2" != "-m venv" ] || { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }\n'
    )
    python.chmod(0o755)
    storage = tmp_path / "all see it"
    storage.mkdir()
    done = launcher.run("slurm.sh", "install", f"--storage={storage}")
    assert done.returncode == 0, done.stderr
    (folder,) = [path for path in storage.iterdir() if path.is_dir()]
    assert (folder / "code" / "launch" / "worker.sh").exists()
    done = launcher.run("slurm.sh", "run", f"--storage={storage}", "--", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call[6:] == [f"{folder}/code/launch/slurm.sbatch", f"{folder}/code", *ARGUMENTS]


def test_logs_and_state(launcher):
    launcher.answer({"squeue": [(0, "5")]})
    done = launcher.run("slurm.sh", "logs", "--storage=/s", "--dry-run")
    assert done.stdout == "tail -n 100 -F /s/starcoder-JOB.log \n"
    launcher.run("slurm.sh", "state")
    assert launcher.calls() == [["squeue", "--me", "--name=starcoder", "--long"]]


def test_a_dry_run_calls_nothing(launcher):
    for action in ("install", "run", "logs", "state", "stop"):
        flags = ["--storage=/nowhere", "--dry-run"]
        done = launcher.run("slurm.sh", action, *flags, "--", *ARGUMENTS)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert launcher.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "--storage=... is missing (or STARCODER_STORAGE in the environment)"),
        (["run", "--storage=s"], "--storage=s must be an absolute path"),
        (["run", "--storage=/s"], "lack --gin_file=..."),
        (["run", "--storage=/s", "--", *ARGUMENTS], "is not at /s/starcoder-"),
        (["run", "--storage=/s", "--nodes=some"], "--nodes=some and --gpus=8 must be positive"),
        (["queue", "--storage=/s"], "no action 'queue'"),
    ],
)
def test_bad_input_is_named_in_one_line(launcher, arguments, message):
    done = launcher.run("slurm.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert launcher.calls() == []


def test_no_job_of_that_name(launcher):
    done = launcher.run("slurm.sh", "stop", "--name=mine")
    assert (done.returncode, done.stderr) == (2, "slurm.sh: no job called mine is queued or runs\n")
    assert [call[0] for call in launcher.calls()] == ["squeue"]
