import os
import shutil
import subprocess
import sys

from stand_ins import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])
SHELLCHECK = shutil.which(
    "shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
)


def test_scripts_stay_short():
    names = {path.name for path in SCRIPTS}
    assert {"tpu_vm.sh", "gke.sh", "slurm.sh", "slurm.sbatch", "worker.sh"} < names
    for path in SCRIPTS:
        lines = path.read_text().splitlines()
        assert len(lines) < 150 and max(map(len, lines)) <= 110, path.name
        if lines[0].startswith("#!"):
            assert os.access(path, os.X_OK), path.name
            assert any(line.startswith("set -") and "uo pipefail" in line for line in lines)


def test_shellcheck_finds_nothing():
    done = subprocess.run(
        [SHELLCHECK, "--external-sources", *(path.name for path in SCRIPTS)],
        cwd=ROOT / "launch",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
