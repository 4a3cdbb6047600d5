"""A micro recipe, its corpus and its token store, and how to start the commands in a child."""

import fcntl
import os
import pathlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable

STEPS, BATCH, LENGTH = 40, 8, 64

RECIPE = f"""
train.total_steps = {STEPS}
train.batch_size = {BATCH}
train.sequence_length = {LENGTH}
train.log_every = 1
train.eval_every = 20
train.checkpoint_every = 5

model.vocab_size = 320
model.num_layers = 2
model.embed_dim = 32
model.num_heads = 8
model.num_kv_heads = 1
model.mlp_dim = 64
model.max_length = 128
model.dtype = "float32"

optimizer.peak_learning_rate = 1e-2
optimizer.final_learning_rate = 1e-3
optimizer.warmup_steps = 4

data.sources = {{"code": "folder:FOLDER"}}
data.rates = {{"code": 1.0}}
data.heldout_fraction = 0.2
tokenizer.vocab_size = 320
evaluation.max_files = 4
evaluation.sample_tokens = 4
"""


def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with `micro.gin` and its token store `data`."""
    return once(tmp_path_factory, "micro", _prepare)


def trained(tmp_path_factory) -> pathlib.Path:
    """The working directory of the recipe, run on one device without interruption. Read only."""
    root = folder(tmp_path_factory)

    def train(workdir: pathlib.Path) -> None:
        done = run("train", *arguments(root, workdir))
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "trained", train)


def arguments(root: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Those of the command that trains the micro recipe."""
    return [
        f"--gin_file={root / 'micro.gin'}",
        f"--gin.data.directory={root / 'data'}",
        f"--workdir={workdir}",
    ]


def once(tmp_path_factory, name: str, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """A folder that the first test process to ask for it builds, for all of them."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.done").exists():
            build(base / name)
            (base / f"{name}.done").touch()
    return base / name


def without_checkpoints_after(source: pathlib.Path, step: int, target: pathlib.Path) -> None:
    """Copies a working directory as if the run had been killed before its next checkpoint."""
    shutil.copytree(source, target)
    for checkpoint in (target / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)


def start(command: str, *arguments: str, devices: int = 1, **options) -> subprocess.Popen:
    """Starts `python -m starcoder_jax.COMMAND` with pipes for its output."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    environment.pop("XLA_FLAGS", None)  # as a user's programs are compiled
    return subprocess.Popen(
        [sys.executable, "-m", f"starcoder_jax.{command}", *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(command: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs `python -m starcoder_jax.COMMAND` to its end."""
    process = start(command, *arguments, **options)
    stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _prepare(root: pathlib.Path) -> None:
    (root / "code").mkdir(parents=True)
    for number in range(60):
        (root / "code" / f"module_{number}.py").write_text(_module(number))
    (root / "micro.gin").write_text(RECIPE.replace("FOLDER", str(root / "code")))
    done = run("prepare", f"--gin_file={root / 'micro.gin'}", f"--directory={root / 'data'}")
    assert done.returncode == 0, done.stderr


def _module(number: int) -> str:
    """A module of one to a dozen functions out of a small vocabulary of words."""
    rng = random.Random(number)
    parts = [f'"""Module number {number}."""\n']
    for _ in range(rng.randint(1, 12)):
        verb, noun = rng.choice(["read", "write", "count"]), rng.choice(["line", "word", "file"])
        value = rng.randint(0, 99)
        parts.append(
            f"\n\ndef {verb}_{noun}({noun}, limit={value}):\n"
            f"    for item in {noun}:\n        if item > limit:\n            return item\n"
            f"    return {verb}({noun})\n"
        )
    return "".join(parts)
