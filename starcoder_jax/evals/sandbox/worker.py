"""A process behind walls that runs one program after another, seen from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from starcoder_jax.evals.sandbox.inside.keeper import LENGTH
from starcoder_jax.evals.sandbox.isolation import Isolation

_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",  # or libraries start a thread a core, against the limit on processes
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONHASHSEED": "0",  # the same order of sets in each run
    "TMPDIR": "/tmp",
}


class Worker:
    """Started at once; answers requests in their order.

    Args:
        isolation: how to start it.
        tools: paths by name, for the languages other than Python.
        limits: of the keeper inside.
    """

    def __init__(self, isolation: Isolation, tools: Mapping[str, str], limits: Mapping[str, Any]):
        config = {
            "visible": isolation.visible,
            "enclose": isolation.enclose,
            "tools": dict(tools),
            "limits": dict(limits),
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [*isolation.wrapper, sys.executable, "-P", "-s", "-m", "inside", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd="/",
            env={**_ENVIRONMENT, "PYTHONPATH": isolation.folder},
            user=isolation.user,
            group=isolation.user,
            extra_groups=None if isolation.user is None else [],
            start_new_session=True,  # Ctrl-C is for the caller
        )

    def fileno(self) -> int:
        """Readable when there is an answer, or there will be none."""
        return self._process.stdout.fileno()

    def send(self, request: Mapping[str, Any]) -> None:
        """Asks; `receive` tells if the worker is gone."""
        data = json.dumps(request).encode()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(LENGTH.pack(len(data)) + data)
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any] | None:
        """The answer; None if the worker was killed.

        Raises:
            RuntimeError: the worker failed.
        """
        stream = self._process.stdout
        if head := stream.read(LENGTH.size):
            return json.loads(stream.read(*LENGTH.unpack(head)))
        # Not reaped yet, so that its number still means its group.
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.end()
        if status.si_code == os.CLD_EXITED and lines:
            raise RuntimeError(lines[-1])
        return None

    def end(self) -> None:
        """Ends it, with all that it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # a request that could not be sent
                stream.close()
