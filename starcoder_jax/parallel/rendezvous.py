"""Connections between the processes of a run: all find each other, and notice when one is lost.

JAX alone names nobody: where a process does not come, the others abort at the end of its time
limit; where one is killed, they wait in a collective until a heartbeat is missed, and abort.

Process 0 listens at the coordinator's address before JAX does. When all have come it stops
listening, JAX's coordination service takes the port, and the connections stay open to the end of
the run. They end with the process that holds them, at once if it is killed; keepalive probes find
a host that is gone. Messages are JSON objects, one a line.
"""

import contextlib
import dataclasses
import json
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Of a connection that carries nothing: a host that is gone is noticed after 40 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_RETRY_SECONDS = 0.5
_CONNECT_SECONDS = 10.0
_OUTLAST_SECONDS = 10.0
_MAX_LINE = 2**20
_MAX_NAMES = 16

_GONE = "is gone (killed, or its host failed): start the same command on all hosts again"
_NONE_OF_US = "something else answers there"

Address = tuple[str, int]  # host and port
# Told in a thread that this process must end because another one did: why, in one line, and that
# one's exit status, None if it was killed.
End = Callable[[str, int | None], None]


def meet(
    address: Address,
    bind: Address,
    process: int,
    num_processes: int,
    *,
    limit: float,
    end: End,
    hosts: Sequence[str] = (),
) -> "Link":
    """Returns when all processes have come.

    Args:
        address: of process 0.
        bind: where process 0 listens; the host "" is all its addresses.
        process: number of this one.
        num_processes: how many there are.
        limit: seconds to wait.
        end: called at most once, later on.
        hosts: of the processes, if they are known: the names of those that are missing.

    Raises:
        TimeoutError: not all came; names who did not, and the hosts of those who did.
        ValueError: the processes do not agree on their numbers.
        OSError: process 0 cannot listen at its address.
    """
    if process == 0:
        own, other = socket.socketpair()
        hub = _Hub(_listener(bind), _Wire(other), num_processes, limit, hosts)
        thread = threading.Thread(target=hub.run, name="hub", daemon=True)
        thread.start()
        try:
            return Link(_Wire(own), process, num_processes, limit, end, thread)
        except TimeoutError:
            thread.join()  # until it has told the others too
            raise
    deadline = time.monotonic() + limit
    while True:
        try:
            wire = _Wire(socket.create_connection(address, timeout=_CONNECT_SECONDS))
            return Link(wire, process, num_processes, limit, end)
        except _NotAllCameError:
            raise
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"process 0 did not answer at {address[0]}:{address[1]} within {limit:g} s "
                    f"({error}); this is process {process} of {num_processes} on "
                    f"{socket.gethostname()}: start the same command on all hosts"
                ) from error
        time.sleep(_RETRY_SECONDS)


class Link:
    """This process's connection to all others, from `meet`."""

    def __init__(
        self,
        wire: "_Wire",
        process: int,
        num_processes: int,
        limit: float,
        end: End,
        hub: threading.Thread | None = None,
    ):
        self._process, self._wire, self._hub = process, wire, hub
        self._values: queue.SimpleQueue = queue.SimpleQueue()
        self._finished = threading.Event()
        wire.send(process=process, of=num_processes, host=socket.gethostname())
        wire.socket.settimeout(limit + _CONNECT_SECONDS)  # process 0 may have come a little later
        messages = wire.messages()
        answer = next(messages)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if "missing" in answer:
            raise _NotAllCameError(answer["missing"])
        if "begin" not in answer:
            raise ConnectionError(_NONE_OF_US)
        wire.socket.settimeout(None)
        lost = f"process 0 ({answer['begin']}) {_GONE}"
        arguments = (messages, lost, end)
        threading.Thread(target=self._listen, args=arguments, name="link", daemon=True).start()

    def first(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on process 0, which alone does it while the others wait.

        Args:
            work: returns something JSON-like.
        """
        if self._process:
            return self._values.get()
        value = work()
        self._wire.send(value=value)
        return value

    def finish(self) -> None:
        """Returns when all processes have called it; from then on none is missed."""
        self._wire.send(done=True)
        self._finished.wait()

    def fail(self, status: int) -> None:
        """Tells the others that this process ends, with this status."""
        with contextlib.suppress(OSError):
            self._wire.send(failed=status)

    def outlast(self) -> None:
        """On process 0, waits a little for the others to end.

        With it goes JAX's coordination service, whose clients abort when they miss it.
        """
        if self._hub is not None:
            self._hub.join()

    def _listen(self, messages: Iterator[dict], ending: str, end: End) -> None:
        status = None
        with contextlib.suppress(OSError):
            for message in messages:
                if "value" in message:
                    self._values.put(message["value"])
                elif "finished" in message:
                    self._finished.set()
                    return
                elif "ending" in message:
                    ending, status = message["ending"], message["status"]
                    break
        end(ending, status)


class _NotAllCameError(TimeoutError):
    """Process 0 waited for long enough."""


class _Wire:
    """Messages over a socket."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._rest = b""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):  # macOS has other names
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict]:
        """The messages that have come, perhaps none; waits for bytes.

        Raises:
            OSError: the other side is gone, or is none of us.
        """
        data = self.socket.recv(2**16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data:
            raise ConnectionError("the connection was closed")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if len(self._rest) > _MAX_LINE or not all(isinstance(m, dict) for m in messages):
            raise ConnectionError(_NONE_OF_US)
        return messages

    def messages(self) -> Iterator[dict]:
        while True:
            yield from self.receive()


@dataclasses.dataclass
class _Member:
    process: int
    host: str
    is_done: bool = False

    def __str__(self) -> str:
        return f"{self.process} ({self.host})"


class _Hub:
    """What process 0 runs for all, itself included, in one thread."""

    def __init__(
        self,
        listener: socket.socket,
        own: _Wire,
        num_processes: int,
        limit: float,
        hosts: Sequence[str],
    ):
        self._listener, self._num_processes = listener, num_processes
        self._limit, self._hosts = limit, hosts
        self._members: dict[_Wire, _Member] = {}
        self._refusal = ""
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(own.socket, selectors.EVENT_READ, own)
        self._is_complete = False  # all have come
        self._is_over = False
        # Of the start; then none; and at the end of the wait for the others to hang up.
        self._deadline: float | None = time.monotonic() + limit

    def run(self) -> None:
        """Serves until all are done, one is lost, or not all have come in time."""
        while not self._is_over or any(member.process for member in self._members.values()):
            left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
            ready = self._selector.select(left)
            for key, _ in ready:
                if key.data is not None:
                    self._serve(key.data)
                elif not self._is_complete:  # by one that was served a moment ago
                    connection, _ = self._listener.accept()
                    self._selector.register(connection, selectors.EVENT_READ, _Wire(connection))
            if not ready and not self._is_complete:
                self._tell(missing=self._missing())
            if not ready:
                return

    def _serve(self, wire: _Wire) -> None:
        try:
            for message in wire.receive():
                self._hear(wire, message)
        except (OSError, KeyError):
            self._selector.unregister(wire.socket)
            wire.socket.close()
            member = self._members.pop(wire, None)
            # As long as others are awaited, a process that has gone may come again.
            if member is not None and self._is_complete and not self._is_over:
                self._close(ending=f"process {member} {_GONE}", status=None)

    def _hear(self, wire: _Wire, message: Mapping[str, Any]) -> None:
        if wire not in self._members:
            self._admit(wire, _Member(message["process"], str(message["host"])), message["of"])
        elif self._is_over:
            return  # what crossed the news
        elif "value" in message:
            self._tell(but=wire, value=message["value"])
        elif "failed" in message:
            member, status = self._members.pop(wire), message["failed"]
            ending = f"process {member} ended with status {status}: its log says why"
            self._close(ending=ending, status=status)
        elif "done" in message:
            self._members[wire].is_done = True
            if all(member.is_done for member in self._members.values()):
                self._close(finished=True)

    def _admit(self, wire: _Wire, new: _Member, num_processes: int) -> None:
        twin = next((m for m in self._members.values() if m.process == new.process), None)
        refusal = None
        if num_processes != self._num_processes:
            refusal = (
                f"process {new} was told of {num_processes} processes, process 0 of "
                f"{self._num_processes}: give all the same number"
            )
        elif new.process not in range(num_processes):
            refusal = f"process {new} is not below the number of processes, {num_processes}"
        elif twin is not None:
            refusal = (
                f"{twin.host} and {new.host} both run process {new.process}: give each its own "
                "number"
            )
        if refusal is not None:
            self._refusal = f"{refusal}; "
            wire.send(refused=refusal)
            return
        self._members[wire] = new
        if len(self._members) == self._num_processes:
            self._selector.unregister(self._listener)
            self._listener.close()  # before JAX listens there
            self._is_complete, self._deadline = True, None
            self._tell(begin=socket.gethostname())

    def _close(self, **news: Any) -> None:
        self._is_over, self._deadline = True, time.monotonic() + _OUTLAST_SECONDS
        self._tell(**news)

    def _tell(self, but: _Wire | None = None, **message: Any) -> None:
        for wire in self._members:
            if wire is not but:
                with contextlib.suppress(OSError):  # who is gone is noticed by reading
                    wire.send(**message)

    def _missing(self) -> str:
        here = sorted(self._members.values(), key=lambda member: member.process)
        absent = set(range(self._num_processes)) - {member.process for member in here}
        names = dict(enumerate(self._hosts))
        missing = [f"{n} ({names[n]})" if n in names else str(n) for n in sorted(absent)]
        return (
            f"{len(missing)} of {self._num_processes} processes did not come within "
            f"{self._limit:g} s: {_listing(missing)}; those that came: {_listing(here)}; "
            f"{self._refusal}start the same command on all hosts"
        )


def _listing(names: Sequence[object]) -> str:
    more = [f"{len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return ", ".join([*map(str, names[:_MAX_NAMES]), *more])


def _listener(bind: Address) -> socket.socket:
    dual = not bind[0] and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in bind[0] else socket.AF_INET
    try:
        return socket.create_server(bind, family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise OSError(
            f"process 0 cannot listen on port {bind[1]} of its host ({error.strerror}): end what "
            "uses it, or choose another port for the coordinator"
        ) from error
