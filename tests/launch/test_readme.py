"""The commands of launch/README.md are ones that the launchers take, and what it shows is true."""

import os
import re
import subprocess
import sys

from stand_ins import ARGUMENTS, ROOT


def blocks(language: str) -> list[str]:
    text = (ROOT / "launch" / "README.md").read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [block for kind, block in found if kind == language]


def test_every_command_is_accepted(launcher):
    """As dry runs, one after the other as a reader would, with stand-ins for Python and gcloud."""
    commands = "\n".join(blocks("bash"))
    script, number = re.subn(r"(?<=launch/)\w+\.sh", r"\g<0> --dry-run", commands)
    assert number > 10
    python = launcher.home / "bin" / "python"
    python.write_text(f"#!{sys.executable} -IS\nimport sys\nprint('python', *sys.argv[1:])\n")
    python.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STARCODER_")}
    done = subprocess.run(
        ["bash", "-euc", script],
        env=kept | {"PATH": f"{python.parent}:{os.environ['PATH']}"},
        cwd=launcher.checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {call[0] for call in launcher.calls()} == {"gcloud"}  # which makes the storage
    for module in ("plan", "prepare", "train"):
        assert f"python -m starcoder_jax.{module} --gin_file=15b.gin" in done.stdout
    for words in ("queued-resources create", "kind: JobSet", "sbatch --job-name=", "docker build"):
        assert words in done.stdout


def test_watch_prints_what_is_shown(launcher):
    (shown,) = blocks("")
    ask = [
        (0, "\n".join([f"starcoder: {state}"] * 32)) for state in ("absent", "running", "ended 0")
    ]
    machines = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE"]
    launcher.answer(
        {
            "queued-resources describe": [(1, "NOT_FOUND"), *((0, state) for state in machines)],
            "tpu-vm describe": [(0, "READY")],
            "echo starcoder: absent": ask,
        }
    )
    flags = ["--project=p", "--zone=z", "--accelerator=v5p-256", "--storage=s:/s", "--interval=0"]
    done = launcher.run("tpu_vm.sh", "watch", *flags, "--", *ARGUMENTS)
    assert done.returncode == 0
    assert done.stderr.startswith(shown)
