"""The record of a run: one JSON object a logged step, and the same numbers for TensorBoard."""

import errno
import json
import math
import numbers
import os
import pathlib
import time
from collections.abc import Mapping

from starcoder_jax.files import replace_file, write_error
from starcoder_jax.pages import format_number

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"

# JSON has no such numbers. The names are those of ProtoJSON, and `float()` reads each of them.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends to `WORKDIR/metrics.jsonl` and to the event files in `WORKDIR/tensorboard`.

    One process of a run owns it. Write the metrics of a step before its checkpoint is taken:
    then a run that was killed and resumed leaves the very file that a run never stopped leaves.

    Args:
      workdir: created when it is not there.
      resume_step: the step of the restored checkpoint. What was logged after it, by a run that
        was killed before its next checkpoint, is removed, and so is a line cut short. 0 means
        that nothing was restored: the record starts anew.

    Raises:
      ValueError: a line of an existing metrics.jsonl, other than a cut last one, is damaged.
      OSError: from here or from `write`, naming the file; what was on disk stays as it was.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int):
        self._path = pathlib.Path(workdir) / METRICS_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            lines = _complete_lines(self._path)
            kept = [raw for raw, record in lines if resume_step and record["step"] <= resume_step]
            replace_file(self._path, b"".join(kept))
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        # Imported here, because it imports PyTorch wherever that is installed.
        from tensorboardX.event_file_writer import EventsWriter

        # Not SummaryWriter: it writes from a thread, and once a full disk has ended that thread,
        # the training process waits for it forever.
        self._tensorboard_path = self._path.parent / TENSORBOARD_DIRECTORY
        self._tensorboard_path.mkdir(exist_ok=True)
        self._events = EventsWriter(str(self._tensorboard_path / "events"), f".{resume_step}")
        # TensorBoard drops what earlier event files hold from this step on.
        restart = resume_step + 1 if resume_step else 0
        self._write_event(step=restart, session_log={"status": "START"})

    def write(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Records one step; it is on disk when the call returns.

        Args:
          step: optimizer steps done.
          metrics: Python or NumPy scalars, or strings (which TensorBoard does not get). NaN and
            the infinities become the JSON strings "NaN", "Infinity" and "-Infinity".

        Raises:
          ValueError: a value is neither a number nor a string.
        """
        values = {name: _plain(name, value) for name, value in metrics.items()}
        record = {"step": int(step)} | {name: _to_json(value) for name, value in values.items()}
        append_line(self._file, self._path, json.dumps(record, allow_nan=False).encode() + b"\n")
        scalars = [
            {"tag": name, "simple_value": value}
            for name, value in values.items()
            if not isinstance(value, str)
        ]
        self._write_event(step=int(step), summary={"value": scalars})

    def close(self) -> None:
        """Closes both files; every `write` before is on disk already."""
        os.close(self._file)
        self._events.close()

    def _write_event(self, **fields: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            self._events.write_event(Event(wall_time=time.time(), **fields))
            self._events.flush()
        except OSError as error:
            raise write_error(error, self._tensorboard_path) from error


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float | str]]:
    """The objects of `WORKDIR/metrics.jsonl` in order, also while a run is writing it.

    A last line that is cut short is left out, no file gives no objects, and the names of the
    non-finite numbers become floats again.

    Raises:
      ValueError: another line is damaged.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    return [
        {
            name: _NON_FINITE.get(value, value) if isinstance(value, str) else value
            for name, value in record.items()
        }
        for _, record in _complete_lines(path)
    ]


def append_line(file: int, path: pathlib.Path, line: bytes) -> None:
    """Appends to a file, all or nothing; it is on disk when the call returns.

    Args:
      file: open descriptor.
      path: of the file.
      line: with its newline.

    Raises:
      OSError: naming `path`, which is then as it was.
    """
    size = os.fstat(file).st_size
    try:
        if os.write(file, line) < len(line):
            # A disk that takes part of a line has no room for the rest.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError as error:
        os.ftruncate(file, size)
        raise write_error(error, path) from error


def _complete_lines(path: pathlib.Path) -> list[tuple[bytes, dict]]:
    """The lines that end in a newline, as they are and as objects."""
    lines = []
    for number, raw in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(raw)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(
                f"{path}, line {number}: not a JSON object with a step; delete that line"
            )
        lines.append((raw + b"\n", record))
    return lines


def _plain(name: str, value: object) -> int | float | str:
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ValueError(
        f"metric {name} is a {type(value).__name__}; give a Python or NumPy scalar, or a string"
    )


def _to_json(value: float | str) -> float | str:
    if isinstance(value, str) or math.isfinite(value):
        return value
    return format_number(value)
