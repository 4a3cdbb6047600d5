import json
import os
import pathlib
import subprocess

import pytest
from stand_ins import ARGUMENTS, dumping_python, make_machine

FLAGS = {"project": "p-1", "zone": "us-east5-a", "accelerator": "v5p-256", "storage": "10.0.0.2:/s"}
GIVEN = [f"--{name}={value}" for name, value in FLAGS.items()]
WHERE = ["--project=p-1", "--zone=us-east5-a"]
SHORT = [*GIVEN, "--interval=0"]
STATE = "queued-resources describe"
NODE = "tpu-vm describe"
TRAINING = "echo starcoder: absent"  # in the command that asks for the state of training


def told(call: list[str]) -> str:
    """What a call of gcloud does, in a word or two."""
    words = call[3:5]
    if words == ["tpu-vm", "ssh"]:
        command = next(a for a in call if a.startswith("--command="))
        names = {"absent": "ask", "stop; fi": "stop", "install.sh": "install", " start ": "start"}
        return next(name for text, name in names.items() if text in command)
    return {"scp": "copy"}.get(words[1], words[1])


def story(launcher) -> list[str]:
    """What was done, without the questions."""
    done = [told(call) for call in launcher.calls()]
    return [word for word in done if word not in ("describe", "ask")]


def states(*texts: str) -> list[tuple[int, str]]:
    """Answers for training's state: of two machines, the same or separated by a slash."""
    both = [text.split("/") if "/" in text else [text, text] for text in texts]
    return [(0, "\n".join(f"starcoder: {state}" for state in pair)) for pair in both]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["--accelerator-type=v5p-256", "--runtime-version=v2-alpha-tpuv5", "--spot"]),
        (
            ["--capacity=reserved", "--accelerator=v6e-256"],
            ["--accelerator-type=v6e-256", "--runtime-version=v2-alpha-tpuv6e", "--reserved"],
        ),
        (
            ["--capacity=on-demand", "--accelerator=v5litepod-256", "--name=mine"],
            ["--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite"],
        ),
        (["--runtime=other"], ["--accelerator-type=v5p-256", "--runtime-version=other", "--spot"]),
    ],
)
def test_create(launcher, flags, expected):
    done = launcher.run("tpu_vm.sh", "create", *GIVEN, *flags)
    assert done.returncode == 0, done.stderr
    name = "mine" if "--name=mine" in flags else "starcoder"
    create = ["gcloud", "compute", "tpus", "queued-resources", "create", name]
    assert launcher.calls() == [[*create, f"--node-id={name}", *expected, *WHERE]]


def test_flags_may_come_from_the_environment(launcher):
    environment = {f"STARCODER_{name.upper()}": value for name, value in FLAGS.items()}
    assert launcher.run("tpu_vm.sh", "create", **environment).returncode == 0
    assert launcher.run("tpu_vm.sh", "create", *GIVEN).returncode == 0
    first, second = launcher.calls()
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", *GIVEN[1:]], "--project=... is missing (or STARCODER_PROJECT in"),
        (["delete", "--project=p"], "--zone=... is missing (or STARCODER_ZONE in"),
        (["create", *GIVEN[:2]], "--accelerator=... is missing (or STARCODER_ACCELERATOR in"),
        (["install", *GIVEN[:3]], "--storage=... is missing (or STARCODER_STORAGE in"),
        (["create", *GIVEN, "--colour=red"], "unknown flag --colour"),
        (["create", *GIVEN, "--zone"], "--zone is no flag, or lacks its value"),
        (["create", "delete", *GIVEN], "not both create and delete"),
        (["dance", *GIVEN], "no action 'dance'"),
        ([*GIVEN], "no action ''"),
        (["create", *GIVEN, "--capacity=cheap"], "--capacity=cheap must be spot, reserved or"),
        (["create", *GIVEN, "--accelerator=h100"], "accelerator h100 is unknown: give v5litepod-N"),
        (["create", *GIVEN, "--accelerator=tpu7x-256"], "tpu7x-256 is to be had in GKE only"),
        (["watch", *GIVEN, "--interval=soon"], "--interval=soon must be a number of seconds"),
        (["install", *GIVEN, "--commit=nowhere"], "nowhere is no commit of a git checkout at"),
        (["run", *GIVEN], "the arguments of training lack --gin_file=..."),
        (["run", *GIVEN, "--", "--gin_file=15b"], "lack --workdir=/..."),
        (["run", *GIVEN, "--", "--gin_file=15b", "--workdir=runs/15b"], "lack --workdir=/..."),
    ],
)
def test_bad_input_is_named_in_one_line(launcher, arguments, message):
    done = launcher.run("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
    assert done.stderr.startswith("tpu_vm.sh: ")
    assert launcher.calls() == []


def test_what_is_not_committed_stays(launcher, tmp_path, checkout):
    """Installed is what git has; then each machine runs the code's own installer."""
    (checkout / "launch" / "forgotten").touch()
    try:
        done = launcher.run("tpu_vm.sh", "install", *GIVEN)
    finally:
        (checkout / "launch" / "forgotten").unlink()
    assert done.returncode == 0, done.stderr
    copy, install = launcher.calls()
    assert copy[3:5] == ["tpu-vm", "scp"] and copy[6:] == [
        "starcoder:",
        "--quiet",
        "--worker=all",
        *WHERE,
    ]
    assert not pathlib.Path(copy[5]).exists()  # no litter, but the stand-in kept a copy
    assert "--worker=all" in install

    home = tmp_path / "machine"
    home.mkdir()
    (tmp_path / "starcoder.tar.gz").rename(home / "starcoder.tar.gz")
    (home / "starcoder" / "old").mkdir(parents=True)
    log = tmp_path / "log"
    for program in ("sudo", "mountpoint", "mount.nfs", "python3.13"):
        stand_in = tmp_path / "bin" / program
        stand_in.write_text(
            f'#!/bin/sh\necho {program} "$@" >>{log}\n[ {program} != mountpoint ]\n'
        )
        stand_in.chmod(0o755)
    venv = tmp_path / "bin" / "python3.13"
    venv.write_text(
        f'#!/bin/sh\necho python3.13 "$@" >>{log}\n[ "$1 $2" != "-m venv" ] || '
        f'{{ mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }}\n'
    )
    environment = {"HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command_of(install)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    code = home / "starcoder" / "code"
    assert (code / "launch" / "worker.sh").exists() and not (home / "starcoder" / "old").exists()
    assert not (code / "launch" / "forgotten").exists()
    assert (home / "starcoder" / "installed").exists()
    lines = log.read_text().splitlines()
    assert lines[0] == "mountpoint -q /mnt/starcoder"
    assert "mount -t nfs" in lines[2] and lines[2].endswith("10.0.0.2:/s /mnt/starcoder")
    assert lines[-2] == f"python3.13 -m venv {home}/starcoder/venv"
    assert lines[-1].endswith(f"install -q -c {code}/constraints.txt {code}[tpu]")


def command_of(call: list[str]) -> str:
    """The line that the machine's shell gets. gcloud splits it at spaces, ssh joins it again."""
    text = next(a for a in call if a.startswith("--command=")).removeprefix("--command=")
    return " ".join(text.split(" "))


def test_arguments_reach_training_as_they_were(launcher, tmp_path, checkout):
    done = launcher.run("tpu_vm.sh", "run", *GIVEN, "--", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "starcoder"]
    assert "--worker=all" in call

    home = tmp_path / "machine"
    workdir = tmp_path / "work dir"
    worker = make_machine(home, checkout, dumping_python(tmp_path / "dump"))
    # The one argument that names a place: here it must be one that can be written.
    command = command_of(call).replace(
        "/mnt/starcoder/runs/fifteen\\ b", str(workdir).replace(" ", "\\ ")
    )
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True)
    assert done.stdout == "starcoder: started\n", done.stderr
    while (state := worker_state(worker)) == "running":
        pass
    assert state == "ended 0"
    arguments, environment = json.loads((tmp_path / "dump").read_text())
    expected = [f"--workdir={workdir}" if a.startswith("--workdir=") else a for a in ARGUMENTS]
    assert arguments == ["-m", "starcoder_jax.train", *expected]
    assert "--xla_tpu_" in environment["LIBTPU_INIT_ARGS"]


def worker_state(worker) -> str:
    done = subprocess.run(
        ["bash", str(worker), "state"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().removeprefix("starcoder: ")


def test_a_dry_run_calls_nothing_and_prints_all(launcher):
    for action, words in {
        "create": ["queued-resources create"],
        "install": ["git", "scp", "install.sh"],
        "run": ["worker.sh\\ start\\ tpu"],
        "logs": ["--worker=0", "log"],
        "state": ["queued-resources describe", "state"],
        "stop": ["stop"],
        "delete": ["queued-resources delete"],
        "watch": ["describe", "delete", "create", "scp", "install.sh", "start"],
    }.items():
        done = launcher.run("tpu_vm.sh", action, *SHORT, "--dry-run", "--", *ARGUMENTS)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words), action
    assert launcher.calls() == []


def test_help_names_every_flag(launcher):
    for script in ("tpu_vm.sh", "gke.sh", "slurm.sh"):
        done = launcher.run(script, "--help")
        assert done.returncode == 0 and not done.stderr
        text = (launcher.checkout / "launch" / script).read_text()
        (flags,) = [line for line in text.splitlines() if line.startswith("parse_flags ")]
        names = flags.split('"')[1].split()
        assert len(names) > 4 and all(f"--{name}" in done.stdout for name in names)


def test_delete_asks(launcher):
    assert launcher.run("tpu_vm.sh", "delete", *GIVEN).returncode == 2
    assert launcher.run("tpu_vm.sh", "delete", *GIVEN, stdin="n\n").returncode == 2
    assert launcher.calls() == []
    assert launcher.run("tpu_vm.sh", "delete", *GIVEN, stdin="y\n").returncode == 0
    assert launcher.run("tpu_vm.sh", "delete", *GIVEN, "--yes").returncode == 0
    delete = ["gcloud", "compute", "tpus", "queued-resources", "delete", "starcoder"]
    assert launcher.calls() == [[*delete, "--force", "--quiet", *WHERE]] * 2


def test_logs_and_state(launcher):
    launcher.answer({STATE: [(0, "ACTIVE")], NODE: [(0, "READY")], TRAINING: states("running")})
    done = launcher.run("tpu_vm.sh", "state", *GIVEN)
    assert done.stdout == "READY\nstarcoder: running\nstarcoder: running\n"
    launcher.answer({STATE: [(0, "WAITING_FOR_RESOURCES")]})
    assert launcher.run("tpu_vm.sh", "state", *GIVEN).stdout == "WAITING_FOR_RESOURCES\n"
    launcher.run("tpu_vm.sh", "logs", *GIVEN)
    call = launcher.calls()[-1]
    assert "--worker=0" in call and command_of(call).endswith("worker.sh log")


def watch(launcher, answers, **environment):
    launcher.answer(answers)
    return launcher.run("tpu_vm.sh", "watch", *SHORT, "--", *ARGUMENTS, **environment)


def test_watch_from_nothing_through_two_preemptions_to_the_end(launcher):
    done = watch(
        launcher,
        {
            STATE: [
                (1, "ERROR: (gcloud) NOT_FOUND: Resource was not found"),
                (0, "WAITING_FOR_RESOURCES"),
                (0, "WARNING: gcloud is old\nPROVISIONING"),
                *[(0, "WARNING: gcloud is old\nACTIVE")] * 3,  # new, running, taken away
                (0, "ACTIVE"),  # new again
                (0, "SUSPENDING"),
                (0, "SUSPENDED"),
                (1, "ERROR: timed out"),
                (0, "ACTIVE"),
            ],
            NODE: [(0, "READY"), (0, "READY"), (0, "PREEMPTED"), (0, "READY")],
            TRAINING: states("absent", "running", "absent", "absent", "running", "ended 0"),
        },
    )
    assert done.returncode == 0, done.stderr
    begin = ["create", "stop", "copy", "install", "start"]
    assert story(launcher) == [*begin, "delete", *begin, "delete", *begin]
    assert "all steps are done; the machines are still there" in done.stderr
    created = [call for call in launcher.calls() if told(call) == "create"]
    assert len(created) == 3 and created[0] == created[1] == created[2]
    started = [call for call in launcher.calls() if told(call) == "start"]
    assert started[0] == started[1] == started[2]


ALIVE = {STATE: [(0, "ACTIVE")], NODE: [(0, "READY")]}


def test_watch_starts_again_what_ended_by_a_fault_but_not_for_ever(launcher):
    done = watch(launcher, ALIVE | {TRAINING: states("ended 1", "running", "ended 143/ended 1")})
    assert done.returncode == 1
    assert story(launcher) == ["stop", "start"] * 2
    assert (
        "three runs in a row ended soon (1 starcoder: ended 1,1 starcoder: ended 143)"
        in done.stderr
    )


def test_watch_does_not_start_again_what_diverged(launcher):
    for end in ("ended 3", "ended 143/ended 3", "ended 3/running"):
        done = watch(launcher, ALIVE | {TRAINING: states("running", end)})
        assert done.returncode == 3 and "no longer finite" in done.stderr
    assert story(launcher) == []


def test_watch_gives_machines_time_to_end_together(launcher):
    patient = states(*["ended 0/running"] * 2, "running", *["ended 0/running"] * 2, "ended 0")
    assert watch(launcher, ALIVE | {TRAINING: patient}).returncode == 0
    assert story(launcher) == []
    hanging = states(*["ended 1/running"] * 3, "running", "ended 0")
    assert watch(launcher, ALIVE | {TRAINING: hanging}).returncode == 0
    assert story(launcher) == ["stop", "start"]


def test_watch_takes_a_machine_that_does_not_answer_for_nothing_else(launcher):
    answers = [(255, "starcoder: absent"), *states("ended 0")]
    assert watch(launcher, ALIVE | {TRAINING: answers}).returncode == 0
    assert story(launcher) == []


def test_watch_installs_where_only_some_machines_are_new(launcher):
    assert watch(launcher, ALIVE | {TRAINING: states("absent/running", "ended 0")}).returncode == 0
    assert story(launcher) == ["stop", "copy", "install", "start"]


def test_watch_goes_on_when_a_step_fails(launcher):
    done = watch(
        launcher,
        {
            STATE: [(1, "NOT_FOUND")] * 2 + [(0, "FAILED")] * 2 + [(0, "ACTIVE")],
            NODE: [(0, "READY")],
            "queued-resources create": [(1, "quota"), (0, "")],
            "queued-resources delete": [(1, "busy"), (0, "")],
            "tpu-vm scp": [(1, "no route"), (0, "")],
            TRAINING: states("absent", "absent", "ended 0"),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying again in a while") == 3
    assert story(launcher) == [
        *["create", "create", "delete", "delete", "create"],
        *["stop", "copy", "stop", "copy", "install", "start"],
    ]


def test_a_machine_where_install_failed_counts_as_new(launcher, tmp_path, checkout):
    launcher.answer(ALIVE | {TRAINING: states("running")})
    launcher.run("tpu_vm.sh", "state", *GIVEN)
    home = tmp_path / "machine"
    make_machine(home, checkout, "")
    ask = ["bash", "-c", command_of(launcher.calls()[-1])]
    answers = []
    for marker in (None, home / "starcoder" / "installed"):
        if marker is not None:
            marker.touch()
        done = subprocess.run(ask, cwd=home, capture_output=True, text=True, check=True)
        answers.append(done.stdout)
    assert answers == ["starcoder: absent\n", "starcoder: idle\n"]
