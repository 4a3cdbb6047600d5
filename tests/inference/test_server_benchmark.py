"""benchmarks/serving.py in a small shape."""

import pathlib
import re
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "serving.py"


def test_no_stream_is_mixed_up_or_lost(trained):
    shape = ["--streams=14", "--slots=2", "--max_length=64", "--prompt_characters=20"]
    done = subprocess.run(
        [sys.executable, SCRIPT, f"--checkpoint={trained}", *shape, "--max_tokens=12"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, alone, together, verdict = done.stdout.splitlines()
    assert verdict == (
        "28 of 28 streams, 4 of them closed midway, are what the same request gets alone; "
        "afterwards 0 run and 0 wait"
    )
    assert re.fullmatch(r"one at a time +[\d,]+ +[\d,]+ +[\d,]+ +1\.00", alone)
    assert re.fullmatch(r"14 at once +[\d,]+ +[\d,]+ +[\d,]+ +\d+\.\d\d", together)
