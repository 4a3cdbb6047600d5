"""The worker: runs one program after another, watches it, and tells what became of it."""

import contextlib
import gc
import json
import math
import os
import secrets
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from . import kernel, sample
from .languages import Plan, plan
from .verdict import Evidence, judge

_TICK = 0.05  # seconds between two looks at the memory
_READ = 1 << 16
_PAGE = os.sysconf("SC_PAGE_SIZE")
_REQUESTS, _ANSWERS = 0, 1  # descriptors
LENGTH = struct.Struct("<I")  # before each message, which is JSON
_PIPES = ("output", "errors", "status", "report")


class Keeper:
    """Answers the requests that come on standard input.

    Args:
        tools: paths of compilers and interpreters, by name.
        limits: `memory`, `tmp`, `output` in bytes, `compile_seconds`, and `resources`: limits by
            the names of RLIMIT_….
        enclose: whether each sample gets namespaces of its own.
    """

    def __init__(self, tools: Mapping[str, str], limits: Mapping[str, Any], enclose: bool):
        self._tools, self._limits = tools, limits
        self._enclose = enclose
        if enclose:
            self._processes = os.open("/proc/self/ns/pid", os.O_RDONLY)

    def serve(self) -> None:
        """Returns when there are no more requests."""
        gc.collect()
        gc.freeze()  # shared with the forks for as long as nobody writes to it
        while (request := _receive()) is not None:
            if "rounds" in request:
                _send({"seconds": loop_seconds(**request)})
            else:
                _send(self._run(**request))

    def _run(self, language: str, source: str, seconds: float) -> dict[str, Any]:
        todo = plan(language, source, self._tools, self._limits["memory"])
        words = [secrets.token_hex(16).encode()]
        with contextlib.ExitStack() as stack:
            folder = "/tmp"
            if not self._enclose:
                folder = tempfile.mkdtemp(prefix="sandbox-")
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            reading, writing = {}, {}
            for name in _PIPES:
                reading[name], writing[name] = os.pipe()
                os.set_blocking(reading[name], False)
                stack.callback(os.close, reading[name])
            watch = _Watch(reading, self._limits, seconds)
            process = self._fork(todo, folder, seconds, words, writing)
            for descriptor in writing.values():
                os.close(descriptor)
            evidence = watch.until_end(process, self._enclose)
        reason, detail = judge(language, evidence, words[0])
        return {"reason": reason, "detail": detail, "seconds": watch.seconds}

    def _fork(
        self, todo: Plan, folder: str, seconds: float, words: list[bytes], pipes: Mapping[str, int]
    ) -> int:
        resources = self._limits["resources"]
        # A second bound beside the clock's, for what should ever get away; threads add up.
        most = 4 * max(seconds, self._limits["compile_seconds"])
        limits = {**self._limits, "resources": {**resources, "CPU": math.ceil(most)}}
        if self._enclose:
            kernel.unshare(kernel.CLONE_NEWPID)  # for the children, until it is taken back
        process = os.fork()
        if not process:
            sample.live(todo, folder, limits, words, pipes, self._enclose)
        if self._enclose:
            kernel.setns(self._processes, kernel.CLONE_NEWPID)
        return process


class _Watch:
    """Over one sample."""

    def __init__(self, pipes: Mapping[str, int], limits: Mapping[str, Any], seconds: float):
        self._limits, self._allowed = limits, seconds
        self._names = {descriptor: name for name, descriptor in pipes.items()}
        self._poll = select.poll()
        for descriptor in pipes.values():
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(_REQUESTS, 0)  # reports that the other end was closed
        self._evidence = Evidence(compiling=True)
        self._start = time.monotonic()
        self._deadline = self._start + limits["compile_seconds"]
        self._bytes = 0
        self._status = b""
        self.seconds = 0.0

    def until_end(self, process: int, enclosed: bool) -> Evidence:
        """Waits for the sample's first process, and ends what it leaves."""
        look = self._start + _TICK
        while "status" in self._names.values() and not self._evidence.stopped:
            now = time.monotonic()
            if now > self._deadline:
                self._evidence.stopped = "timeout"
            elif now > look:
                look = now + _TICK
                if resident_bytes(process) > self._limits["memory"]:
                    self._evidence.stopped = "memory"
            for descriptor, _ in self._poll.poll(_TICK * 1000):
                if descriptor == _REQUESTS:
                    _kill(process, enclosed)
                    os._exit(0)
                self._read(descriptor)
        self.seconds = time.monotonic() - self._start
        if not enclosed or self._evidence.stopped:
            _kill(process, enclosed)
        os.waitpid(process, 0)
        for descriptor in list(self._names):  # what was written last
            while descriptor in self._names and self._read(descriptor):
                pass
        return self._evidence

    def _read(self, descriptor: int) -> bool:
        """Whether there was something."""
        name, evidence = self._names[descriptor], self._evidence
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            return False
        if not data:
            self._poll.unregister(descriptor)
            del self._names[descriptor]
            return False
        self._bytes += len(data)
        if self._bytes > self._limits["output"]:
            evidence.stopped = evidence.stopped or "output"
            return False
        if name == "errors":
            evidence.errors += data
        elif name == "report":
            evidence.report += data
        elif name == "status":
            *lines, self._status = (self._status + data).split(b"\n")
            for line in lines:
                if line == b"run":
                    evidence.compiling = False
                    self._deadline = time.monotonic() + self._allowed
                elif line.startswith(b"broken"):
                    raise RuntimeError(line.decode())
                else:
                    evidence.statuses.append(int(line))
        return True


def _kill(process: int, enclosed: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
        if not enclosed:  # else all others have ended with the first of their namespace
            os.killpg(process, signal.SIGKILL)


def resident_bytes(process: int) -> int:
    """Memory in use by a process and those that descend from it; shared pages count for each."""
    total, todo = 0, [str(process)]
    while todo:
        folder = f"/proc/{todo.pop()}"
        with contextlib.suppress(OSError):  # those that have just ended
            with open(f"{folder}/statm") as file:
                total += int(file.read().split()[1]) * _PAGE
            for thread in os.listdir(f"{folder}/task"):
                with open(f"{folder}/task/{thread}/children") as file:
                    todo += file.read().split()
    return total


def loop_seconds(rounds: int) -> float:
    """Seconds that a fixed loop of Python takes, the least of `rounds` times.

    Arithmetic, calls, strings, lists and dictionaries: what programs under test are made of.
    """
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        table: dict[str, list[int]] = {}
        for number in range(20_000):
            table.setdefault(str(number % 97), []).append((number * number) % 11)
        sorted(sum(values) for values in table.values())
        best = min(best, time.perf_counter() - start)
    return best


def _receive() -> dict[str, Any] | None:
    head = _read_exactly(LENGTH.size)
    if not head:
        return None
    return json.loads(_read_exactly(*LENGTH.unpack(head)))


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(_REQUESTS, size - len(data))
        if not part:
            return b""
        data += part
    return data


def _send(answer: Mapping[str, Any]) -> None:
    data = json.dumps(answer).encode()
    os.write(_ANSWERS, LENGTH.pack(len(data)) + data)
