"""Runs programs that a model wrote."""

import contextlib
import functools
import os
import platform
import selectors
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from starcoder_jax.evals.sandbox.isolation import CHOICES, NONE, Isolation, isolation_of
from starcoder_jax.evals.sandbox.program import Outcome, Program
from starcoder_jax.evals.sandbox.toolchains import (
    find_tools,
    missing_toolchains,
    toolchain_versions,
)
from starcoder_jax.evals.sandbox.worker import Worker

Key = TypeVar("Key")

_MEMORY = 2 << 30
_PROCESSES = 128  # and threads
LIMITS = {
    "memory": _MEMORY,  # bytes: of all processes of a sample together
    "tmp": 256 << 20,  # bytes in /tmp
    "file": 64 << 20,  # bytes of one file
    "output": 1 << 20,  # bytes of standard output and error
    "compile_seconds": 60.0,
}
_RESOURCES = {"AS": _MEMORY, "DATA": _MEMORY, "FSIZE": LIMITS["file"], "NOFILE": 256, "CORE": 0}

# Seconds of `inside.keeper.loop_seconds` on the machine on which the benchmarks' canonical
# solutions were timed: two virtual cores, CPython 3.11. There the slowest takes a tenth of the
# limit of 10 s.
REFERENCE_SECONDS = 0.0025
_ROUNDS = 15
_PATIENCE = 30.0  # seconds beyond a program's limits

# What must hold, tried before anything is trusted to the walls; NETWORK is this process's.
_PROBE = """
import os, socket
assert os.readlink("/proc/self/ns/net") != "NETWORK", "the network is this machine's"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    try:
        end.connect(("192.0.2.1", 9))
    except OSError:
        pass
    else:
        raise AssertionError("the network can be reached")
assert os.getpid() < 10, "other processes can be seen"
with open("/tmp/file", "w") as file:
    file.write("")
for path in ("/file", "/usr/file", "/dev/file"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise AssertionError(f"{path} can be written")
"""


class Sandbox:
    """Runs programs with no network, no view of the user's files, and limits on what they take.

    Time limits are those of a reference machine: on a slower one they are longer by the ratio of
    the times of a fixed loop of Python, measured when the sandbox is made. They never get shorter.

    Args:
        workers: programs that run at once; default: one a core.
        unsafe: run programs as the present user, with its files and network, where there are no
            walls to be had (and, with `isolation="none"`, where there are).
        isolation: "bubblewrap", "namespaces" or "none"; default: the first of them that works.

    Raises:
        ValueError: no isolation is possible and `unsafe` is False; says what to install.
    """

    def __init__(
        self, *, workers: int | None = None, unsafe: bool = False, isolation: str | None = None
    ):
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}: at least 1 is needed")
        self._count = workers or _cores()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._isolation, seconds = _choose(isolation, unsafe)
        self._scale = max(1.0, seconds / REFERENCE_SECONDS)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What enters a result record, ready for JSON."""
        return {
            "isolation": self._isolation.name,
            "limits": {**LIMITS, "processes": _PROCESSES if self._isolation.enclose else None},
            "time_scale": round(self._scale, 3),
            "workers": self._count,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "toolchains": toolchain_versions(),
        }

    def run(self, programs: Iterable[tuple[Key, Program]]) -> Iterator[tuple[Key, Outcome]]:
        """Outcomes as they come, each with its program's key; one program a worker is read ahead.

        Closing the iterator ends what runs.

        Raises:
            ValueError: a program's toolchain is missing.
            RuntimeError: the sandbox itself failed.
        """
        source = iter(programs)
        busy: dict[Worker, tuple[Key, float, float]] = {}  # since when, and until when at most
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.callback(lambda: [self._end(worker) for worker in busy])

            def occupy() -> None:
                while len(busy) < self._count and (item := next(source, None)) is not None:
                    key, program = item
                    worker, allowed = self._start(program)
                    now = time.monotonic()
                    busy[worker] = key, now, now + allowed
                    selector.register(worker, selectors.EVENT_READ)

            occupy()
            while busy:
                wait = min(until for *_, until in busy.values()) - time.monotonic()
                ready = {event.fileobj for event, _ in selector.select(max(0.0, wait))}
                late = {worker for worker in busy if busy[worker][-1] < time.monotonic()} - ready
                outcomes = []
                for worker in ready | late:
                    selector.unregister(worker)
                    key, since, _ = busy.pop(worker)
                    outcomes.append((key, self._outcome(worker, worker in ready, since)))
                occupy()  # before the caller takes its time
                yield from outcomes

    def _start(self, program: Program) -> tuple[Worker, float]:
        if program.language in (missing := missing_toolchains()):
            raise ValueError(
                f"{program.language} programs cannot be run here: install "
                f"{missing[program.language]}"
            )
        if self._idle:
            worker = self._idle.pop()
        else:
            worker = _new_worker(self._isolation, self._scale)
            self._all.add(worker)
        seconds = program.time_limit * self._scale
        worker.send({"language": program.language, "source": program.source, "seconds": seconds})
        return worker, seconds + LIMITS["compile_seconds"] * self._scale + _PATIENCE

    def _outcome(self, worker: Worker, answers: bool, since: float) -> Outcome:
        try:
            answer = worker.receive() if answers else None
        except RuntimeError:
            self._end(worker)
            raise
        if answer is None:
            self._end(worker)
            seconds = time.monotonic() - since
            return Outcome(False, "killed", "its worker was killed as well", seconds)
        self._idle.append(worker)
        return Outcome(answer["reason"] == "passed", **answer)

    def _end(self, worker: Worker) -> None:
        self._all.discard(worker)
        worker.end()

    def close(self) -> None:
        """Ends the workers; the next program starts new ones."""
        self._idle.clear()
        while self._all:
            self._all.pop().end()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _choose(name: str | None, unsafe: bool) -> tuple[Isolation, float]:
    """The isolation, and the seconds of the loop."""
    if name not in (None, *CHOICES, NONE):
        raise ValueError(f"isolation {name!r} is unknown: choose {', '.join(CHOICES)} or {NONE}")
    if name == NONE and not unsafe:
        raise ValueError("isolation 'none' runs generated code as you: insist with unsafe=True")
    problems = []
    for choice in (name,) if name else CHOICES:
        try:
            isolation = isolation_of(choice, find_tools().values())
            return isolation, _try(isolation)
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(f"{choice}: {error}")
    if unsafe and name is None:
        isolation = isolation_of(NONE, ())
        return isolation, _try(isolation)
    raise ValueError(
        f"generated code cannot be isolated here ({'; '.join(problems)}): install bubblewrap, "
        "allow user namespaces (see docs/sandbox.md), or insist on running it as you with "
        "unsafe=True"
    )


def _try(isolation: Isolation) -> float:
    worker = _new_worker(isolation, 1.0)
    try:
        if isolation.enclose:
            probe = _PROBE.replace("NETWORK", os.readlink("/proc/self/ns/net"))
            worker.send({"language": "python", "source": probe, "seconds": 10.0})
            answer = worker.receive()
            if answer is None:
                raise RuntimeError("the worker was killed")
            if answer["reason"] != "passed":
                raise RuntimeError(answer["detail"].rpartition("\n")[2] or answer["reason"])
        worker.send({"rounds": _ROUNDS})
        answer = worker.receive()
        if answer is None:
            raise RuntimeError("the worker was killed")
        return answer["seconds"]
    finally:
        worker.end()


def _new_worker(isolation: Isolation, scale: float) -> Worker:
    resources = dict(_RESOURCES)
    if isolation.enclose:
        resources["NPROC"] = _PROCESSES
    if sys.platform == "darwin":  # where they are not kept, or break what runs
        resources = {name: resources[name] for name in ("FSIZE", "NOFILE", "CORE")}
    limits = {
        **LIMITS,
        "compile_seconds": LIMITS["compile_seconds"] * scale,
        "resources": resources,
    }
    return Worker(isolation, find_tools(), limits)
