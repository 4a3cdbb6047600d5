"""A micro recipe, its corpus and its token store, and how to start the commands in a child."""

import fcntl
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

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


# Metrics of how a run went; the others are what it computed.
MACHINE = frozenset(
    (
        "tokens_per_second",
        "goodput",
        "compilations",
        "host_memory_bytes",
        "checkpoint_seconds",
        "checkpoint_bytes",
    )
)


def computed(record: dict) -> dict:
    """A line of metrics.jsonl without what differs from run to run."""
    return {name: value for name, value in record.items() if name not in MACHINE}


def start(
    command: str,
    *arguments: str,
    devices: int = 1,
    environment: dict[str, str] | None = None,
    program: str | None = None,
    **options,
) -> subprocess.Popen:
    """Starts `python -m starcoder_jax.COMMAND`, with pipes for its output unless told otherwise.

    `program` is Python code to run in its place.
    """
    code = ["-m", f"starcoder_jax.{command}"] if program is None else ["-c", program]
    inherited = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    inherited.pop("XLA_FLAGS", None)  # as a user's programs are compiled
    return subprocess.Popen(
        [sys.executable, *code, *map(str, arguments)],
        env=inherited | (environment or {}),
        text=True,
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        },
    )


def run(command: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs `python -m starcoder_jax.COMMAND` to its end."""
    process = start(command, *arguments, **options)
    stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class Together:
    """Several processes of one command, as on several hosts.

    Args:
        arguments: of `python -m starcoder_jax.train`.
        environments: of the processes: what tells them of each other.
        logs: a new folder for what they write, a file each.
        devices: simulated ones of each process.
        options: of `start`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environments: Sequence[dict[str, str]],
        logs: pathlib.Path,
        devices: int,
        **options,
    ):
        logs.mkdir()
        self._logs = [logs / f"{index}.log" for index in range(len(environments))]
        self.processes = []
        for environment, log in zip(environments, self._logs, strict=True):
            with open(log, "w") as file:
                self.processes.append(
                    start(
                        "train",
                        *arguments,
                        devices=devices,
                        environment=environment,
                        stdout=file,
                        stderr=file,
                        **options,
                    )
                )

    def log(self, index: int) -> str:
        """What a process has written, without the greetings of simulated devices."""
        lines = self._logs[index].read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("[Gloo]"))

    def wait_for_step(self, step: int) -> None:
        """Returns when this step was logged."""
        while True:
            steps = re.findall(r"^step (\d+)/", self.log(0), re.MULTILINE)
            if steps and int(steps[-1]) >= step:
                return
            assert self.processes[0].poll() is None, self.log(0)
            time.sleep(0.02)

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit status of each; none is left, however this ends."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(deadline - time.monotonic(), 0)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()


def by_hand(count: int) -> list[dict[str, str]]:
    """Environments of processes that find each other by what a user sets."""
    address = f"127.0.0.1:{free_port()}"
    return [
        {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def write_sources(root: pathlib.Path) -> None:
    """Makes the recipe and the code it trains on."""
    (root / "code").mkdir(parents=True)
    for number in range(60):
        (root / "code" / f"module_{number}.py").write_text(_module(number))
    (root / "micro.gin").write_text(RECIPE.replace("FOLDER", str(root / "code")))


def _prepare(root: pathlib.Path) -> None:
    write_sources(root)
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
