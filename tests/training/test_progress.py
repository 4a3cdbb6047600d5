import contextlib
import io
import os
import pty
import re
import threading

import pytest

from starcoder_jax.training import progress as progress_module
from starcoder_jax.training.progress import Progress


class Clock:
    def __init__(self, monkeypatch):
        self.seconds = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.seconds)


def run(progress, clock):
    """Compiles for 1,000 s, then takes 2 s a step and logs each tenth of the first 30."""
    with progress:
        progress.message("3 [bold]files[/bold]")
        clock.seconds += 1_000
        for step in range(1, 31):
            clock.seconds += 2
            if step % 10:
                progress.advance(step)
            else:
                progress.update(step, loss=5.1234, tokens_per_second=12_345.6)
    return progress


def drain(descriptor, pieces):
    # Linux ends a terminal that nobody writes to any more with EIO, others with an empty read.
    with contextlib.suppress(OSError):
        while piece := os.read(descriptor, 65_536):
            pieces.append(piece)


def test_plain_lines(monkeypatch):
    stream = io.StringIO()
    run(Progress(600, 0, stream), Clock(monkeypatch))
    assert stream.getvalue().splitlines() == [
        "3 [bold]files[/bold]",
        "step 10/600  loss 5.123  12.3k tokens/s  20 min left",
        "step 20/600  loss 5.123  12.3k tokens/s  19 min left",
        "step 30/600  loss 5.123  12.3k tokens/s  19 min left",
    ]
    assert not set("\r\x1b") & set(stream.getvalue())


def test_the_time_left_follows_the_recent_pace(monkeypatch):
    stream, clock = io.StringIO(), Clock(monkeypatch)
    with Progress(10_000, 5_000, stream) as progress:
        for step in range(5_001, 5_101):
            clock.seconds += 60 if step <= 5_050 else 1
            progress.update(step, loss=1, tokens_per_second=1)
        progress.update(10_000, loss=1, tokens_per_second=1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 5001/10000  loss 1.000  1 tokens/s"
    assert lines[1].endswith("  3 d 11 h left")
    assert lines[99].endswith("  1 h 22 min left")
    assert lines[100].endswith("1 tokens/s")


def test_utilisation_is_shown_where_it_is_known():
    stream = io.StringIO()
    with Progress(10, 0, stream) as progress:
        progress.update(10, loss=1, tokens_per_second=1_000, mfu=0.5126)
    assert stream.getvalue() == "step 10/10  loss 1.000  1k tokens/s  MFU 51.3%\n"


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_a_terminal_gets_a_bar_and_a_dumb_one_plain_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "100")
    parent, child = pty.openpty()
    pieces = []
    reader = threading.Thread(target=drain, args=(parent, pieces), daemon=True)
    reader.start()
    with os.fdopen(child, "w", encoding="utf-8") as stream:
        run(Progress(600, 0, stream), Clock(monkeypatch))
    reader.join(timeout=30)
    os.close(parent)
    shown = b"".join(pieces).decode()
    assert ("\x1b[" in shown) == (term != "dumb")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "3 [bold]files[/bold]" in text
    last = text.rstrip().splitlines()[-1]
    assert ("━" in last) == (term != "dumb")
    for field in ("step 30/600", "loss 5.123", "12.3k tokens/s", "19 min left"):
        assert field in last
