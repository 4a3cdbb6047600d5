import json
import multiprocessing
import os

import pytest

from starcoder_jax.evals.problems import Problem
from starcoder_jax.evals.samples import Journal, Sample, read_samples

PROBLEMS = [
    Problem("t/0", "def f():", "def f():\n", "python"),
    Problem("t/1", "x = ", "x = ", "python", suffix="\n", after="\n"),
]
LINE = {"task_id": "t/0", "completion": "é\n", "sample": 0}


def write(path, value, lines=False):
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return path


def test_completions_and_solutions_are_read(tmp_path):
    rows = [
        {"task_id": "t/1", "completion": "1"},
        {"task_id": "t/0", "solution": "def f(): return 2"},
        {"task_id": "t/1", "completion": "2", "note": 3},
    ]
    samples = read_samples(write(tmp_path / "s.jsonl", rows, lines=True), PROBLEMS)
    assert [(s.task_id, s.index) for s in samples] == [("t/1", 0), ("t/0", 0), ("t/1", 1)]
    codes = [sample.code(PROBLEMS[int(sample.task_id[-1])]) for sample in samples]
    assert codes == ["x = 1\n", "def f(): return 2", "x = 2\n"]
    assert samples[2].about == {"note": 3}


def test_lists_of_programs_are_read(tmp_path):
    path = write(tmp_path / "generations.json", [["def f(): 1", "def f(): 2"], ["x = 3"]])
    samples = read_samples(path, PROBLEMS)
    assert [(s.task_id, s.index, s.text) for s in samples] == [
        ("t/0", 0, "def f(): 1"),
        ("t/0", 1, "def f(): 2"),
        ("t/1", 0, "x = 3"),
    ]
    assert all(sample.is_solution for sample in samples)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must hold samples"),
        ({"t/0": "x"}, "must hold samples"),
        ([["x"]], "programs for 1 problems, the data file 2"),
        ([[1], ["x"]], "a sample of t/0 has no completion"),
        ([{"completion": "x"}], "entry 1 has no task_id"),
        ([{"task_id": "t/0", "text": "x"}], "a sample of t/0 has no completion"),
        ([{"task_id": "t/9", "completion": "x"}], "the data file has no problem t/9"),
    ],
)
def test_what_is_no_samples_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read_samples(write(tmp_path / "s.json", value), PROBLEMS)


def test_a_sample_survives_its_line():
    sample = Sample("t/0", 3, "a\ud800\u2028b", about={"tokens": 5, "finish_reason": "stop"})
    assert Sample.of_line(json.loads(json.dumps(sample.line))) == sample
    assert sample.line["completion"] == "a\ud800\u2028b"


def test_a_journal_goes_on_where_it_was_cut(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, {"seed": 1}) as journal:
        journal.write([LINE, LINE | {"sample": 1}])
    with open(path, "ab") as file:
        file.write(b'{"task_id": "t/0", "compl')
    with Journal(path, {"seed": 1}) as journal:
        assert journal.lines == [LINE, LINE | {"sample": 1}]
        journal.write([LINE | {"sample": 2}])
    assert [json.loads(line)["sample"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_journal_made_otherwise_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, {"seed": 1, "stop": ["x"]}):
        pass
    with Journal(path, {"seed": 2, "stop": ("x",)}) as journal:  # nothing was written so far
        journal.write([LINE])
    with Journal(path, {"seed": 2, "stop": ("x",)}):
        pass
    with pytest.raises(ValueError, match="seed 2 -> 3, top_p None -> 1"):
        Journal(path, {"seed": 3, "stop": ("x",), "top_p": 1})
    (tmp_path / "j.jsonl.settings.json").unlink()
    with pytest.raises(ValueError, match="not what made it"):
        Journal(path, {"seed": 2})


def test_a_damaged_journal_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, {}) as journal:
        journal.write([LINE])
    path.write_text("}\n" + path.read_text())
    with pytest.raises(ValueError, match="is damaged"):
        Journal(path, {})


def _hold(path, ready, done):
    with Journal(path, {}):
        ready.set()
        done.wait(30)
    os._exit(0)


def test_one_process_writes_at_a_time(tmp_path):
    path = tmp_path / "j.jsonl"
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match="another process is writing"):
        Journal(path, {})
    done.set()
    other.join()
    assert other.exitcode == 0
    with Journal(path, {}):
        pass
