"""benchmarks/dedup.py with a few small files."""

import pathlib
import subprocess
import sys

import numpy as np

SCRIPT = pathlib.Path(__file__).parents[4] / "benchmarks" / "dedup.py"


def test_both_sides_find_what_is_similar(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(20):
        words = [f"word{value}" for value in draw.integers(0, 10**6, 200)]
        for copy, end in enumerate(("", f" {number} is changed")):
            (tmp_path / f"{number}_{copy}.py").write_text(" ".join(words) + end)
    (tmp_path / "short.py").write_text("import os")
    (tmp_path / "latin.py").write_bytes(b"# a file that says caf\xe9\n")
    (tmp_path / "data.bin").write_text("a file that is no source")
    (tmp_path / "link.py").symlink_to(tmp_path / "1_0.py")
    done = subprocess.run(
        [sys.executable, SCRIPT, f"--folders={tmp_path}", "--sides=ours,bigcode", "--repeats=1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("40 files, 0.1 MB") for line in lines)
    tables = [[cell.strip() for cell in line.split("|")] for line in lines if line[:2] == "| "]
    for side in ("ours", "bigcode"):
        speed, recall = [row for row in tables if row[1] == side]
        assert speed[7] == "20"
        assert recall[2:] == ["20", "1.000", *["1.0000 of 20"] * 4, ""]
    assert lines[-1] == "ours verified 20 of them, 0 wrongly"


def test_an_unknown_side_is_refused():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--sides=ours,nobody"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stderr.strip() == "--sides: no side is called nobody"
