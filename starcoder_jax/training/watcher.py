"""What a run writes and shows while it goes on."""

import contextlib
import pathlib
import shlex
import time

import jax

from starcoder_jax.recipes import Recipe, recipe_text
from starcoder_jax.training.evaluation import Evaluation
from starcoder_jax.training.metrics import MetricsWriter
from starcoder_jax.training.progress import Progress
from starcoder_jax.training.report import write_report


class Watcher:
    """What process 0 writes and shows; on other processes it does nothing."""

    def __init__(self, recipe: Recipe, workdir: pathlib.Path, start: int):
        self._recipe, self._workdir = recipe, workdir
        self._is_main = jax.process_index() == 0
        self._stack = contextlib.ExitStack()
        self._logged = start  # the last step whose speed is known
        self._seconds = 0.0  # of training since then
        self._clock = time.perf_counter()
        if self._is_main:
            self._metrics = MetricsWriter(workdir, start)
            self._stack.callback(self._metrics.close)
            self._progress = Progress(recipe.train.total_steps, start)

    def __enter__(self) -> "Watcher":
        if self._is_main:
            self._stack.enter_context(self._progress)
        return self

    def __exit__(self, *exception) -> None:
        self._stack.__exit__(*exception)

    def start_clock(self) -> None:
        """Training goes on: what came since `tokens_per_second` or `advance` does not count."""
        self._clock = time.perf_counter()

    def tokens_per_second(self, step: int) -> float:
        """Of training alone, since the last call."""
        self._stop_clock()
        tokens = (step - self._logged) * self._recipe.train.batch_size
        tokens *= self._recipe.train.sequence_length
        speed = tokens / self._seconds
        self._logged, self._seconds = step, 0.0
        return speed

    def advance(self, step: int) -> None:
        """A step that is not logged is done."""
        self._stop_clock()
        if self._is_main:
            self._progress.advance(step)

    def log(self, step: int, record: dict, evaluation: Evaluation | None) -> None:
        """Writes and shows a step's metrics; renews the report when it was evaluated."""
        if not self._is_main:
            return
        self._metrics.write(step, record)
        self._progress.update(
            step, loss=record["loss"], tokens_per_second=record["tokens_per_second"]
        )
        if "eval/loss" in record:
            text = "  ".join(
                f"{name.removeprefix('eval/')} {value:.3f}"
                for name, value in record.items()
                if name.startswith("eval/")
            )
            self._progress.message(f"step {step} on held-out files: {text}")
            self.report(evaluation)

    def message(self, text: str) -> None:
        """Shows a line."""
        if self._is_main:
            self._progress.message(text)

    def report(self, evaluation: Evaluation | None) -> None:
        """Writes report.html as of now."""
        if not self._is_main:
            return
        write_report(
            self._workdir,
            title=self._workdir.name,
            config_text=recipe_text(self._recipe),
            sample=evaluation.sample if evaluation else None,
            heldout=evaluation.files if evaluation else [],
            next_command=next_command(self._workdir),
        )

    def _stop_clock(self) -> None:
        self._seconds += time.perf_counter() - self._clock
        self._clock = time.perf_counter()


def next_command(workdir: pathlib.Path) -> str:
    """What to try with a trained model."""
    return (
        f"python -m starcoder_jax.generate --checkpoint={shlex.quote(str(workdir))} "
        "--prompt='def read_lines(path):'"
    )
