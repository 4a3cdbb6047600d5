import gzip
import json

import pytest

from starcoder_jax.evals.problems import (
    Problem,
    Task,
    make_problems,
    prompts_fingerprint,
    read_json,
    read_rows,
)

TASK = Task(lambda row: Problem(row["task_id"], row["prompt"], row["prompt"], "python"))
ROWS = [{"task_id": "a", "prompt": "x\u2028é"}, {"task_id": "b", "prompt": ""}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_every_kind_of_file_is_read(tmp_path, name):
    if ".jsonl" in name:
        text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    else:
        text = json.dumps(ROWS)
    content = text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_rows(path) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "must be a .jsonl"),
        ("a.jsonl", b"{", "is damaged"),
        ("a.jsonl.gz", b"{}", "is damaged"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-4], "is damaged"),
        ("a.json", b'"\xff"', "is damaged"),
        ("a.json", b"{}", "must hold a list"),
        ("a.json", b"[1]", "entry 1 is not a JSON object"),
    ],
)
def test_what_is_no_data_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*absent.json: No such file"):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("rows", "prompt_format", "message"),
    [
        ([], None, "no problem of this task"),
        ([{"task_id": "a"}], None, "problem 1 of the data file.*it has no 'prompt'"),
        ([ROWS[0], ROWS[0]], None, "two problems named a"),
        (ROWS, "chat", "--prompt_format=chat: no such format; known: this task has none"),
    ],
)
def test_rows_of_something_else_are_refused(rows, prompt_format, message):
    with pytest.raises(ValueError, match=message):
        make_problems(TASK, rows, prompt_format)


def test_rows_without_a_name_have_a_number():
    problems = make_problems(TASK, [{"prompt": "x"}, {"prompt": "y"}], None)
    assert [problem.task_id for problem in problems] == ["1", "2"]


def test_the_fingerprint_covers_what_a_model_is_shown():
    def of(**fields):
        return prompts_fingerprint([Problem("a", "p", "before", "python", **fields)])

    plain = of()
    assert plain == of(after="x", solutions={"canonical": "c"})
    others = [of(suffix=""), of(suffix="s"), of(stop=("\n",)), of(special_tokens=("<s>",))]
    assert len({plain, *others}) == 5
