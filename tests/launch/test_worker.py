import json
import os
import signal
import subprocess
import sys
import time

import pytest
from stand_ins import dumping_python, make_machine

# Like training: SIGTERM asks it to save and to end with 143; STUBBORN does not listen.
TRAINING = f"""#!{sys.executable} -IS
import os, signal, sys, time
def stop(*_):
    if "STUBBORN" not in os.environ:
        os.write(1, b"saved\\n")
        os._exit(143)
signal.signal(signal.SIGTERM, stop)
print("training", os.getpid(), flush=True)
if "STATUS" in os.environ:
    sys.exit(int(os.environ["STATUS"]))
while True:
    time.sleep(0.05)
"""


def lives(pid: int) -> bool:
    """Whether there is such a process that is not only waiting for its parent to notice its end."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def machine(tmp_path, checkout):
    worker = make_machine(tmp_path, checkout, TRAINING)

    def run(*arguments, **environment):
        return subprocess.run(
            ["bash", str(worker), *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield run
    run("stop", STARCODER_STOP_SECONDS="0")


def wait_for(machine, state):
    deadline = time.monotonic() + 30
    while machine("state").stdout != f"starcoder: {state}\n":
        assert time.monotonic() < deadline, machine("state").stdout
        time.sleep(0.05)


def begin(machine, tmp_path, before=0, **environment):
    """Starts training and returns its process id and log, once it is under way.

    Its log has lines of so many runs before.
    """
    done = machine("start", "tpu", f"--workdir={tmp_path}/w", **environment)
    assert (done.returncode, done.stdout) == (0, "starcoder: started\n"), done.stderr
    (log,) = (tmp_path / "w" / "logs").iterdir()
    deadline = time.monotonic() + 30
    while len(lines := log.read_text().splitlines()) <= before:
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
    return int(lines[before].removeprefix("training ")), log


def test_start_and_stop(machine, tmp_path):
    assert machine("state").stdout == "starcoder: idle\n"
    _, log = begin(machine, tmp_path)
    assert machine("state").stdout == "starcoder: running\n"
    again = machine("start", "tpu", f"--workdir={tmp_path}/w")
    assert again.returncode == 2 and "training runs on this machine already" in again.stderr
    assert machine("stop").stdout == "starcoder: ended 143\n"
    assert log.read_text().endswith("saved\n")
    assert machine("stop").stdout == "starcoder: ended 143\n"


@pytest.mark.parametrize("status", [0, 3])
def test_how_training_ended_is_noted_and_its_log_goes_on(machine, tmp_path, status):
    begin(machine, tmp_path, STATUS=str(status))
    wait_for(machine, f"ended {status}")
    begin(machine, tmp_path, before=1)
    assert machine("state").stdout == "starcoder: running\n"


def test_what_does_not_listen_is_killed(machine, tmp_path):
    pid, log = begin(machine, tmp_path, STUBBORN="1")
    assert lives(pid)
    assert machine("stop", STARCODER_STOP_SECONDS="1").stdout == "starcoder: ended unnoted\n"
    assert not lives(pid)
    assert "saved" not in log.read_text()


def test_a_machine_that_went_down_does_not_count_as_training(machine, tmp_path):
    pid, _ = begin(machine, tmp_path)
    os.killpg(os.getpgid(pid), signal.SIGKILL)  # supervisor and training at once
    wait_for(machine, "ended unnoted")


def test_the_end_of_the_machine_lets_training_save(machine, tmp_path):
    pid, log = begin(machine, tmp_path)
    os.killpg(os.getpgid(pid), signal.SIGTERM)  # as at shutdown
    wait_for(machine, "ended 143")
    assert log.read_text().endswith("saved\n")


def test_run_in_the_foreground_is_training_itself(tmp_path, checkout):
    worker = make_machine(tmp_path, checkout, TRAINING)
    command = ["bash", str(worker), "run", "tpu", f"--workdir={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"training {process.pid}\n"
        process.terminate()
        assert process.wait(30) == 143


def test_flags_of_the_hardware_and_the_users_own_after_them(tmp_path, checkout):
    dump = tmp_path / "dump"
    worker = make_machine(tmp_path, checkout, dumping_python(dump))
    command = ["bash", str(worker), "run", "gpu", "--workdir=/w d", "--gin.x="]
    own = {"XLA_FLAGS": "--mine=1 --xla_gpu_enable_latency_hiding_scheduler=false"}
    for environment in ({}, own | {"JAX_COMPILATION_CACHE_DIR": "/c"}):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("XLA", "JAX", "LIBTPU"))}
        subprocess.run(command, env=clean | environment, check=True)
        arguments, found = json.loads(dump.read_text())
        assert arguments == ["-m", "starcoder_jax.train", "--workdir=/w d", "--gin.x="]
        flags = found["XLA_FLAGS"].split()
        assert flags[0] == "--xla_gpu_enable_latency_hiding_scheduler=true"
        assert flags[-2:] == own["XLA_FLAGS"].split() or not environment
        assert found["JAX_COMPILATION_CACHE_DIR"] == ("/c" if environment else "/w d/compiled")
        assert not found["LIBTPU_INIT_ARGS"].strip()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("worker.sh", ["run", "v9", "--workdir=/w"], "there are no flags for 'v9'"),
        ("worker.sh", ["run", "tpu", "--gin_file=x"], "lack --workdir=DIRECTORY"),
        ("worker.sh", ["start", "tpu"], "lack --workdir=DIRECTORY"),
        ("worker.sh", ["dance"], "no action 'dance'"),
        ("install.sh", ["cpu"], "the first argument must be tpu or cuda, not 'cpu'"),
        ("install.sh", ["tpu", "there"], "storage there is neither SERVER:/PATH nor gs://BUCKET"),
        ("install.sh", ["tpu", "gs://b"], "gcsfuse is not on this machine: install it, or use NFS"),
    ],
)
def test_bad_input_is_named_in_one_line(tmp_path, checkout, script, arguments, message):
    make_machine(tmp_path, checkout, TRAINING)
    (tmp_path / "bin").mkdir()
    for program, text in {"sudo": "exit 0", "mountpoint": "exit 1"}.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "starcoder" / "code" / "launch" / script), *arguments],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
