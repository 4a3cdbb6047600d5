"""docs/contract.md says what there is."""

import dataclasses
import importlib
import json
import re

from documented import ROOT

import starcoder_jax as sj
from starcoder_jax import evaluate
from starcoder_jax.recipes import Recipe, load_recipe

PAGE = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


def section(title):
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]


def names(text):
    return re.findall(r"`([\w.]+)`", text)


def paragraph(start):
    """Names after the words "at least" of the paragraph of this beginning."""
    (found,) = [text for text in section("Files").split("\n\n") if text.startswith(start)]
    return names(found.partition("at least")[2])


def test_all_commands_are_there_and_no_other():
    rows = re.findall(r"^\| (`.*?) \|", section("Commands"), re.M)
    listed = {name for row in rows for name in names(row)}
    package = ROOT / "starcoder_jax"
    files = [*package.glob("*.py"), *package.glob("*/__main__.py")]
    commands = [path for path in files if "\ndef main(" in path.read_text(encoding="utf-8")]
    assert listed == {p.parent.name if p.stem == "__main__" else p.stem for p in commands}
    for name in listed - {"stack"}:
        assert callable(importlib.import_module(f"starcoder_jax.{name}").main)


def test_settings_are_there():
    recipe = load_recipe(["tiny.gin"])
    sections = {field.name for field in dataclasses.fields(Recipe)}
    listed = [name for name in names(section("Names of settings")) if "." in name]
    assert len(listed) == 8
    for name in listed:
        part, field = name.split(".")
        assert part in sections and hasattr(getattr(recipe, part), field), name


def test_files_of_a_run_and_their_keys_are_there(trained):
    working = section("Files").partition("usable")[0]
    files = re.findall(r"`([^`]*)`", working)
    assert len(files) == 5
    for file in files:
        assert (trained / file.removesuffix("STEP/")).exists(), file
    keys = [key for key in paragraph("A working directory") if key != "metrics.jsonl"]
    assert len(keys) == 7
    for line in (trained / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).keys() >= set(keys)


def test_keys_of_a_plan_are_those_that_its_test_asks_for():
    keys = paragraph("`plan --json`")
    text = (ROOT / "tests" / "test_plan.py").read_text(encoding="utf-8")
    asked = re.search(r"^KEYS = \{(.*?)\}", text, re.M | re.S)[1]
    assert sorted(keys) == sorted(re.findall(r'"(\w+)"', asked))


def test_keys_of_a_result_are_there(tmp_path):
    rows = tmp_path / "lines.jsonl"
    rows.write_text('{"prefix": "a", "middle": "b", "suffix": "c"}\n')
    output = tmp_path / "result.json"
    evaluate.main(["--task=fim", "--solutions=canonical", f"--data={rows}", f"--output={output}"])
    result = json.loads(output.read_text())
    keys = paragraph("`evaluate")
    assert len(keys) == 6
    assert result.keys() >= set(keys[:3]) and result["samples"][0].keys() >= set(keys[3:])


def test_names_of_the_package_are_there():
    table = section("Python").partition("| name |")[2]
    assert set(re.findall(r"`sj\.(\w+)", table.partition("\n\n")[0])) == set(sj.__all__)
