import io

import pytest

from starcoder_jax import progress as module
from starcoder_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_are_plain_lines_now_and_then(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with Progress(stream).stage("running", 100, done=10) as advance:
        for _ in range(45):
            now += 1.0
            advance(2)
    lines = stream.getvalue().splitlines()
    assert lines == ["running 70/100  15 s left", "running 100/100  in 45.0 s"]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_stage_that_fails_has_no_last_line():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream).stage("running", 5):
        raise KeyboardInterrupt
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(stream).stage("[b]running[/b]", 8, done=3) as advance:
        advance(2)
    assert "[b]running[/b]" in stream.getvalue() and "5/8" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(stream).stage("running", 8) as advance:
        advance(8)
    assert stream.getvalue().startswith("running 8/8  in ")
