import gzip
import hashlib
import json
import pathlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack import record
from starcoder_jax.stack.stages import decontaminate
from starcoder_jax.stack.stages.decontaminate import DecontaminateConfig, squeeze

PROBLEMS = {
    "humaneval": [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def helper(x):\n    """ Some help """\n    return x\n\ndef middle(a):\n'
            '    """ Give back the Middle element.\n    >>> middle([1, 2, 3])\n    2\n    """\n',
            "canonical_solution": "    order = sorted(a)\n    return order[len(order) // 2]\n",
        },
        {
            "task_id": "HumanEval/1",
            "prompt": "def add(x, y):\n    ''' Sum of the two given numbers, x and y '''\n",
            "canonical_solution": "    return x + y\n",
        },
    ],
    "mbpp": [
        {"task_id": 10, "text": "A problem of the prompt split.", "code": "def ten(): return 10"},
        {"task_id": 11, "text": "Write a function to count to\r\neleven.", "code": "def f(): ..."},
        {"task_id": 510, "prompt": "Write a function to count sheep.", "code": "def sheep(n): .."},
        {"task_id": 511, "text": "A problem of the training split.", "code": "def more(): pass"},
    ],
    "multipl_e": [
        {
            "name": f"HumanEval_{number}_f",
            "language": "cpp",
            "prompt": f"#include<assert.h>\n#include<vector>\n// Return {number}.\nlong f() {{\n",
            "tests": f"}}\nint main() {{ assert(f() == {number}); }}\n",
        }
        for number in (7, 8)
    ],
    "gsm8k": [{"question": "Ann has 3 apples and eats 2. How many are left?", "answer": "#### 1"}],
    "ds1000": [{"prompt": "Problem:\nSum a column of a frame.\nA:\n", "metadata": {}}],
    "apps": [{"question": "Polycarp likes strings.\nCount them."}, {"question": "Sort $n$ cows."}],
}


@pytest.fixture
def benchmarks(tmp_path):
    """The files of all benchmarks, in all the forms that are read."""
    files = {}
    for name, rows in PROBLEMS.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    files["mbpp"].write_text(json.dumps(PROBLEMS["mbpp"], indent=1))
    files["apps"].write_bytes(gzip.compress(files["apps"].read_bytes()))
    return {name: str(file) for name, file in files.items()}


def search(run_steps, benchmarks, texts, kind="file", **fields):
    rows = [{"kind": kind, "content": text.encode(), "repository": "a/b"} for text in texts]
    steps = decontaminate.steps(DecontaminateConfig(benchmarks, **fields), "dedup")
    assert [(step.name, step.inputs) for step in steps] == [("decontaminate", ("dedup",))]
    pickle.dumps(steps)
    (output,) = run_steps(steps, dedup=[record.records(rows)])["decontaminate"]
    assert output.table.num_rows + output.drops.num_rows == len(texts)
    assert set(output.drops["reason"].to_pylist()) <= {"benchmark"}
    return output


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Give back the middle element. >>> middle([1,2,3]) 2", "HumanEval/0"),
        ("if 1:\n\t\torder=sorted(a)\r\n\t\treturn order[ len(order)//2 ]", "HumanEval/0"),
        ("# sum of the two given\n#  numbers", None),
        ("''' Sum of the two given\u00a0numbers,\u3000x\x85and y", "HumanEval/1"),
        ("def add(x, y):\n    return x + y", None),
        ("Some help", None),
        ("WRITE A FUNCTION to count\n to eleven.", "MBPP/11"),
        ("é\ndef sheep(n):\n    ..", "MBPP/510"),
        ("A problem of the training split.", None),
        ("def ten():\n    return 10", None),
        ("#include<assert.h>\n#include<vector>\n", None),
        ("// Return 8.\nlong f()\n{\n  return 8;", "MultiPL-E/cpp/HumanEval_8_f"),
        ("x }\n\nint main() {\n  assert(f() == 7);\n}", "MultiPL-E/cpp/HumanEval_7_f"),
        ("q = 'Ann has 3 apples and eats 2. How many are left?'", "GSM8K/0"),
        ("<Problem: Sum a column of a frame. A: >", "DS-1000/0"),
        ("# Sort $n$ cows.", "APPS/1"),
        ("", None),
    ],
)
def test_a_problem_is_found_however_it_is_laid_out(run_steps, benchmarks, text, problem):
    output = search(run_steps, benchmarks, [text, "print('hello')"])
    assert output.drops["detail"].to_pylist() == ([] if problem is None else [problem])
    assert output.table["content"].to_pylist()[-1] == b"print('hello')"


def test_kinds_that_are_not_searched_pass(run_steps, benchmarks):
    text = "Sort $n$ cows."
    assert search(run_steps, benchmarks, [text], kind="documentation").table.num_rows == 1
    assert search(run_steps, benchmarks, [text], kind="commit").table.num_rows == 0
    assert search(run_steps, benchmarks, [text], kinds=("issue",)).table.num_rows == 1


def test_counts_name_the_files_that_were_used(run_steps, benchmarks):
    file = benchmarks["gsm8k"]
    digest = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
    output = search(run_steps, {"gsm8k": file}, ["a", "b"])
    assert output.counts == {f"rows searched for gsm8k (sha256 {digest})": 2}
    both = search(run_steps, {"gsm8k": [file, file]}, ["a"])
    assert list(both.counts) != list(output.counts) and both.table.num_rows == 1


def test_without_benchmarks_nothing_is_dropped_and_the_counts_say_so(run_steps):
    output = search(run_steps, {}, ["a"])
    assert output.table.num_rows == 1
    assert output.counts == {"rows searched for no benchmark": 0}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("humanevil", b"", "'humanevil' is unknown"),
        ("gsm8k", None, "cannot read"),
        ("gsm8k", b"", "has no problem"),
        ("mbpp", b'{"task_id": 1, "text": "a", "code": "b"}', "has no problem of its test split"),
        ("gsm8k", b'{"prompt": "a"}', "KeyError: 'question'"),
        ("humaneval", b"not JSON", "is not a file of this benchmark"),
        ("humaneval", b'{"task_id": "a", "prompt": "b"}', "is not a file of this benchmark"),
        ("apps", b"[1, 2]", "is not a file of this benchmark"),
        ("apps", b'{"question": null}', "is not a file of this benchmark"),
        ("apps", b"\xff\xfe", "is not a file of this benchmark"),
        ("apps", b"\x1f\x8bnot gzip", "cannot read"),
        ("apps", gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot read"),
    ],
)
def test_bad_files_give_one_line(tmp_path, name, data, message):
    file = tmp_path / "file"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ValueError, match=r"decontaminate\.benchmarks") as error:
        decontaminate.steps(DecontaminateConfig({name: str(file)}), "dedup")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_kind_gives_one_line():
    with pytest.raises(ValueError, match="'files' is unknown"):
        DecontaminateConfig(kinds=("files",))


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_squeeze_is_lower_case_without_white_space(text):
    assert squeeze(text.encode()).decode() == "".join(text.lower().split())


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii")))
def test_ascii_is_squeezed_as_the_rest(text):
    # "é" sends the text the other way.
    assert squeeze(text.encode()) + "é".encode() == squeeze((text + "é").encode())
