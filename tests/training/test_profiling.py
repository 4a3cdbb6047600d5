import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.training import profiling
from starcoder_jax.training.profiling import Events, ProfileWindow, memory_use

COMPILE = "/jax/core/compile/something"


def span(start, end, event=COMPILE):
    jax.monitoring.record_event_time_span(event, start, end, fun_name="jit(other)")


def test_compilations_of_one_function_are_counted():
    @jax.jit
    def observed(x):
        return jnp.sin(x) @ x

    @jax.jit
    def other(x):
        return observed(x) + 1

    x = np.ones((3, 3), np.float32)
    with Events("observed") as events:
        assert (events.compilations, events.take_compile_seconds()) == (0, 0)
        observed(x)
        assert events.compilations == 1 and events.take_compile_seconds() > 0
        observed(2 * x)
        assert events.compilations == 1 and events.take_compile_seconds() == 0
        observed(np.ones((4, 4), np.float32))
        other(x)
        assert events.compilations == 2
    observed(np.ones((5, 5), np.float32))
    assert events.compilations == 2


def test_what_is_compiled_within_something_else_counts_once():
    with Events("f") as events:
        span(2, 3)
        span(4, 5)
        span(1, 6)
        span(6, 8)
        span(0, 100, event="/jax/something/else")
        assert events.take_compile_seconds() == 7
        span(9, 10)
        assert events.take_compile_seconds() == 1


def test_saves_are_told_once():
    with Events("f") as events:
        assert events.take_save_seconds() is None
        for seconds in (3.0, 4.0):
            jax.monitoring.record_event_duration_secs(
                "/jax/checkpoint/write/async/total_duration_secs", seconds
            )
        assert events.take_save_seconds() == 4
        assert events.take_save_seconds() is None


@pytest.mark.parametrize(
    ("steps", "run", "toggled"),
    [
        ((), range(1, 9), []),
        ((3, 5), range(1, 9), [3, 6]),
        ((1, 1), range(1, 9), [1, 2]),
        ((3, 5), range(5, 9), [5, 6]),  # resumed within
        ((3, 5), range(6, 9), []),  # and after it
        ((3, 5), range(1, 6), [3, "end"]),  # the last step of the run
    ],
)
def test_when_a_trace_starts_and_ends(monkeypatch, tmp_path, steps, run, toggled):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(True))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(False))
    window, seen = ProfileWindow(tmp_path, steps), []
    for step in run:
        if window.is_due(step):
            window.toggle()
            seen.append(step)
    if window.is_open:
        seen.append("end")
    window.close()
    window.close()
    assert seen == toggled
    assert calls == [True, False] * (len(toggled) // 2)


def test_host_memory():
    before = memory_use()["host_memory_bytes"]
    block = np.ones(2**24)
    assert memory_use()["host_memory_bytes"] - before > 0.9 * block.nbytes
    assert not {"device_memory_bytes", "device_memory_peak_bytes"} & set(memory_use())


def test_memory_of_the_fullest_device(monkeypatch, tmp_path):
    def devices(*statistics):
        found = [types.SimpleNamespace(memory_stats=lambda values=s: values) for s in statistics]
        monkeypatch.setattr(jax, "local_devices", lambda: found)

    monkeypatch.setattr(profiling, "_STATISTICS", tmp_path / "absent")  # as on other systems
    devices(
        {"bytes_in_use": 5, "peak_bytes_in_use": 9, "num_allocs": 1},
        {"bytes_in_use": 7, "peak_bytes_in_use": 8},
    )
    assert memory_use() == {"device_memory_bytes": 7, "device_memory_peak_bytes": 9}
    devices({"bytes_in_use": 5}, {"bytes_in_use": 7})
    assert memory_use() == {"device_memory_bytes": 7}
    devices({"bytes_in_use": 5}, None)
    assert memory_use() == {}
