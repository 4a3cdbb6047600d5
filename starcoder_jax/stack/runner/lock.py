"""One run at a time in a folder of this machine, whatever became of those before."""

import contextlib
import fcntl
import multiprocessing
import pathlib
from collections.abc import Iterator

# Of the process that runs a pipeline, and of the workers that it has started.
_RUN, _WORKERS = ".run.lock", ".workers.lock"


@contextlib.contextmanager
def exclusive_run(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder, and has it for this process alone.

    Waits for workers that a run which was killed has left behind.

    Raises:
        ValueError: another run has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _RUN, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is at work in {folder}: wait for its end") from None
        with open(folder / _WORKERS, "a") as workers:
            fcntl.flock(workers, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def at_work(folder: pathlib.Path) -> Iterator[bool]:
    """Holds up later runs while this worker is at work.

    Yields:
        Whether its run still has the folder: if not, another may have it.
    """
    # Opened for writing, as locks over NFS ask for.
    with open(folder / _WORKERS, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield multiprocessing.parent_process().is_alive()
