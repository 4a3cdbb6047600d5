import errno
import json
import math
import os
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from starcoder_jax.files import replace_file
from starcoder_jax.pages import format_number
from starcoder_jax.training.metrics import MetricsWriter, read_metrics


def record_steps(workdir, resume_step, steps):
    writer = MetricsWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, {"loss": 1 / step, "batch_fingerprint": f"{step:016x}"})
    writer.close()


def read_events(workdir):
    """All events, in the order in which TensorBoard reads the files."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return events


def test_a_line_is_on_disk_at_once_and_keeps_the_order_of_its_keys(tmp_path):
    writer = MetricsWriter(tmp_path / "run", 0)
    writer.write(20, {"loss": 5.5, "tokens": 1_000, "batch_fingerprint": "00ff"})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 20, "loss": 5.5, "tokens": 1000, "batch_fingerprint": "00ff"}\n'
    writer.close()


def test_numpy_scalars_are_numbers_and_anything_else_is_refused(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": np.float32(0.5), "tokens": np.int64(7)})
    with pytest.raises(ValueError, match=r"^metric loss is a list; give .* scalar.*$"):
        writer.write(2, {"loss": [1.0]})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5, "tokens": 7}]


def test_non_finite_values_are_valid_json_and_come_back(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"a": math.nan, "b": np.float32(np.inf), "c": -math.inf, "d": "NaNny"})
    writer.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    parsed = json.loads(text, parse_constant=refuse)
    assert parsed == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": "NaNny"}
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"], record["d"]) == (math.inf, -math.inf, "NaNny")


@pytest.mark.parametrize("cut", [0, 1, 9], ids=["whole", "no newline", "half a line"])
def test_a_resumed_file_equals_that_of_a_run_never_stopped(tmp_path, cut):
    record_steps(tmp_path / "whole", 0, range(1, 9))
    record_steps(tmp_path / "killed", 0, range(1, 7))
    path = tmp_path / "killed" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    assert len(read_metrics(tmp_path / "killed")) == (5 if cut else 6)
    record_steps(tmp_path / "killed", 4, range(5, 9))
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert sorted(os.listdir(path.parent)) == ["metrics.jsonl", "tensorboard"]


def test_a_run_that_restored_nothing_starts_the_record_anew(tmp_path):
    record_steps(tmp_path, 0, range(1, 4))
    record_steps(tmp_path, 0, range(1, 3))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_resuming_is_atomic(tmp_path, monkeypatch):
    record_steps(tmp_path, 0, range(1, 6))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]


def test_a_damaged_line_is_named(tmp_path):
    record_steps(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 2', '{"stop": 2'))
    for read in (lambda: read_metrics(tmp_path), lambda: MetricsWriter(tmp_path, 3)):
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .* delete that line$"):
            read()


def test_no_file_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_numbers_and_drops_what_a_killed_run_logged(tmp_path):
    record_steps(tmp_path, 0, range(1, 7))
    record_steps(tmp_path, 4, range(5, 9))
    kept = {}
    restarts = 0
    for event in read_events(tmp_path):
        if event.session_log.status == SessionLog.START:
            restarts += 1
            kept = {step: loss for step, loss in kept.items() if step < event.step}
        for value in event.summary.value:
            assert value.tag == "loss"
            kept[event.step] = value.simple_value
    assert restarts == 2
    assert kept == pytest.approx({step: 1 / step for step in range(1, 9)})


@pytest.mark.parametrize("room", [0, 11], ids=["none", "for part of a line"])
def test_a_full_disk_is_one_clear_error_and_damages_nothing(tmp_path, monkeypatch, room):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 2.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    real_write = os.write

    def full(descriptor, data):
        if room:
            return real_write(descriptor, data[:room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"No space left.*make room.*metrics\.jsonl'$") as caught:
            writer.write(2, {"loss": 1.0})
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_full_disk_under_tensorboard_is_an_error_and_not_a_hang(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricsWriter(tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
        for step in range(1, 30):
            with pytest.raises(OSError, match=r"No space left.*tensorboard'$"):
                writer.write(step, {"loss": 1.0})
    writer.close()


def test_replacing_a_file_keeps_its_mode_and_names_it_when_it_fails(tmp_path):
    path = tmp_path / "page.html"
    replace_file(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o664)
    replace_file(path, b"two")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o664)
    with pytest.raises(FileNotFoundError, match=r"absent/page\.html'$"):
        replace_file(tmp_path / "absent" / "page.html", b"")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 4, "0"),
        (5.12345, 4, "5.123"),
        (-2.5, 4, "-2.5"),
        (999.96, 4, "1k"),
        (12_345.6, 3, "12.3k"),
        (1.2e9, 4, "1.2G"),
        (3e-4, 4, "3e-4"),
        (0.00123, 4, "0.00123"),
        (2.5e20, 4, "2.5e20"),
        (math.nan, 4, "NaN"),
        (-math.inf, 4, "-Infinity"),
    ],
)
def test_numbers_for_people(value, digits, text):
    assert format_number(value, digits) == text
