"""What JAX and the system tell of a running program: compilations, saves, memory and traces."""

import os
import pathlib
from typing import Self

import jax

_COMPILING = "/jax/core/compile/"  # tracing and lowering, too
_COMPILED = "/jax/core/compile/backend_compile_duration"
_SAVED = "/jax/checkpoint/write/async/total_duration_secs"  # Orbax, on process 0
_STATISTICS = pathlib.Path("/proc/self/statm")  # Linux


class Events:
    """Counts what JAX and Orbax report while this context manager is open.

    Args:
        function: the jitted function whose compilations are counted.

    Attributes:
        compilations: of the function, by this process. Reading it from a cache counts.
    """

    def __init__(self, function: str):
        self.compilations = 0
        self._names = {f"jit({function})", f"jit_{function}"}  # JAX's spelling has changed before
        self._spans: list[tuple[float, float]] = []
        self._save_seconds: list[float] = []

    def __enter__(self) -> Self:
        jax.monitoring.register_event_time_span_listener(self._on_span)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(self, *exception) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._on_span)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def take_compile_seconds(self) -> float:
        """Spent on compiling anything since the last call."""
        spans, self._spans = self._spans, []
        return sum(end - start for start, end in spans)

    def take_save_seconds(self) -> float | None:
        """From the start of the last save until it was on disk; None: none was since last asked."""
        saves, self._save_seconds = self._save_seconds, []
        return saves[-1] if saves else None

    def _on_span(self, event: str, start: float, end: float, **about: str | int) -> None:
        if not event.startswith(_COMPILING):
            return
        # Tracing a function traces those it calls, which are reported before it.
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((start, end))
        self.compilations += event == _COMPILED and about.get("fun_name") in self._names

    def _on_duration(self, event: str, seconds: float, **_: str | int) -> None:
        if event == _SAVED:
            self._save_seconds.append(seconds)


class ProfileWindow:
    """Writes a JAX profiler trace of a range of steps.

    Args:
        folder: the trace goes here, for TensorBoard or xprof.
        steps: the first and the last; empty: none.

    Attributes:
        is_open: a trace is under way.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, ...]):
        self._folder = folder
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self.is_open = False

    def is_due(self, step: int) -> bool:
        """Whether the trace must start or end before this step; those before must have finished."""
        return (step in self._steps) != self.is_open

    def toggle(self) -> None:
        """Starts the trace, or ends and writes it."""
        self.is_open = not self.is_open
        if self.is_open:
            jax.profiler.start_trace(self._folder)
        else:
            jax.profiler.stop_trace()

    def close(self) -> None:
        """Ends a trace that is open."""
        if self.is_open:
            self.toggle()


def memory_use() -> dict[str, int]:
    """Bytes in use, by metric; those that the system or the devices do not tell are left out.

    `host_memory_bytes` is the resident memory of this process, without processes that it started.
    `device_memory_bytes` and `device_memory_peak_bytes` are of its fullest device.
    """
    use = {}
    if _STATISTICS.exists():
        resident_pages = int(_STATISTICS.read_text().split()[1])
        use["host_memory_bytes"] = resident_pages * os.sysconf("SC_PAGE_SIZE")
    devices = [device.memory_stats() or {} for device in jax.local_devices()]
    for metric, name in (
        ("device_memory_bytes", "bytes_in_use"),
        ("device_memory_peak_bytes", "peak_bytes_in_use"),
    ):
        if all(name in statistics for statistics in devices):
            use[metric] = max(statistics[name] for statistics in devices)
    return use
