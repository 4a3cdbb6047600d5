"""Tells on stderr how something long is going."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import rich.console
import rich.progress

# Seconds between two lines where there is no terminal.
_PAUSE = 30.0


class Progress:
    """A live bar in a terminal; else one plain line now and then, and at the end of a stage."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

    @contextlib.contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Shows a stage of `total` items, of which `done` were there before.

        Yields:
            What to call with the number of items that are finished.
        """
        if self._live:
            with self._bar() as bar:
                task = bar.add_task(name, total=total, completed=done)
                yield lambda count: bar.advance(task, count)
            return
        begin = last = time.monotonic()
        before, finished = done, done

        def advance(count: int) -> None:
            nonlocal last, finished
            finished += count
            now = time.monotonic()
            if now - last >= _PAUSE:
                last = now
                pace = (now - begin) / (finished - before)
                left = f"{pace * (total - finished):.0f} s left"
                self.message(f"{name} {finished}/{total}  {left}")

        yield advance
        self.message(f"{name} {finished}/{total}  in {time.monotonic() - begin:.1f} s")

    def message(self, text: str) -> None:
        """Writes a line."""
        print(text, file=self._stream, flush=True)

    def _bar(self) -> rich.progress.Progress:
        return rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=rich.console.Console(file=self._stream, force_terminal=True),
            expand=True,
            refresh_per_second=4,
        )
