"""Goodput: the share of a run's time, from its first start on, that trained the model.

Time is split between causes as it passes. WORKDIR/goodput.jsonl, to which process 0 only ever
appends, keeps the sums over restarts: a line for each time that the working directory is opened,
and for each logged step the seconds since the line before, by cause. A process that is killed
leaves whole all lines but the one that it was writing.
"""

import collections
import contextlib
import enum
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping

from starcoder_jax.training.metrics import append_line
from starcoder_jax.training.profiling import Events

JOURNAL_FILE = "goodput.jsonl"


class Cause(enum.StrEnum):
    """What the time of a run goes to. All but training is lost."""

    TRAINING = "training"
    DATA = "data preparation"
    START = "start-up"  # devices, restore or initialisation
    COMPILATION = "compilation"
    EVALUATION = "evaluation"
    CHECKPOINTS = "checkpoints"  # the loop waits for them; writing goes on beside training
    REPORTS = "reports"  # metrics, report.html and profiles
    REPEATED = "steps done again"  # those after the checkpoint that a restart went back to
    STOPPED = "stopped"  # no process, or one that was killed before its next logged step


class Clock:
    """Splits the time of this process: at each moment it runs for one cause.

    Compilation is taken out of whatever cause it happens in.

    Args:
        events: tells of compilation.

    Attributes:
        began: Unix time at which it was made.
        cause: for which it runs.
    """

    def __init__(self, events: Events):
        self.began = self._since = time.time()
        self.cause = Cause.START
        self._events = events
        self._seconds: collections.Counter[Cause] = collections.Counter()

    def switch(self, cause: Cause) -> None:
        """From now on it runs for this cause."""
        now, compiling = time.time(), self._events.take_compile_seconds()
        self._seconds[Cause.COMPILATION] += compiling
        # The system's clock may be set back.
        self._seconds[self.cause] += max(now - self._since - compiling, 0.0)
        self.cause, self._since = cause, now

    @contextlib.contextmanager
    def spending(self, cause: Cause) -> Iterator[None]:
        """Within the context, it runs for this cause."""
        before = self.cause
        self.switch(cause)
        try:
            yield
        finally:
            self.switch(before)

    def take(self) -> dict[Cause, float]:
        """Seconds since the last call, by cause."""
        self.switch(self.cause)
        seconds, self._seconds = self._seconds, collections.Counter()
        return dict(seconds)


class Journal:
    """Process 0's account of the run, kept in the working directory.

    Args:
        workdir: `note_opening` was called for it.
        start: the step that this process goes on from.
        began: Unix time since which it has a `Clock`.
    """

    def __init__(self, workdir: pathlib.Path, start: int, began: float):
        self._path = workdir / JOURNAL_FILE
        self._ledger = _read(self._path)
        if self._ledger.opened is None:
            note_opening(workdir, began)
            self._ledger = _read(self._path)
        self._preparation = max(began - self._ledger.opened, 0.0)
        self._resumed: int | None = start  # until that is written
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def write(self, step: int, seconds: Mapping[Cause, float]) -> float:
        """Records what the time went to since the last call; returns the goodput of the run.

        Args:
            step: the last that was done.
            seconds: by cause.

        Raises:
            OSError: naming the file.
        """
        seconds = {cause: round(value, 6) for cause, value in seconds.items() if value}
        line = {"step": step, "time": time.time(), "seconds": seconds}
        if self._resumed is not None:
            seconds[Cause.DATA] = round(self._preparation, 6)
            line["resumed"], self._resumed = self._resumed, None
        append_line(self._file, self._path, json.dumps(line).encode() + b"\n")
        self._ledger.add(line)
        account = self._ledger.account()
        return account[Cause.TRAINING] / sum(account.values())

    def close(self) -> None:
        """Closes the file; what was written is on disk."""
        os.close(self._file)


def note_opening(workdir: pathlib.Path, now: float | None = None) -> None:
    """Records that a process starts on this working directory.

    Args:
        workdir: exists.
        now: Unix time; None: as it is.

    Raises:
        OSError: naming the file.
    """
    path = workdir / JOURNAL_FILE
    # A kill may have cut the last line.
    is_cut = path.exists() and not path.read_bytes().endswith(b"\n")
    line = json.dumps({"opened": time.time() if now is None else now}).encode() + b"\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        append_line(file, path, b"\n" * is_cut + line)
    finally:
        os.close(file)


def read_account(workdir: str | os.PathLike) -> dict[Cause, float]:
    """Seconds from the first start of a run to its last logged step, by cause; empty before it."""
    return _read(pathlib.Path(workdir) / JOURNAL_FILE).account()


class _Ledger:
    """The lines of a journal, added up."""

    def __init__(self):
        self.opened: float | None = None  # by the process that has logged no step yet
        self._first = self._last = 0.0
        self._steps: list[tuple[int, float]] = []  # and seconds of training since the one before
        self._training = 0.0
        self._lost: collections.Counter[str] = collections.Counter()

    def add(self, line: dict) -> None:
        if "opened" in line:
            self.opened = line["opened"]
            self._first = self._first or self.opened
            return
        if "resumed" in line:
            self.opened = None
            while self._steps and self._steps[-1][0] > line["resumed"]:
                seconds = self._steps.pop()[1]
                self._training -= seconds
                self._lost[Cause.REPEATED] += seconds
        seconds = dict(line["seconds"])
        training = seconds.pop(Cause.TRAINING, 0.0)
        self._training += training
        self._steps.append((line["step"], training))
        self._lost.update(seconds)
        self._last = line["time"]

    def account(self) -> dict[Cause, float]:
        if not self._last:
            return {}
        known = {Cause.TRAINING: self._training, **self._lost}
        stopped = max(self._last - self._first - sum(known.values()), 0.0)
        return {cause: known.get(cause, 0.0) for cause in Cause} | {Cause.STOPPED: stopped}


def _read(path: pathlib.Path) -> _Ledger:
    ledger = _Ledger()
    for raw in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(raw)
        except ValueError:  # cut by a kill
            continue
        ledger.add(line)
    return ledger
