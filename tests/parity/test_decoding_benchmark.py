"""The benchmark of decoding, on a model of no size."""

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "benchmarks" / "decoding.py"


def test_both_sides_say_the_same(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--tiny", "--tokens=8", "--repeats=1", f"--json={figures}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(figures.read_text())
    assert [(row["kind"], row["batch"]) for row in rows] == [
        (kind, batch)
        for kind in ("multi-query", "grouped-query", "multi-head")
        for batch in (1, 8, 32)
    ]
    assert all(row["same_tokens"] == 1 for row in rows)
    # Keys and values, float32: 2 layers, 16 positions, heads of 4.
    assert [row["cache_bytes"] for row in rows[::3]] == [h * 2 * 2 * 16 * 4 * 4 for h in (1, 2, 8)]
    assert all(row["ratio"] > 0 for row in rows) and "times; cache" in done.stdout
