"""benchmarks/huggingface.py in a tiny shape: interrupted, continued, finished."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "huggingface.py"
TINY = ["--layers=2", "--embed=64", "--heads=4", "--vocab=320", "--length=16", "--repeats=1"]


def test_the_comparison_goes_on_and_tidies_up(tmp_path):
    command = [sys.executable, SCRIPT, f"--directory={tmp_path}", *TINY, "--shard_bytes=100_000"]
    results, deadline = tmp_path / "results.json", time.monotonic() + 120
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (results.exists() and "to_orbax 0" in json.loads(results.read_text())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^(\w+) \.\.\.$", done.stderr, re.MULTILINE)
    assert steps[0] == "to_hf" and steps[-1] == "compare_logits"
    for name in ("converted", "ours", "theirs"):
        assert f"{name}: 35 tensors equal the original bit for bit, 0 do not" in done.stdout
    assert re.search(r"logits differ by at most \d\.\de-0[5-7] of the largest", done.stdout)
    for row in ("ours: load_model", "theirs: save_pretrained, after loading", "ours: 16 tokens"):
        assert row in done.stdout
    assert list(tmp_path.iterdir()) == []
