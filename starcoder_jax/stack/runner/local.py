"""Runs steps in processes of this machine."""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self

import pyarrow as pa

from starcoder_jax.progress import Progress
from starcoder_jax.stack.runner.lock import at_work
from starcoder_jax.stack.runner.shards import SPILL
from starcoder_jax.stack.runner.spill import Gathering, Spill, Spilling
from starcoder_jax.stack.runner.work import Emitting, Mapping, Reducing, StepError, describe

_PR_SET_PDEATHSIG = 1


class Work(Protocol):
    """What a worker does with each of its tasks."""

    def place(self, task) -> str:
        """What a message calls the task."""

    def __call__(self, task) -> None:
        """Does it."""


@dataclasses.dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: multiprocessing.connection.Connection
    # The work that it was sent last, which it keeps.
    work: Work | None = None
    task: object = None


class LocalEngine:
    """A pool of processes, each with one shard at a time.

    Use it as a context manager.

    Args:
        folder: of the pipeline.
        workers: how many processes; None: as many as there are cores for this one.
        memory_bytes: see `RunnerConfig`.
    """

    def __init__(self, folder: pathlib.Path, workers: int | None, memory_bytes: int):
        self._folder = folder
        self._limit = workers or _cores()
        self._memory_bytes = memory_bytes
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def map(self, work: Mapping, tasks: Sequence[tuple[int, str]], progress: Progress) -> None:
        """Makes shards; tasks are pairs of index and key."""
        done = work.count - len(tasks)
        with progress.stage(work.step.name, work.count, done) as advance:
            self._run(work, tasks, advance)

    def shuffle(
        self,
        work: Reducing,
        sources: Sequence[tuple[object, str]],
        tasks: Sequence[tuple[int, str]],
        progress: Progress,
    ) -> None:
        """Makes shards.

        Args:
            work: what to do with the partitions.
            sources: pairs of what to emit from, all of them, and its key.
            tasks: pairs of partition and key.
            progress: where to say how it goes.
        """
        step = work.step
        spill = Spill(self._folder / step.name / SPILL)
        spill.folder.mkdir(parents=True, exist_ok=True)
        emitting = Emitting(step, work.store, len(sources), self._memory_bytes)
        emissions = [
            (number, source, key)
            for number, (source, key) in enumerate(sources)
            if spill.key(number) != key
        ]
        done = len(sources) - len(emissions)
        with progress.stage(f"{step.name}: emit", len(sources), done) as advance:
            self._run(Spilling(emitting, spill), emissions, advance)
        done = step.partitions - len(tasks)
        with progress.stage(step.name, step.partitions, done) as advance:
            self._run(Gathering(work, spill, len(sources)), tasks, advance)

    def _run(self, work: Work, tasks: Sequence, advance: Callable[[int], None]) -> None:
        message = pickle.dumps(work)
        left = iter(tasks)
        while len(self._workers) < min(self._limit, len(tasks)):
            self._workers.append(self._start())
        busy = {
            worker.connection: worker
            for worker in self._workers
            if _give(worker, work, message, left)
        }
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                worker = busy[connection]
                try:
                    failure = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise StepError(_obituary(worker)) from None
                if failure is not None:
                    reason, trace = failure
                    error = StepError(f"{work.place(worker.task)}: {reason}")
                    error.add_note(trace)
                    raise error
                advance(1)
                if not _give(worker, work, message, left):
                    del busy[connection]

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._folder), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _give(worker: _Worker, work: Work, message: bytes, left: Iterator) -> bool:
    """Sends the next task, and the work if it is new; returns whether there was a task."""
    for task in left:
        # A worker that died is noticed when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            worker.connection.send((None if worker.work is work else message, task))
        worker.work, worker.task = work, task
        return True
    return False


def _obituary(worker: _Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode
    how = (
        f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    )
    hint = ", perhaps for want of memory: try fewer workers" if code == -signal.SIGKILL else ""
    return f"{worker.work.place(worker.task)}: its process {how}{hint}"


def _serve(connection: multiprocessing.connection.Connection, folder: pathlib.Path) -> None:
    """What a worker's process does until its connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    _end_with_parent()
    # There is a process for every core.
    pa.set_cpu_count(1)
    work = None
    with at_work(folder) as alive:
        while alive:
            try:
                message, task = connection.recv()
            except EOFError:
                return
            try:
                if message is not None:
                    work = pickle.loads(message)
                work(task)
                failure = None
            except Exception as error:
                failure = describe(error), traceback.format_exc()
            connection.send(failure)
            pa.default_memory_pool().release_unused()


def _end_with_parent() -> None:
    """Ends this process with its parent, even if that is killed."""
    if sys.platform == "linux":
        # Whatever this process does then: a thread has no turn while, say, a regex is at work.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
