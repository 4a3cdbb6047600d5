"""Does the runs of an ablation, each in processes of its own.

Processes, since a run then frees all it took, devices included, and is killed, resumed and refused
by the trainer's own rules. What they could have shared in one process they share on disk: the token
store and JAX's compilation cache.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from starcoder_jax.ablation.config import DECODING, AblationConfig, evaluation_flags
from starcoder_jax.ablation.grid import Grid, Run
from starcoder_jax.command import BAD_INPUT, DIVERGED, TERMINATED
from starcoder_jax.data.store import MANIFEST, read_manifest
from starcoder_jax.files import replace_file
from starcoder_jax.recipes import changed_fields, load_recipe
from starcoder_jax.training.checkpoint import has_begun
from starcoder_jax.training.metrics import read_metrics

_OUTCOME, _LOG, _LOCK = "outcome.json", "ablate.log", ".ablate.lock"
_CURATED = ".curated"  # in the folder of a corpus that is whole
_HELD_OUT = "eval/"
_BITS_PER_BYTE = "eval/bits_per_byte"
_OF_NO_MODEL = "eval/xz_bits_per_byte"  # of the texts alone
_POLL = 0.5  # seconds between two looks at how far a run is

Show = Callable[[str], None]


class RunError(Exception):
    """A process of a run ended for another reason than bad input."""


class StoppedError(Exception):
    """SIGTERM asked for an end; what was under way has been saved."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        metrics: of the final model: held-out ones as in metrics.jsonl, and EVALUATION/METRIC; none
            if the run diverged.
        curve: (tokens, held-out bits per byte) as the run went on.
        diverged: what the trainer said; None if the run came to its end.
    """

    metrics: Mapping[str, float]
    curve: Sequence[tuple[int, float]]
    diverged: str | None


def run_folder(run: Run, workdir: pathlib.Path) -> pathlib.Path:
    """The working directory of a run."""
    return workdir / "runs" / run.name


def check_folders(grid: Grid, workdir: pathlib.Path) -> None:
    """Checks that the runs that are there already are those that the grid asks for.

    Raises:
        ValueError: one is of another recipe; the message names what differs.
    """
    for run in grid.runs:
        folder = run_folder(run, workdir)
        if not has_begun(folder):
            continue
        found = load_recipe([str(folder / "config.gin")])
        differences = changed_fields(found, run.recipe)
        if found.evaluation != run.recipe.evaluation:
            differences.append(f"{found.evaluation} -> {run.recipe.evaluation}")
        if differences:
            raise ValueError(
                f"{folder} holds a run of another recipe, which differs in "
                f"{'; '.join(differences)}: give another --workdir, or the recipe of that run"
            )


def read_result(run: Run, config: AblationConfig, workdir: pathlib.Path) -> Result | None:
    """What came of a run; None if it, or one of its evaluations, is not finished.

    Raises:
        ValueError: a file of the run is damaged.
    """
    folder = run_folder(run, workdir)
    if not (folder / _OUTCOME).exists():
        return None
    diverged = json.loads((folder / _OUTCOME).read_text())["diverged"]
    records = read_metrics(folder)
    curve = [(r["tokens"], r[_BITS_PER_BYTE]) for r in records if _BITS_PER_BYTE in r]
    if diverged is not None:
        return Result({}, curve, diverged)
    if not records or records[-1]["step"] != run.steps or _BITS_PER_BYTE not in records[-1]:
        raise ValueError(
            f"{folder} has no held-out metrics of step {run.steps}: remove it, to run it again"
        )
    metrics = {
        name: value
        for name, value in records[-1].items()
        if name.startswith(_HELD_OUT) and name != _OF_NO_MODEL
    }
    for name, settings in config.evaluations.items():
        file = _evaluation_file(folder, name, settings)
        if not file.exists():
            return None
        for metric, value in json.loads(file.read_text())["metrics"].items():
            if not metric.endswith("_stderr"):
                metrics[f"{name}/{metric}"] = float("nan") if value is None else value
    return Result(metrics, curve, None)


def reason_to_give_up(run: Run, grid: Grid, results: Mapping[str, Result]) -> str | None:
    """Why `ablation.give_up` says that a run is not worth its time; None if it does not.

    Args:
        run: not begun.
        grid: it is of.
        results: by the names of runs; those of earlier seeds count.
    """
    limit = grid.config.give_up
    if limit is None or run.arm == grid.first_arm:
        return None
    equal = next(equal for equal, steps in grid.steps.items() if steps[run.arm] == run.steps)
    for seed in grid.config.seeds[: grid.config.seeds.index(run.seed)]:
        result = results.get(grid.run(equal, run.arm, seed).name)
        if result is None:
            continue
        if result.diverged is not None:
            return f"it diverged with seed {seed}"
        first = results.get(grid.run(equal, grid.first_arm, seed).name)
        if first is None or first.diverged is not None:
            continue
        excess = result.metrics[_BITS_PER_BYTE] / first.metrics[_BITS_PER_BYTE] - 1
        if not excess <= limit:
            return f"{excess:.1%} more held-out bits per byte than {grid.first_arm}, seed {seed}"
    return None


def perform(
    run: Run,
    grid: Grid,
    workdir: pathlib.Path,
    show: Show,
    advance: Callable[[int], None],
) -> None:
    """Curates, trains and evaluates, from wherever it was stopped before.

    Where another process is at work on the run, or is left over from an ablation that was killed,
    waits for its end.

    Args:
        run: to do.
        grid: it is of; its evaluations are done.
        workdir: of the ablation.
        show: takes a line of progress.
        advance: takes a number of steps that were done.

    Raises:
        ValueError: the trainer or an evaluation refused its input; what it said.
        RunError: it failed otherwise.
        StoppedError: SIGTERM came.
    """
    folder = run_folder(run, workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / _LOCK, run.name, show) as lock:
        children = _Children(run, workdir, lock)
        if (folder / _OUTCOME).exists():
            advance(run.steps)
        else:
            _prepare(run, children, show)
            follower = _Follower(folder, advance)
            command = ["starcoder_jax.train", *run.arguments, f"--workdir={folder}"]
            diverged = None
            if children.call(command, follower) == DIVERGED:
                diverged = children.last_line()
                show(f"{run.name}: {diverged}")
            outcome = json.dumps({"diverged": diverged})
            replace_file(folder / _OUTCOME, outcome.encode() + b"\n")
        if json.loads((folder / _OUTCOME).read_text())["diverged"] is not None:
            return
        for name, settings in grid.config.evaluations.items():
            file = _evaluation_file(folder, name, settings)
            if file.exists():
                continue
            settings = dict(settings)
            if settings["task"] == DECODING:
                del settings["task"]
                module = "starcoder_jax.ablation.decoding"
            else:
                module = "starcoder_jax.evaluate"
                if "data" not in settings:
                    # There already, unless jobs of a cluster do other runs first.
                    _prepare(grid.first_run, children, show)
                    settings["data"] = grid.first_run.recipe.data.directory
            show(f"{run.name}: {name}")
            flags = [*evaluation_flags(settings), f"--checkpoint={folder}", f"--output={file}"]
            file.parent.mkdir(parents=True, exist_ok=True)
            children.call([module, *flags])


def _prepare(run: Run, children: "_Children", show: Show) -> None:
    """Makes the corpus and the token store of a run, unless they are there.

    Raises:
        ValueError: nothing is held out.
    """
    store = run.recipe.data.directory
    if not (pathlib.Path(store) / MANIFEST).exists():
        if run.corpus is not None:
            _curate(run, children, show)
        children.call(["starcoder_jax.prepare", *run.arguments, f"--directory={store}"])
    splits = read_manifest(store)["tasks"].values()
    if not sum(task["validation"]["documents"] for task in splits):
        documents = sum(task["train"]["documents"] for task in splits)
        raise ValueError(
            f"arm {run.arm!r}: of its {documents:,} documents none is held out to compare by: "
            "raise data.heldout_fraction, or give it more"
        )


def _curate(run: Run, children: "_Children", show: Show) -> None:
    folder = run.corpus.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / _LOCK, f"the corpus of {run.arm}", show) as lock:
        if not (folder / _CURATED).exists():
            show(f"curating the corpus of {run.arm}")
            children.call(["starcoder_jax.stack", "run", *run.corpus.arguments], lock=lock)
            (folder / _CURATED).touch()


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """Within the context, SIGTERM raises StoppedError; a run under way is asked to save and end."""

    def stop(*_):
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _alone(path: pathlib.Path, what: str, show: Show) -> Iterator[IO]:
    """A file whose lock lasts as long as this process, or one that was given it, has it open."""
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            show(f"{what}: waiting for the process that is at work on it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


class _Children:
    """The processes of a run, one after another; what they write goes to its log."""

    def __init__(self, run: Run, workdir: pathlib.Path, lock: IO):
        self._run, self._lock = run, lock
        self._log = run_folder(run, workdir) / _LOG
        # One host a run: where a cluster numbers jobs, they are no processes of one training.
        self._environment = {
            "JAX_COMPILATION_CACHE_DIR": str((workdir / "compiled").absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            **os.environ,
            "JAX_NUM_PROCESSES": "1",
        }

    def call(
        self,
        command: Sequence[str],
        look: Callable[[], None] = lambda: None,
        lock: IO | None = None,
    ) -> int:
        """Runs a module to its end, and gives its status: 0 or DIVERGED.

        Args:
            command: the module and its arguments.
            look: called now and then while it runs, and in the end.
            lock: a further file to lock as long as the module runs.
        """
        locks = [self._lock] + ([lock] if lock is not None else [])
        with open(self._log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                # If this process is killed, these stay locked until the child has ended.
                pass_fds=[file.fileno() for file in locks],
            )
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_POLL)
                    look()
                    if process.returncode is not None:
                        break
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode in (0, DIVERGED):
            return process.returncode
        if process.returncode == TERMINATED:
            raise StoppedError
        if process.returncode == BAD_INPUT:
            raise ValueError(f"run {self._run.name}: {self.last_line()}")
        raise RunError(
            f"run {self._run.name} ended with status {process.returncode}: {self.last_line()} "
            f"(all of it in {self._log}); the same command goes on from there"
        )

    def last_line(self) -> str:
        """Of the log; of this process as it ends, what it ends for."""
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class _Follower:
    """Tells how many more steps a run has logged."""

    def __init__(self, folder: pathlib.Path, advance: Callable[[int], None]):
        self._folder, self._advance = folder, advance
        self._step = 0

    def __call__(self) -> None:
        records = read_metrics(self._folder)
        step = records[-1]["step"] if records else 0
        # A run that goes on repeats the steps after its last checkpoint.
        if step > self._step:
            self._advance(step - self._step)
            self._step = step


def _evaluation_file(
    folder: pathlib.Path, name: str, settings: Mapping[str, object]
) -> pathlib.Path:
    """Of other settings, another file: a result is never taken for that of another question."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return folder / "evaluations" / f"{name}-{digest}" / "result.json"
