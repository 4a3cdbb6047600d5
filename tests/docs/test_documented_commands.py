"""Every command, Python example, setting and file that the documentation shows is one there is."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import pathlib
import re

import pytest
import site_commands
import site_settings
from documented import PAGES, ROOT, Block, blocks, documented

from starcoder_jax import gin_files
from starcoder_jax.recipes import Recipe, load_recipe
from starcoder_jax.stack.config import StackRecipe

# Programs whose arguments are not looked at.
OTHERS = {"cat", "cd", "cp", "curl", "export", "git", "mkdir", "set", "sphinx-build"}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Fails for a command of a block that cannot be run as it is written."""
    monkeypatch.chdir(tmp_path)

    def check_block(block: Block) -> int:
        for name, text in block.files.items():
            pathlib.Path(name).parent.mkdir(exist_ok=True)
            pathlib.Path(name).write_text(text)
        commands = list(block.commands())
        for words in commands:
            check_command(words)
        return len(commands)

    return check_block


def check_command(words: list[str]) -> None:
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        module, arguments = arguments[1], arguments[2:]
        package, _, name = module.partition(".")
        if package == "starcoder_jax":
            check_ours(name, arguments)
            return
        program = module
    if program == "pip":
        check_pip(arguments)
    elif program in ("pytest", "ruff", "source"):
        for argument in arguments:
            assert "/" not in argument or (ROOT / argument).exists(), words
    elif "/" in program:
        assert (ROOT / program).is_file(), f"no such program: {program}"
    else:
        assert program in OTHERS | {"venv"}, f"unknown program: {words}"


def check_ours(name: str, arguments: list[str]) -> None:
    """The command's own parser takes the flags, and its recipes the settings."""
    assert name in site_commands.commands(), f"no command {name}"
    known, rest = site_commands.command_parser(name).parse_known_args(arguments)
    strange = [argument for argument in rest if not argument.startswith("--gin.")]
    assert not strange, f"{name} does not know {strange}"
    if "gin_file" in known:
        load(name, known, [argument.removeprefix("--gin.") for argument in rest])
    else:
        assert not rest, f"{name} reads no recipe"


def load(name: str, known: argparse.Namespace, overrides: list[str]) -> None:
    # The recipe of a run that does not lie here is the one it was made from.
    files = [re.sub(r"^runs/.+/config\.gin$", "tiny.gin", file) for file in known.gin_file]
    if name == "stack":
        gin_files.load(StackRecipe, files, overrides)
    elif name == "ablate":
        from starcoder_jax.ablation.grid import make_grid

        make_grid(files, overrides, pathlib.Path())
    else:
        # A recipe for fine-tuning has the architecture of its checkpoint.
        fill = {"model": dataclasses.asdict(load_recipe(["tiny.gin"]).model)}
        gin_files.load(Recipe, files, overrides, lambda section, before: fill.get(section, {}))


def check_pip(arguments: list[str]) -> None:
    (table,) = (
        statement.value
        for statement in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "EXTRAS_REQUIRE"
    )
    extras = {key.value for key in table.keys}
    for argument in arguments:
        for wanted in re.findall(r"^(?:\.|starcoder_jax)\[([\w,]+)\]$", argument):
            assert set(wanted.split(",")) <= extras, f"setup.py has no extra {wanted}"
    for flag, value in itertools.pairwise(arguments):
        assert flag != "-c" or (ROOT / value).is_file(), value


@pytest.mark.parametrize("block", documented("bash"), ids=str)
def test_commands(block, check):
    assert check(block) > 0


@pytest.mark.parametrize(
    "text",
    [
        "python -m starcoder_jax.trian --gin_file=tiny.gin",
        "python -m starcoder_jax.train --gin_file=tinny.gin",
        "python -m starcoder_jax.train --gin_file=tiny.gin \\\n    --work_dir=runs/x",
        "python -m starcoder_jax.train --gin_file=tiny.gin --gin.train.steps=3",
        "python -m starcoder_jax.train --gin_file=tiny.gin --gin.train.seed=x",
        "python -m starcoder_jax.train",
        "python -m starcoder_jax.stack runn --gin_file=stack/local.gin --folder=x",
        "python -m starcoder_jax.stack run --gin_file=stack/local.gin --folder=x --gin.dedup.x=1",
        "python -m starcoder_jax.generate --checkpoint=x --prompt=y --max_token",
        "cd x && .venv/bin/python -m starcoder_jax.convert --source=x",
        "# a comment, and then\npip install '.[everything]'  # which is not there",
        "pip install -c absent.txt .",
        "pytest tests/absent",
        "launch/absent.sh run",
        "strange-program",
    ],
)
def test_a_wrong_command_is_found(text, check):
    (block,) = blocks(f"Text.\n\n```bash\n{text}\n```\n", "page.md")
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        check(block)


def check_python(text: str) -> int:
    """Imports and names of the package exist, and calls of it fit their signatures."""
    tree, names, calls = ast.parse(text), {}, 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("starcoder_jax"):
            module = importlib.import_module(node.module)
            names |= {
                alias.asname or alias.name: getattr(module, alias.name) for alias in node.names
            }
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("starcoder_jax"):
                    names[alias.asname] = importlib.import_module(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names:
            value = getattr(names[ast.unparse(node.value)], node.attr)
            names[ast.unparse(node)] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            function = names[ast.unparse(node.func)]
            inspect.signature(function).bind(*[None] * len(node.args), **keywords)
            calls += 1
    return calls


@pytest.mark.parametrize("block", documented("python"), ids=str)
def test_python_examples(block):
    """`sj.generate` may be hidden by the command's module, where another test has imported it."""
    calls = check_python(block.text)
    assert calls or "starcoder_jax" not in block.text


@pytest.mark.parametrize(
    "text",
    [
        "import starcoder_jax as sj\nsj.load('runs/tiny')",
        "import starcoder_jax as sj\nsj.load_model('runs/tiny', type='float32')",
        "from starcoder_jax.data.loader import Leader",
        "print(",
    ],
)
def test_a_wrong_example_is_found(text):
    with pytest.raises((AttributeError, TypeError, SyntaxError)):
        check_python(text)


def inline_code() -> list[tuple[str, str]]:
    """Page and text of what stands in single backticks."""
    found = []
    for path in PAGES:
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        page = str(path.relative_to(ROOT))
        found += [(page, text) for text in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose)]
    return found


def test_settings_in_the_text():
    fields = {
        f"{section.name}.{field.name}"
        for kind, _ in site_settings.KINDS.values()
        for section in dataclasses.fields(kind)
        for field in dataclasses.fields(section.type)
    }
    sections = {name.partition(".")[0] for name in fields}
    endings = ("py", "gin", "md", "html", "json", "jsonl", "sh", "env", "model")
    shown = [
        (page, name)
        for page, text in inline_code()
        for name in re.findall(r"(?<![\w./-])(?:--gin\.)?([a-z_]+\.[a-z_0-9]+)(?![\w./(-])", text)
        if name.split(".")[0] in sections and name.split(".")[1] not in endings
    ]
    assert len(shown) > 40
    assert [place for place in shown if place[1] not in fields] == []


def test_files_in_the_text():
    folders = ("starcoder_jax", "gin", "launch", "benchmarks", "tests", "docs")
    shown = [
        (page, text)
        for page, text in inline_code()
        if re.fullmatch(rf"(?:{'|'.join(folders)})/[\w./*-]+", text)
    ]
    assert len(shown) > 15
    assert [place for place in shown if not list(ROOT.glob(place[1]))] == []
