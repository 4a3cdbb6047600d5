"""What a run writes and shows while it goes on."""

import contextlib
import pathlib
import shlex
from typing import Any

import jax

from starcoder_jax.gin_files import recipe_text
from starcoder_jax.model.flops import training_flops
from starcoder_jax.parallel.hardware import chip_of
from starcoder_jax.recipes import Recipe
from starcoder_jax.training.evaluation import Evaluation
from starcoder_jax.training.goodput import Cause, Clock, Journal
from starcoder_jax.training.metrics import MetricsWriter
from starcoder_jax.training.profiling import Events, ProfileWindow, memory_use
from starcoder_jax.training.progress import Progress
from starcoder_jax.training.report import write_report
from starcoder_jax.training.step import TrainState
from starcoder_jax.training.watchdog import Watchdog


class Watcher:
    """What process 0 writes and shows; on other processes only the watchdog watches.

    Args:
        recipe: of the run.
        mesh: its devices.
        workdir: `open_workdir` was called for it.
        start: the step that the run goes on from.
        events: since the process began to set the run up.
        clock: likewise.
    """

    def __init__(
        self,
        recipe: Recipe,
        mesh: jax.sharding.Mesh,
        workdir: pathlib.Path,
        start: int,
        events: Events,
        clock: Clock,
    ):
        self._recipe, self._workdir = recipe, workdir
        self._start = self._logged = start  # `_logged`: the last step whose speed is known
        self._events, self._clock = events, clock
        self._compilations = 0  # those that were expected or told of
        self._checkpoint_bytes = 0
        self._stack = contextlib.ExitStack()
        self._is_main = jax.process_index() == 0
        settings = recipe.train
        stacks = workdir / f"stacks-{jax.process_index()}.txt"
        self._watchdog = Watchdog(stacks, settings.hang_seconds, lambda: clock.cause)
        if self._is_main:
            self._journal = Journal(workdir, start, clock.began)
            self._stack.callback(self._journal.close)
            self._metrics = MetricsWriter(workdir, start)
            self._stack.callback(self._metrics.close)
            self._progress = Progress(settings.total_steps, start)
            self._profile = ProfileWindow(workdir / "profile", settings.profile_steps)
            self._stack.callback(self._profile.close)
            chip = chip_of(mesh.devices.flat[0].device_kind)
            self._peak_flops = chip and chip.peak_flops * mesh.size  # FLOP/s
            self._step_flops = training_flops(
                recipe.model, settings.batch_size, settings.sequence_length
            )

    def __enter__(self) -> "Watcher":
        if self._is_main:
            self._stack.enter_context(self._progress)
        self._stack.enter_context(self._watchdog)
        return self

    def __exit__(self, *exception) -> None:
        self._stack.__exit__(*exception)

    def before(self, step: int, state: TrainState) -> None:
        """A step is about to be dispatched; `state` is what it goes on from."""
        if self._clock.cause != Cause.TRAINING:
            self._clock.switch(Cause.TRAINING)
        if self._is_main and self._profile.is_due(step):
            jax.block_until_ready(state)
            with self._clock.spending(Cause.REPORTS):
                self._profile.toggle()

    def advance(self, step: int) -> None:
        """A step that is not logged has been dispatched."""
        if self._is_main:
            self._check_compilations(step)
            self._progress.advance(step)

    def log(self, step: int, record: dict[str, Any], evaluation: Evaluation | None) -> None:
        """Writes and shows a step's metrics, and those of the machine; after evaluation, a report.

        Args:
            step: has finished.
            record: metrics of the step.
            evaluation: the last one, if any was made.
        """
        self._watchdog.beat(step)
        if not self._is_main:
            return
        seconds = self._clock.take()
        with self._clock.spending(Cause.REPORTS):
            self._check_compilations(step)
            record = record | self._performance(step, seconds[Cause.TRAINING])
            record["goodput"] = self._journal.write(step, seconds)
            self._metrics.write(step, record)
            self._progress.update(
                step,
                loss=record["loss"],
                tokens_per_second=record["tokens_per_second"],
                mfu=record.get("mfu"),
            )
            if "eval/loss" in record:
                text = "  ".join(
                    f"{name.removeprefix('eval/')} {value:.3f}"
                    for name, value in record.items()
                    if name.startswith("eval/")
                )
                self._progress.message(f"step {step} on held-out files: {text}")
                self._report(evaluation)

    def saving(self, state: TrainState) -> contextlib.AbstractContextManager[None]:
        """A context for saving this state."""
        self._checkpoint_bytes = sum(array.nbytes for array in jax.tree.leaves(state))
        return self._clock.spending(Cause.CHECKPOINTS)

    def message(self, text: str) -> None:
        """Shows a line."""
        if self._is_main:
            self._progress.message(text)

    def finish(self, evaluation: Evaluation | None) -> None:
        """All is done: accounts for the time since the last logged step, and writes the report."""
        if not self._is_main:
            return
        if self._logged > self._start:
            self._journal.write(self._logged, self._clock.take())
        self._report(evaluation)

    def _performance(self, step: int, seconds: float) -> dict[str, float]:
        """Speed, from the seconds of training since the last logged step, and memory."""
        settings = self._recipe.train
        steps_per_second = (step - self._logged) / max(seconds, 1e-9)
        self._logged = step
        record = {
            "tokens_per_second": steps_per_second * settings.batch_size * settings.sequence_length,
            "compilations": self._events.compilations,
        }
        if self._peak_flops:
            record["mfu"] = steps_per_second * self._step_flops / self._peak_flops
        if (save_seconds := self._events.take_save_seconds()) is not None:
            record["checkpoint_seconds"] = save_seconds
            record["checkpoint_bytes"] = self._checkpoint_bytes
        return record | memory_use()

    def _check_compilations(self, step: int) -> None:
        """Warns if the step was compiled anew."""
        before, self._compilations = self._compilations, self._events.compilations
        if step > self._start + 1 and self._compilations > before:
            self._progress.message(
                f"warning: the training step was compiled again for step {step}, "
                f"{self._compilations} times in all: every compilation stops the run"
            )

    def _report(self, evaluation: Evaluation | None) -> None:
        """Writes report.html as of now."""
        write_report(
            self._workdir,
            title=self._workdir.name,
            config_text=recipe_text(self._recipe),
            sample=evaluation.sample if evaluation else None,
            heldout=evaluation.files if evaluation else [],
            next_command=next_command(self._workdir),
        )


def next_command(workdir: pathlib.Path) -> str:
    """What to try with a trained model."""
    return (
        f"python -m starcoder_jax.generate --checkpoint={shlex.quote(str(workdir))} "
        "--prompt='def read_lines(path):'"
    )
