"""Runs that are killed, and what is left of them."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import small_pipeline
from small_pipeline import calls, files

SCRIPT, KILLS, WORKERS = pathlib.Path(small_pipeline.__file__), 5, 2


def start(folder, log, pause):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(WORKERS)],
        env=os.environ
        | {"CALLS": str(log), "PAUSE": str(pause), "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_killed_five_times_a_run_ends_with_the_same_bytes(tmp_path):
    log, pause = tmp_path / "calls", 0.05
    assert start(tmp_path / "whole", tmp_path / "calls of whole", 0).wait() == 0
    whole = calls(tmp_path / "calls of whole")
    order = random.Random(5)
    for _ in range(KILLS):
        target = len(calls(log)) + order.randint(1, 5)
        run = start(tmp_path / "run", log, pause)
        wait_for(lambda target=target: len(calls(log)) >= target)
        time.sleep(order.uniform(0, pause))
        assert run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    killed = len(calls(log))
    assert start(tmp_path / "run", log, 0).wait() == 0
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    # Each kill can cost what the workers had in hand, and no more.
    assert killed > KILLS and len(calls(log)) <= len(whole) + KILLS * WORKERS
    assert set(calls(log)) == set(whole)


@pytest.mark.parametrize("pause", ["600", "without end in a regex"])
def test_workers_end_with_a_run_that_is_killed(tmp_path, pause):
    log = tmp_path / "calls"
    run = start(tmp_path / "run", log, pause)
    wait_for(lambda: len(calls(log)) >= WORKERS)
    workers = {int(line) for line in pathlib.Path(f"{log}.pids").read_text().split()}
    assert len(workers) == WORKERS and all(map(alive, workers))
    run.kill()
    run.wait()
    # At once, and not only when the workers are gone.
    assert start(tmp_path / "run", log, 0).wait() == 0
    wait_for(lambda: not any(map(alive, workers)), seconds=5)


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
