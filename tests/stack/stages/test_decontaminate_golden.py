"""The published benchmarks, where their files lie beside the repository."""

import gzip
import json
import pathlib
import re
import sysconfig

import pytest

from starcoder_jax.stack import record
from starcoder_jax.stack.stages import decontaminate
from starcoder_jax.stack.stages.decontaminate import DecontaminateConfig

DATA = pathlib.Path(__file__).parents[4] / "shared" / "data"
LANGUAGES = ("cpp", "java", "js", "rs", "sh")
FILES = {
    "humaneval": str(DATA / "humaneval" / "HumanEval.jsonl.gz"),
    "mbpp": str(DATA / "mbpp" / "mbpp.jsonl"),
    "multipl_e": [str(DATA / f"multipl-e-humaneval/humaneval-{name}.jsonl") for name in LANGUAGES],
}
BEFORE = '#!/usr/bin/env python\n"""Exercises."""\nimport os\n\n\nclass A:\n    x = 1\n\n'
AFTER = "\n\nif __name__ == '__main__':\n    print(os.name)\n"

# Every way keeps the words and changes the white space around them.
LAYOUTS = {
    "verbatim": lambda text: text,
    "indented": lambda text: re.sub("^", "        ", text, flags=re.MULTILINE),
    "tabs": lambda text: text.replace("    ", "\t"),
    "crlf": lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n"),
    "spaced": lambda text: re.sub(r"([(,)=])", r" \1  ", text).replace("\n", " \n\n"),
    "one line": lambda text: " ".join(text.split()),
}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}")


def problems():
    """(problem, what was asked, solution) of HumanEval and of the test split of MBPP."""
    with gzip.open(FILES["humaneval"]) as file:
        for row in map(json.loads, file):
            yield row["task_id"], row["prompt"], row["prompt"] + row["canonical_solution"]
    with open(FILES["mbpp"]) as file:
        for row in map(json.loads, file):
            if 11 <= row["task_id"] <= 510:
                yield f"MBPP/{row['task_id']}", f'"""{row["text"]}"""', row["code"]


def search(run_steps, contents, benchmarks=FILES):
    rows = [{"kind": "file", "content": content} for content in contents]
    steps = decontaminate.steps(DecontaminateConfig(benchmarks), "dedup")
    return run_steps(steps, dedup=[record.records(rows)])["decontaminate"][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_problems_are_found(run_steps, layout):
    planted = list(problems())
    assert sum(name.startswith("HumanEval/") for name, _, _ in planted) == 164
    assert sum(name.startswith("MBPP/") for name, _, _ in planted) == 500
    alone = {name: FILES[name] for name in ("humaneval", "mbpp")}
    for part in (1, 2):
        contents = [(BEFORE + LAYOUTS[layout](p[part]) + AFTER).encode() for p in planted]
        output = search(run_steps, contents, alone)
        assert output.table.num_rows == 0
        # Not all name the problem that was planted: a few contain the text of another.
        named = output.drops["detail"].to_pylist()
        assert sum(map(str.__eq__, named, (name for name, _, _ in planted))) > 0.96 * len(planted)


def test_solutions_alone_are_found(run_steps):
    with gzip.open(FILES["humaneval"]) as file:
        solutions = [json.loads(row)["canonical_solution"] for row in file]
    contents = [(BEFORE + "def f():\n" + text + AFTER).encode() for text in solutions]
    left = search(run_steps, contents).table["content"].to_pylist()
    trivial = [text for text in solutions if text.strip() in decontaminate.TRIVIAL]
    assert len(trivial) == len(left) == 4
    assert left == [contents[solutions.index(text)] for text in trivial]


def test_translated_problems_are_found(run_steps):
    contents, names = [], []
    for path, language in zip(FILES["multipl_e"], LANGUAGES, strict=True):
        for row in map(json.loads, pathlib.Path(path).read_text().splitlines()):
            for column in ("prompt", "tests"):
                contents.append(LAYOUTS["indented"](row[column]).encode())
                names.append(f"MultiPL-E/{language}/{row['name']}")
    output = search(run_steps, contents, {"multipl_e": FILES["multipl_e"]})
    assert len(contents) > 1500 and output.table.num_rows == 0
    same = sum(map(str.__eq__, output.drops["detail"].to_pylist(), names))
    assert same / len(names) > 0.99


def test_ordinary_code_passes(run_steps):
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in folder.glob("*/*.py") if "site-packages" not in path.parts)
    paths += sorted(folder.glob("*.py"))
    output = search(run_steps, [path.read_bytes() for path in paths])
    details = output.drops["detail"].to_pylist()
    print(len(paths), "files of the standard library:", details)
    assert len(paths) > 300 and len(details) <= 2
