"""One training over many hosts: what a launcher must set, how it starts and how it ends.

Start the same command on every host. What `train` then finds, in this order:

- By hand, all three: JAX_COORDINATOR_ADDRESS=HOST:PORT (process 0, as the others reach it, and any
  free port), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0). Each overrides what is found below,
  and JAX_NUM_PROCESSES=1 makes a process train alone.
- GKE TPU pods: TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, for several slices also MEGASCALE_*. GKE
  sets them.
- TPU VMs: the metadata server. Nothing to set.
- SLURM: what `srun` sets. One task a node with all its GPUs, or one task a GPU.
- Kubernetes without TPUs: an indexed Job sets JOB_COMPLETION_INDEX, the number of the process. Set
  JAX_COORDINATOR_ADDRESS (pod 0, by its headless service) and JAX_NUM_PROCESSES.

If nothing is found, or a single process, it trains alone and no port is opened.

Ports: on process 0 the coordinator's (TPUs: 8482; SLURM: 61440 + job mod 4096;
JAX_COORDINATOR_PORT overrides both), and between all those of the collectives.
JAX_COORDINATOR_BIND_ADDRESS and JAX_LOCAL_DEVICE_IDS work as in JAX. --workdir and data.directory
must be on storage that all hosts share.

Processes wait for each other for five minutes, or the seconds in STARCODER_START_TIMEOUT; then
all that came say which ones are missing, and end with status 2. When a process is killed or its
host fails, the others end within a minute with status 4, PROCESS_LOST; when one ends by an error,
with its status. The same command on all hosts, or on another number of them, goes on from the last
checkpoint.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from starcoder_jax.parallel.clusters import Cluster, find_cluster, parse_address
from starcoder_jax.parallel.rendezvous import Link, meet

PROCESS_LOST = 4  # exit status: another process was killed, or its host failed
_LIMIT, _DEFAULT_LIMIT = "STARCODER_START_TIMEOUT", "300"  # seconds
# When another process ends by an error, this one gets so long to end by its own: what is wrong for
# all of them, each says in its own words.
_GRACE_SECONDS = 3.0


class Processes:
    """This process among those of a run: a context manager around all that it does.

    Leaving it waits for the others to leave it. An exception that leaves it ends the process with
    status 1, or that of a `SystemExit`, without JAX's wait for the others, and these end too.

    Args:
        program: what messages start with.
        cluster: the processes; None: this one is alone.
        limit: seconds to wait for the others to start.

    Raises:
        TimeoutError, ValueError, OSError: as `start` says.
    """

    def __init__(self, program: str, cluster: Cluster | None, limit: float):
        self._program = program
        self._link: Link | None = None
        self._child: subprocess.Popen | None = None
        self._ending: tuple[str, int] | None = None
        self._must_end = threading.Event()
        self._leaving = threading.Lock()
        if cluster is None:
            return
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
        self._link = meet(
            cluster.address,
            parse_address(bind) if bind else ("", cluster.address[1]),
            cluster.process,
            cluster.num_processes,
            limit=limit,
            end=self._end,
            hosts=cluster.hosts,
        )
        # Its handler swallows a SIGTERM that comes before the training loop waits for one.
        jax.config.update("jax_enable_preemption_service", False)
        host, port = cluster.address
        jax.distributed.initialize(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            cluster.num_processes,
            cluster.process,
            local_device_ids=cluster.local_devices,
            cluster_detection_method="deactivate",
        )

    def first(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on process 0, which alone does it while the others wait.

        Args:
            work: may take as long as it must; returns something JSON-like.
        """
        return work() if self._link is None else self._link.first(work)

    def run(self, command: Sequence[str]) -> int:
        """The exit status of a command, which ends at the latest when this process does."""
        self._child = subprocess.Popen(command)
        try:
            return self._child.wait()
        finally:
            self._child.kill()

    @contextlib.contextmanager
    def blaming_the_lost(self) -> Iterator[None]:
        """Makes an exception that comes of another process's end say so, and end this one."""
        try:
            yield
        except Exception:
            # A collective fails a little before it is known who has gone.
            if self._link is not None and self._must_end.wait(_GRACE_SECONDS):
                self._leave(*self._ending)
            raise

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._link is None:
            return
        if error is None:
            self._link.finish()
            return
        status = 1
        if isinstance(error, SystemExit):
            status = error.code
        else:
            traceback.print_exception(error)
        self._link.fail(status)
        self._leave(None, status)

    def _end(self, message: str, status: int | None) -> None:
        self._ending = message, PROCESS_LOST if status is None else status
        self._must_end.set()
        if status is not None:
            time.sleep(_GRACE_SECONDS)
        self._leave(*self._ending)

    def _leave(self, message: str | None, status: int) -> None:
        """Ends the process, and not as Python programs end: there JAX waits for the others."""
        self._leaving.acquire()  # for good: the other thread that comes here has nothing to add
        if message is not None:
            print(f"{self._program}: {message}", file=sys.stderr, flush=True)
        if self._child is not None:
            self._child.kill()
        self._link.outlast()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(program: str) -> Processes:
    """Finds the other processes of the run, if there are any, and starts JAX on all of them.

    It comes before anything that touches a device.

    Args:
        program: what messages start with.

    Raises:
        ValueError: settings are missing or contradict each other, here or between processes.
        TimeoutError: not all processes came; names those that did not, and the hosts of the others.
        OSError: process 0 cannot listen at its address.
    """
    text = os.environ.get(_LIMIT) or _DEFAULT_LIMIT
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{_LIMIT} is {text!r}: it must be a positive number of seconds")
    return Processes(program, find_cluster(os.environ), float(text))
