"""A checkout to launch from, and programs on PATH that note how they were called and do nothing."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent

# Notes its arguments, and its input if it is asked to read it ("-"); keeps a copy of the files
# that it is to carry elsewhere, and answers the next of the answers to what it was called with.
_PROGRAM = """#!{python} -IS
import json, os, pathlib, shutil, sys
home = pathlib.Path({home!r})
program, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
stdin = sys.stdin.read() if "--filename=-" in arguments else None
for path in arguments if "scp" in arguments else []:
    if os.path.isfile(path):
        shutil.copy(path, home)
with open(home / "calls.jsonl", "a") as file:
    file.write(json.dumps([program, arguments, stdin]) + "\\n")
table = home / "answers.json"
answers = json.loads(table.read_text())
for pattern, replies in answers.items():
    if pattern in " ".join([program, *arguments]):
        status, text = replies.pop(0) if len(replies) > 1 else replies[0]
        table.write_text(json.dumps(answers))
        print(text, file=sys.stderr if status else sys.stdout)
        sys.exit(status)
"""
PROGRAMS = ("gcloud", "kubectl", "docker", "sbatch", "srun", "squeue", "scontrol", "scancel", "ssh")

# What a shell, gin, YAML or Kubernetes could take for its own.
ARGUMENTS = [
    "--gin_file=15b.gin",
    "--gin_file=hardware/v5p-256.gin",
    "--workdir=/mnt/starcoder/runs/fifteen b",
    "--gin.data.directory=/mnt/starcoder/data",
    """--gin.data.sources={"code": "parquet:/it's here/**/*.parquet", 'b': "jsonl:$HOME/{a,b}"}""",
    "--gin.train.initial_checkpoint=`id` $(id) $$ \\ \\n !! ~ & ; | < > # %q &&",
    "--gin.tokenizer.path=two  spaces\tand a tab\nand a line: é",
    "--gin.data.extensions=['.py', \".c\"]",
    "--gin.model.dtype=",
]


@dataclasses.dataclass
class Launcher:
    """Runs the launchers of a small checkout.

    Attributes:
        home: holds the notes of the stand-ins.
        checkout: a git checkout with launch/ of this one.
    """

    home: pathlib.Path
    checkout: pathlib.Path

    def __post_init__(self):
        folder = self.home / "bin"
        folder.mkdir()
        for program in PROGRAMS:
            (folder / program).write_text(
                _PROGRAM.format(python=sys.executable, home=str(self.home))
            )
            (folder / program).chmod(0o755)
        self.answer({})

    def answer(self, answers: dict[str, list[tuple[int, str]]]) -> None:
        """Sets the (status, text) that calls containing a text get, the last one for good."""
        (self.home / "answers.json").write_text(json.dumps(answers))

    def run(self, script: str, *arguments: str, stdin: str = "", **environment: str):
        """Runs launch/SCRIPT."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STARCODER_")}
        path = f"{self.home / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(self.checkout / "launch" / script), *arguments],
            env=kept | {"PATH": path, "TMPDIR": str(self.home)} | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        """All calls so far: program and arguments."""
        return [[program, *arguments] for program, arguments, _ in self._notes()]

    def inputs(self) -> list[str]:
        """What the calls read, of those that read anything."""
        return [stdin for _, _, stdin in self._notes() if stdin is not None]

    def _notes(self) -> list[list]:
        path = self.home / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def make_checkout(folder: pathlib.Path) -> pathlib.Path:
    """A git checkout with launch/ and what else is installed from it."""
    folder.mkdir()
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "constraints.txt").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return folder


def make_machine(home: pathlib.Path, checkout: pathlib.Path, python: str) -> pathlib.Path:
    """A home directory as install leaves it, with this text as its Python; where that is run."""
    code = home / "starcoder" / "code"
    shutil.copytree(checkout / "launch", code / "launch")
    program = home / "starcoder" / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(python)
    program.chmod(0o755)
    return code / "launch" / "worker.sh"


def dumping_python(target: pathlib.Path) -> str:
    """A Python that writes its arguments and what the launcher set, as JSON, and ends."""
    return f"""#!{sys.executable} -IS
import json, os, sys
names = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
json.dump([sys.argv[1:], {{name: os.environ[name] for name in names}}], open({str(target)!r}, "w"))
"""
