"""The reference of the recipes in gin/, out of the files."""

import itertools
import pathlib
import re

import gin.config_parser
from site_markdown import code, plain, table

RECIPES = pathlib.Path(__file__).resolve().parent.parent / "gin"

# Where a recipe lies, and what those are that lie there.
FOLDERS = {
    ".": ("Recipes", "Each trains a model, and is all that `--gin_file` needs."),
    "finetune": ("Fine-tuning", "For a checkpoint that `train.initial_checkpoint` names."),
    "model": ("Architectures", "Included by the recipes."),
    "hardware": ("Machines", "Overlays: give one after a recipe, by another `--gin_file`."),
    "data": ("Data", "Overlays: give one after a recipe, by another `--gin_file`."),
    "stack": ("Curation", "For `python -m starcoder_jax.stack`."),
    "ablations": ("Ablations", "For `python -m starcoder_jax.ablate`."),
}


class _Name(str):
    """A macro or reference, which stays as it is written."""

    __slots__ = ()
    __repr__ = str.__str__


class _Names(gin.config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> str:
        return _Name(f"@{scoped_configurable_name}")

    def macro(self, macro_name: str) -> str:
        return _Name(f"%{macro_name}")


def page() -> str:
    """Markdown: all recipes by folder, each with its header and the values that it sets.

    Raises:
        ValueError: a folder has no entry in FOLDERS.
    """
    parts = []
    by_folder = itertools.groupby(recipes(), lambda path: str(path.relative_to(RECIPES).parent))
    files = {folder: list(paths) for folder, paths in by_folder}
    if unknown := files.keys() - FOLDERS.keys():
        raise ValueError(f"gin/{min(unknown)}: say in {__file__} what its recipes are")
    for folder, (title, text) in FOLDERS.items():
        if folder in files:
            parts += [f"## {title}", text, *map(_recipe, files[folder])]
    return "\n\n".join(parts)


def recipes() -> list[pathlib.Path]:
    """All files, those of a folder together."""
    return sorted(RECIPES.rglob("*.gin"), key=lambda path: (path.parent, path.name))


def header(text: str) -> str:
    """The comment at the top of a recipe."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def values(text: str) -> dict[str, str]:
    """What a recipe sets by itself, macros as they are written."""
    parser = gin.config_parser.ConfigParser(text, _Names())
    return {
        ".".join(filter(None, (statement.selector, statement.arg_name))): repr(statement.value)
        for statement in parser
        if isinstance(statement, gin.config_parser.BindingStatement)
    }


def _recipe(path: pathlib.Path) -> str:
    text = path.read_text("utf-8")
    about, _, facts = header(text).partition("\n\n")
    includes = re.findall(r"^include '(?:\./)?(.+)'$", text, re.M)
    parts = [
        f"### {path.relative_to(RECIPES)}",
        plain(about),
        f"```text\n{facts}\n```" if facts else "",
        f"All of {', '.join(map(code, includes))}, and:" if includes else "",
        table(("field", "value"), [(code(k), code(v)) for k, v in values(text).items()]),
    ]
    return "\n\n".join(filter(None, parts))
