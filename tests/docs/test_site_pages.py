import argparse
import dataclasses

import pytest
import site_commands
import site_recipes
import site_settings
from site_markdown import code, plain, table


@dataclasses.dataclass(frozen=True)
class Commented:
    """Told beside the fields."""

    size: int  # of the thing; it must be even
    name: str = "a"
    words: tuple[str, ...] = (
        "one",
        "two",
    )  # several


@dataclasses.dataclass(frozen=True)
class Described:
    """Told above.

    Attributes:
        rate: How often,
            with `x: y` in it.
        limit, bound: None: no limit.

    Raises:
        ValueError: Never.
    """

    rate: float = 0.5
    limit: int | None = None
    bound: int | None = None


def test_texts_of_fields():
    texts = {"size": "of the thing; it must be even", "name": "", "words": "several"}
    assert site_settings.field_texts(Commented) == texts
    texts = {"rate": "How often, with `x: y` in it."}
    texts |= {"limit": "None: no limit.", "bound": "None: no limit."}
    assert site_settings.field_texts(Described) == texts


def test_every_documented_attribute_is_a_field():
    seen = 0
    for kind, _ in site_settings.KINDS.values():
        for section in dataclasses.fields(kind):
            names = {field.name for field in dataclasses.fields(section.type)}
            texts = site_settings.field_texts(section.type)
            assert texts.keys() == names, section.name
            seen += sum(map(bool, texts.values()))
    assert seen > 100


def test_settings_page():
    page = site_settings.page()
    assert "| `train.total_steps` | `int` | required |" in page
    assert "| `mesh.fsdp` | `int` | `-1` |" in page
    assert "| `data.directory` | `str \\| None` | `None` |" in page


RECIPE = """# Trains something.
#
# For: a test.
#   And more.

include './model/x.gin'

size = 3
# Not of the header.
model.num_layers = %size  # the macro
data.sources = {"a": "folder:b"}
"""


def test_a_recipe():
    assert site_recipes.header(RECIPE) == "Trains something.\n\nFor: a test.\n  And more."
    values = {"size": "3", "model.num_layers": "%size", "data.sources": "{'a': 'folder:b'}"}
    assert site_recipes.values(RECIPE) == values


def test_every_recipe_has_a_header_and_values():
    paths = site_recipes.recipes()
    assert len(paths) > 30
    page = site_recipes.page()
    for path in paths:
        text = path.read_text()
        assert len(site_recipes.header(text)) > 40, path
        assert site_recipes.values(text) or "include" in text, path
        assert f"### {path.relative_to(site_recipes.RECIPES)}\n" in page


def test_a_folder_of_recipes_that_nobody_named_is_found(monkeypatch):
    monkeypatch.delitem(site_recipes.FOLDERS, "hardware")
    with pytest.raises(ValueError, match="gin/hardware: say in"):
        site_recipes.page()


def test_commands_page():
    page = site_commands.page()
    assert set(site_commands.commands()) > {"train", "plan", "evaluate", "serve", "stack"}
    assert "| `--gin_file=FILE` | a recipe: a path" in page
    assert "### stack lookup" in page
    assert "| `--port=PORT` | 0: any that is free; default: `8000` |" in page
    assert "| `--search[=COMPILES]` |" in page
    assert "| `--format=hf\\|orbax` | to write: Hugging Face or Orbax; required |" in page


def test_a_parser_is_that_of_the_command():
    parser = site_commands.command_parser("convert")
    assert isinstance(parser, argparse.ArgumentParser)
    flags = parser.parse_args(["--source=a", "--target=b", "--format=hf"])
    assert (flags.source, flags.format) == ("a", "hf")


def test_text_from_elsewhere_means_nothing():
    assert plain("a <b> *c*\n  d_e [f] | `g|h *`") == r"a \<b> \*c\* d\_e \[f] \| `g\|h *`"
    assert plain("one ` alone") == r"one \` alone"
    assert code("x" * 200) == f"`{'x' * 117}...`"
    assert table(("a", "b"), []) == ""
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"
