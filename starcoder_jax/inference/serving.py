"""An engine in a thread of its own, which many requests of an event loop share.

Requests reach the thread through a queue, and what was decoded comes back to the event loop once
for every step. The engine is touched by its thread alone.
"""

import asyncio
import collections
import contextlib
import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from starcoder_jax.inference.engine import Completion, Engine
from starcoder_jax.inference.protocol import ApiError
from starcoder_jax.inference.sampling import Sampling

RATE_SECONDS = 10  # over which tokens per second are counted


class Piece(NamedTuple):
    """What a step added to a completion.

    Attributes:
        index: of the completion in its job: prompt after prompt, sample after sample.
        text: that has become certain.
        tokens: that were decoded since the last piece.
        finish_reason: "stop" or "length" if it ended.
    """

    index: int
    text: str
    tokens: int
    finish_reason: str | None


class Job:
    """The completions of one request. Made by `EngineThread.submit`."""

    def __init__(self, count: int, cancel: Callable[["Job"], None]):
        self.unfinished = count  # as far as the event loop knows, whether or not it was read
        self._count = count
        self._cancel = cancel
        self._news: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def accepted(self) -> None:
        """Returns when the engine has taken the job.

        Raises:
            ApiError: it was refused, or the engine failed.
        """
        first = await self._news.get()
        if isinstance(first, Exception):
            raise first

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yields what is decoded, until every completion has ended; after `accepted`.

        Raises:
            ApiError: the engine failed, or the job was given up; or whatever else was `put`.
        """
        unread = self._count
        while unread:
            piece = await self._news.get()
            if isinstance(piece, Exception):
                raise piece
            unread -= piece.finish_reason is not None
            yield piece

    def put(self, news: Piece | Exception | None) -> None:
        """Adds to what the reader of the job gets; None: it was accepted."""
        self._news.put_nowait(news)

    def cancel(self) -> None:
        """Takes what has not ended out of the engine."""
        self._cancel(self)


class Load(NamedTuple):
    """What an engine is doing.

    Attributes:
        slots: completions that are decoded at once, at most.
        running, waiting: completions that are decoded, or wait for a slot.
        max_waiting: from here on requests are turned away.
        requests, tokens: accepted and decoded since the start.
        tokens_per_second: over the last ten seconds.
        uptime_seconds: since the start.
        failure: of the engine, after which it does nothing more; None: it is well.
    """

    slots: int
    running: int
    waiting: int
    max_waiting: int
    requests: int
    tokens: int
    tokens_per_second: float
    uptime_seconds: float
    failure: str | None


class EngineThread:
    """Runs an engine while it has something to do. A context manager: the thread ends with it.

    All methods are for the event loop in which the requests live.

    Args:
        engine: used by nothing else from now on.
        max_waiting: completions that may wait for a slot.
    """

    def __init__(self, engine: Engine, *, max_waiting: int):
        self._engine = engine
        self._max_waiting = max_waiting
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: set[Job] = set()  # of the event loop
        self._owners: dict[Completion, _Owner] = {}  # of the thread
        self._failure: str | None = None
        self._started = time.monotonic()
        self._requests = 0
        self._tokens = 0
        self._recent: collections.deque[tuple[float, int]] = collections.deque()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> "EngineThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.put(None)
        self._thread.join()

    def submit(self, prompts: Sequence[np.ndarray], sampling: Sampling, samples: int) -> Job:
        """Puts a request in line: `samples` completions of each prompt, int32 [n].

        Raises:
            ApiError: status 400 if it could never be admitted, 429 if too much is waiting, 503 if
                the engine has failed.
        """
        count, room = len(prompts) * samples, self._engine.slots + self._max_waiting
        if self._failure is not None:
            raise _failure_error(503, self._failure)
        if count > room:
            raise ApiError(
                400, f"{count} completions are more than the {room} that this server takes at once"
            )
        if self._unfinished() + count > room:
            raise ApiError(
                429,
                f"{self._max_waiting} completions may wait, and no more: try again later",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        job = Job(count, self._cancel)
        self._jobs.add(job)
        self._loop = asyncio.get_running_loop()
        self._commands.put(lambda: self._accept(job, prompts, sampling, samples))
        return job

    def give_up(self) -> None:
        """Cancels whatever has not ended, and tells its requests."""
        self._end_all(ApiError(503, "the server is stopping", code="stopping"))

    def load(self) -> Load:
        """What the engine is doing now."""
        unfinished, now = self._unfinished(), time.monotonic()
        running = min(unfinished, self._engine.slots)
        self._forget(now)
        uptime = now - self._started
        return Load(
            slots=self._engine.slots,
            running=running,
            waiting=unfinished - running,
            max_waiting=self._max_waiting,
            requests=self._requests,
            tokens=self._tokens,
            tokens_per_second=sum(n for _, n in self._recent) / min(RATE_SECONDS, uptime),
            uptime_seconds=uptime,
            failure=self._failure,
        )

    def _unfinished(self) -> int:
        return sum(job.unfinished for job in self._jobs)

    def _cancel(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
            self._commands.put(lambda: self._take_out(job))

    def _end_all(self, error: Exception) -> None:
        for job in list(self._jobs):
            job.put(error)
            job.cancel()

    # In the event loop, called by the thread:

    def _accepted(self, job: Job) -> None:
        self._requests += 1
        job.put(None)

    def _refused(self, job: Job, error: ApiError) -> None:
        self._jobs.discard(job)
        job.put(error)

    def _failed(self, failure: str) -> None:
        self._failure = failure
        self._end_all(_failure_error(500, failure))

    def _deliver(self, news: Sequence[tuple[Job, Piece]]) -> None:
        tokens, now = sum(piece.tokens for _, piece in news), time.monotonic()
        self._tokens += tokens
        self._recent.append((now, tokens))
        self._forget(now)
        for job, piece in news:
            job.put(piece)
            if piece.finish_reason is not None:
                job.unfinished -= 1
                if not job.unfinished:
                    self._jobs.discard(job)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - RATE_SECONDS:
            self._recent.popleft()

    # In the thread:

    def _run(self) -> None:
        try:
            while self._obey():
                self._publish(self._engine.step())
        except Exception as error:
            traceback.print_exc()
            self._call(self._failed, f"{type(error).__name__}: {error}")

    def _obey(self) -> bool:
        """Runs what was asked for, waiting while there is nothing to decode; False: to end."""
        while not self._engine.busy or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
        return True

    def _accept(
        self, job: Job, prompts: Sequence[np.ndarray], sampling: Sampling, samples: int
    ) -> None:
        completions: list[Completion] = []
        try:
            for prompt in prompts:
                completions += self._engine.submit(prompt, sampling, samples=samples)
        except ValueError as error:
            for completion in completions:
                self._engine.cancel(completion)
            self._call(self._refused, job, ApiError(400, str(error)))
            return
        self._owners |= {c: _Owner(job, index) for index, c in enumerate(completions)}
        self._call(self._accepted, job)

    def _take_out(self, job: Job) -> None:
        for completion in [c for c, owner in self._owners.items() if owner.job is job]:
            self._engine.cancel(completion)
            del self._owners[completion]

    def _publish(self, completions: Sequence[Completion]) -> None:
        news = []
        for completion in completions:
            owner = self._owners.get(completion)
            if owner is None:
                continue  # it was cancelled
            text, tokens = completion.text, len(completion.token_ids)
            reason = completion.finish_reason
            if len(text) == owner.sent and reason is None:
                continue
            piece = Piece(owner.index, text[owner.sent :], tokens - owner.counted, reason)
            news.append((owner.job, piece))
            owner.sent, owner.counted = len(text), tokens
            if reason is not None:
                del self._owners[completion]
        if news:
            self._call(self._deliver, news)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
            self._loop.call_soon_threadsafe(function, *arguments)


def warm_up(engine: Engine) -> None:
    """Compiles what a request by itself needs, greedy or drawn, for prompts of every length.

    What several that start together need, top_p and the like, and penalties, is compiled when it
    is first asked for.
    """
    longest = engine.max_length - 2
    for length in [*(2**i for i in range(longest.bit_length())), longest]:
        for temperature in (0.0, 1.0):
            prompt = np.zeros(length, np.int32)
            engine.submit(prompt, Sampling(max_tokens=2, temperature=temperature))
            engine.run()


@dataclasses.dataclass
class _Owner:
    """Whose a completion is, and how much of it was delivered."""

    job: Job
    index: int
    sent: int = 0  # characters
    counted: int = 0  # tokens


def _failure_error(status: int, failure: str) -> ApiError:
    return ApiError(status, f"the engine has failed ({failure}): restart the server")
