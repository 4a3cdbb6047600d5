"""What a person sees of a run in the terminal or in a job's log."""

import collections
import os
import sys
import time
from typing import Self, TextIO

import rich.console
import rich.progress
import rich.text

from starcoder_jax.pages import format_duration, format_number

# Logged steps whose pace the time left is estimated from.
_RECENT = 16


class Progress:
    """Shows how far a run is: a live bar in a terminal, else one plain line a logged step.

    Use it as a context manager. The plain lines have no carriage returns and no colour codes:
    `step 20/600  loss 5.123  12.3k tokens/s  3 min left`.

    Args:
      total_steps: the step at which the run ends.
      start_step: steps done before this process started.
      stream: where to write; None is `sys.stderr`.
    """

    def __init__(self, total_steps: int, start_step: int = 0, stream: TextIO | None = None):
        self._total = total_steps
        self._stream = sys.stderr if stream is None else stream
        # (seconds, step). The first entry is made after the first step: what came before it,
        # compilation above all, says nothing about the steps to come.
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=_RECENT)
        self._figures = ""
        self._bar = None
        if self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            console = rich.console.Console(file=self._stream, force_terminal=True)
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed}/{task.total}", markup=False),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TextColumn("{task.fields[status]}", markup=False),
                console=console,
                expand=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "", total=total_steps, completed=start_step, status="compiling"
            )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(
        self, step: int, *, loss: float, tokens_per_second: float, mfu: float | None = None
    ) -> None:
        """Shows a logged step; `mfu` as a fraction, None where it is not known."""
        self._recent.append((time.monotonic(), step))
        self._figures = f"loss {loss:.3f}  {format_number(tokens_per_second, 3)} tokens/s"
        if mfu is not None:
            self._figures += f"  MFU {mfu:.1%}"
        if self._bar:
            self._show(step)
        else:
            print(f"step {step}/{self._total}  {self._status(step)}", file=self._stream, flush=True)

    def advance(self, step: int) -> None:
        """Moves the bar to a step that is not logged."""
        if not self._recent:
            self._recent.append((time.monotonic(), step))
        if self._bar:
            self._show(step)

    def message(self, text: str) -> None:
        """Writes a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(rich.text.Text(text), soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _show(self, step: int) -> None:
        self._bar.update(self._task, completed=step, status=self._status(step))

    def _status(self, step: int) -> str:
        parts = [self._figures] if self._figures else []
        (first_time, first_step), (last_time, last_step) = self._recent[0], self._recent[-1]
        if last_step > first_step and step < self._total:
            pace = (last_time - first_time) / (last_step - first_step)
            parts.append(f"{format_duration(pace * (self._total - step))} left")
        return "  ".join(parts)
