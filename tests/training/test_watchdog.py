import pathlib
import subprocess
import sys
import threading

import pytest

from starcoder_jax.training import watchdog as watchdog_module
from starcoder_jax.training.watchdog import Watchdog

# Hangs twice, each time until the watchdog has spoken and some more.
HANG = """
import pathlib, sys, threading, time
from starcoder_jax.training.watchdog import Watchdog

path = pathlib.Path(sys.argv[1])

def dumps():
    return path.read_text().count("watchdog, ") if path.exists() else 0

def a_collective_that_never_ends(count):
    deadline = time.monotonic() + 20
    while dumps() < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.5)

def a_loader_that_sleeps():
    time.sleep(60)

threading.Thread(target=a_loader_that_sleeps, daemon=True).start()
with Watchdog(path, float(sys.argv[2]), lambda: "evaluation") as watchdog:
    a_collective_that_never_ends(1)
    watchdog.beat(7)
    a_collective_that_never_ends(2)
print("went on")
"""


def hang(path, seconds):
    return subprocess.run(
        [sys.executable, "-c", HANG, str(path), str(seconds)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_hang_shows_all_stacks_once_and_is_not_ended(tmp_path):
    path = tmp_path / "stacks-0.txt"
    done = hang(path, 0.3)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    for text in (done.stderr, path.read_text()):
        first, second = text.split("watchdog, ")[1:]
        assert "no step has finished for " in first
        assert "since the start (evaluation)" in first
        assert "after step 7 (evaluation)" in second
        for dump in (first, second):
            assert "in a_collective_that_never_ends" in dump
            assert "in a_loader_that_sleeps" in dump
    assert "Traceback" not in done.stderr


def test_stacks_are_shown_when_they_cannot_be_written(tmp_path, capsys):
    absent = tmp_path / "absent" / "stacks-0.txt"
    shown = threading.Event()

    def activity():
        shown.set()
        return "training"

    with Watchdog(absent, 0.05, activity) as watchdog:
        assert shown.wait(20)
        watchdog.beat(1)
    watchdog._thread.join(20)
    error = capsys.readouterr().err
    assert "test_stacks_are_shown_when_they_cannot_be_written" in error
    assert f"cannot write {absent}: No such file or directory" in error


def test_no_watchdog(tmp_path):
    before = threading.active_count()
    with Watchdog(tmp_path / "stacks", 0, lambda: "") as watchdog:
        assert threading.active_count() == before
        watchdog.beat(1)
    with Watchdog(tmp_path / "stacks", 600, lambda: ""):
        assert threading.active_count() == before + 1
    assert not pathlib.Path(tmp_path / "stacks").exists()


@pytest.mark.parametrize(("pace", "limit"), [(1, 600), (60, 600), (61, 610), (500, 5_000)])
def test_the_limit_follows_the_usual_pace(tmp_path, monkeypatch, pace, limit):
    now = 0.0
    monkeypatch.setattr(watchdog_module.time, "monotonic", lambda: now)
    watchdog = Watchdog(tmp_path / "stacks", 600, lambda: "")
    now = 100_000.0  # of compilation
    watchdog.beat(1)
    assert watchdog.limit == 600
    for step in range(2, 60):
        now += pace * (20 if step % 10 == 0 else 1)  # some with an evaluation
        watchdog.beat(step)
    assert watchdog.limit == limit
