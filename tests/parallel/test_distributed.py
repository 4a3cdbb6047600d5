"""Real processes that find each other, work and end, without a model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import micro
import pytest

from starcoder_jax.parallel import distributed

PROGRAM = """
import json, os, signal, sys, time
from starcoder_jax.parallel import distributed

how, who, where = sys.argv[1:]
with distributed.start("demo") as processes:
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    me = jax.process_index()
    total = int(process_allgather(np.array(me + 1)).sum())
    print(json.dumps([me, jax.process_count(), total, processes.first(lambda: me + 7)]), flush=True)
    process_allgather(np.array(me))  # all have come so far
    if me == int(who):
        if how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[how])
        if how == "raises":
            raise KeyError("a bug")
        if how == "exits":
            sys.exit(5)
    with processes.blaming_the_lost():
        if where == "collective":
            process_allgather(np.array(me))
        if where == "waiting":
            time.sleep(60)
        if where == "first":
            processes.first(lambda: time.sleep(60))
        if where == "child":
            # It would keep the pipes open that the test reads to their end.
            processes.first(lambda: processes.run(["sleep", "60"]))
print("done", flush=True)
"""

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}


def run(environments, *arguments):
    """The exit status, the lines and the errors of each process."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=clean | {"JAX_NUM_CPU_DEVICES": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        outputs = [child.communicate(timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
    return [
        (
            child.returncode,
            [line for line in output.splitlines() if not line.startswith("[Gloo]")],
            error,
        )
        for child, (output, error) in zip(children, outputs, strict=True)
    ]


def check_greetings(results):
    for index, (_, lines, _) in enumerate(results):
        count = len(results)
        assert json.loads(lines[0]) == [index, count, count * (count + 1) // 2, 7]


def test_alone_nothing_is_started(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with distributed.start("demo") as processes:
        assert not jax.distributed.is_initialized()
        assert processes.first(lambda: {"any": "thing"}) == {"any": "thing"}
    error = KeyError("as it is")
    with pytest.raises(KeyError) as raised, processes, processes.blaming_the_lost():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("text", ["x", "0", "-1", "1.5"])
def test_a_time_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("STARCODER_START_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"STARCODER_START_TIMEOUT is '{text}'"):
        distributed.start("demo")


def test_two_slurm_tasks_work_and_end_together():
    port = {"JAX_COORDINATOR_PORT": str(micro.free_port())}
    tasks = [{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]
    results = run([SLURM | port | task for task in tasks], "ends", "0", "collective")
    check_greetings(results)
    for status, lines, error in results:
        assert (status, lines[1:], error) == (0, ["done"], "")


@pytest.mark.parametrize(
    ("who", "where"), [(0, "waiting"), (0, "collective"), (1, "child"), (1, "collective")]
)
def test_when_one_of_three_is_killed_the_others_say_so_and_end(who, where):
    begin = time.monotonic()
    results = run(micro.by_hand(3), "SIGKILL", str(who), where)
    assert time.monotonic() - begin < 50
    check_greetings(results)
    for index, (status, lines, error) in enumerate(results):
        assert lines[1:] == []
        if index == who:
            assert status == -signal.SIGKILL
        else:
            assert status == distributed.PROCESS_LOST == 4, error
            # Where process 0 is gone, JAX says so at the same time in many words.
            assert (
                f"demo: process {who} ({socket.gethostname()}) is gone (killed, or its host "
                "failed): start the same command on all hosts again\n"
            ) in error
            assert who == 0 or error.count("\n") == 1


@pytest.mark.parametrize(
    ("how", "who", "where", "expected"),
    [("raises", 1, "first", 1), ("exits", 0, "collective", 5), ("exits", 1, "waiting", 5)],
)
def test_when_one_ends_by_an_error_the_other_ends_with_its_status(how, who, where, expected):
    results = run(micro.by_hand(2), how, str(who), where)
    check_greetings(results)
    assert [status for status, _, _ in results] == [expected, expected]
    errors = [error for _, _, error in results]
    assert errors[1 - who].startswith(f"demo: process {who} (")
    assert errors[1 - who].endswith(f" ended with status {expected}: its log says why\n")
    if how == "raises":
        assert errors[who].endswith("KeyError: 'a bug'\n")
    else:
        assert errors[who] == ""


def test_sigterm_before_training_ends_all():
    results = run(micro.by_hand(2), "SIGTERM", "1", "waiting")
    check_greetings(results)
    assert [status for status, _, _ in results] == [4, -signal.SIGTERM]
