"""A watchdog over a run: when no step finishes any more, it shows where every thread is."""

import collections
import datetime
import faulthandler
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Self

# A hang is many times what logged steps were apart lately.
_FACTOR = 10
_RECENT = 32
_POLL_SECONDS = 1.0


class Watchdog:
    """Dumps the stacks of all threads, once, when steps no longer finish. Nothing is killed.

    They go to stderr and to the end of a file. Use it as a context manager.

    Args:
        path: of the file.
        seconds: without a finished step at least; 0: never.
        activity: says in a word what the loop is at.

    Attributes:
        limit: seconds without a finished step that are a hang.
    """

    def __init__(self, path: pathlib.Path, seconds: float, activity: Callable[[], str]):
        self._path = path
        self._seconds = self.limit = seconds
        self._activity = activity
        self._step: int | None = None
        self._last = time.monotonic()
        self._intervals: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        if self._seconds:
            self._thread.join(timeout=_POLL_SECONDS)

    def beat(self, step: int) -> None:
        """A step has finished, and with it all before."""
        now = time.monotonic()
        if self._step is not None:  # the first interval has the compilation in it
            self._intervals.append(now - self._last)
            self.limit = max(self._seconds, _FACTOR * statistics.median(self._intervals))
        self._step, self._last = step, now

    def _watch(self) -> None:
        while not self._stop.wait(self._last + self.limit - time.monotonic()):
            last = self._last
            if time.monotonic() < last + self.limit:
                continue  # a step finished meanwhile
            self._dump()
            while self._last == last:
                if self._stop.wait(_POLL_SECONDS):
                    return

    def _dump(self) -> None:
        after = "since the start" if self._step is None else f"after step {self._step}"
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        text = (
            f"watchdog, {when}: no step has finished for {time.monotonic() - self._last:.0f} s "
            f"{after} ({self._activity()}); all threads of this process are at:\n"
        )
        with tempfile.TemporaryFile() as file:  # faulthandler needs a file that the system knows
            faulthandler.dump_traceback(file)
            file.seek(0)
            text += file.read().decode(errors="replace")
        print(text, file=sys.stderr, flush=True)
        # Last: the storage of the working directory may be what hangs.
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            print(f"watchdog: cannot write {self._path}: {error.strerror}", file=sys.stderr)
