import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import pytest

from starcoder_jax import gin_files
from starcoder_jax.gin_files import packaged_recipes, recipe_text
from starcoder_jax.recipes import changed_fields, load_recipe

ROOT = pathlib.Path(__file__).parent.parent
SMALL = """
size = 256
model.vocab_size = %size
model.num_layers = 1
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.gin"
    path.write_text(SMALL)
    return str(path)


def error(*arguments) -> str:
    with pytest.raises(ValueError) as raised:
        load_recipe(*arguments)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_every_packaged_recipe_resolves(tmp_path):
    """Alone, or an overlay, in a folder, on top of another recipe; and so does its own text."""
    assert "tiny.gin" in packaged_recipes() and len(packaged_recipes()) > 20
    # What is in stack/ is of another kind, see tests/stack/test_pipeline.py.
    for name in (
        name for name in packaged_recipes() if not name.startswith(("stack/", "ablations/"))
    ):
        alone = os.sep not in name
        text = (ROOT / "gin" / name).read_text()
        required = re.findall(r"^([\w.]+) = %gin.REQUIRED", text, re.MULTILINE)
        assert required in (([],) if alone else ([], ["train.initial_checkpoint"])), name
        overrides = [f"{field}=somewhere" for field in required]
        recipe = load_recipe([name] if alone else ["tiny.gin", name], overrides)
        assert recipe.train.total_steps > 0 and recipe.data.rates
        if alone:
            assert recipe.train.sequence_length <= recipe.model.max_length
        (tmp_path / "config.gin").write_text(recipe_text(recipe))
        assert load_recipe([str(tmp_path / "config.gin")]) == recipe


def test_a_folder_of_the_same_name_is_in_no_ones_way(tmp_path, monkeypatch):
    """An include without "./" would be looked for in a Python package called model, too."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_recipe(["15b"]).model.num_layers == 40
    for path in (ROOT / "gin").glob("*.gin"):
        assert "include 'model/" not in path.read_text(), path
    (tmp_path / "mine.gin").write_text("include 'model/starcoder2_3b.gin'")
    assert "write './folder/file.gin'" in error(["mine.gin"])


def test_a_packaged_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(["tiny"]) == load_recipe(["tiny.gin"])
    assert load_recipe(["tiny.gin"]) == load_recipe([str(ROOT / "gin" / "tiny.gin")])


def test_a_path_goes_before_a_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.gin").write_text((ROOT / "gin" / "tiny.gin").read_text())
    with open(tmp_path / "tiny.gin", "a") as file:
        file.write("\nmodel.num_layers = 2\n")
    assert load_recipe(["tiny.gin"]).model.num_layers == 2
    assert load_recipe([str(tmp_path / "tiny.gin")]).model.num_layers == 2


def test_includes_are_found_and_nothing_is_printed(tmp_path, capfd):
    (tmp_path / "mine.gin").write_text("include 'tiny.gin'\nmodel.num_layers = 3\n")
    assert load_recipe([str(tmp_path / "mine.gin")]).model.num_layers == 3
    assert capfd.readouterr() == ("", "")


def test_files_and_overrides_apply_in_order(small, tmp_path):
    (tmp_path / "more.gin").write_text("model.num_layers = 4\nmodel.mlp_dim = 64\n")
    recipe = load_recipe(["tiny.gin", small, str(tmp_path / "more.gin")])
    assert (recipe.model.vocab_size, recipe.model.num_layers, recipe.model.mlp_dim) == (256, 4, 64)
    recipe = load_recipe(
        ["tiny.gin", str(tmp_path / "more.gin"), small], ["model.mlp_dim=8", "model.mlp_dim=16"]
    )
    assert (recipe.model.vocab_size, recipe.model.num_layers, recipe.model.mlp_dim) == (256, 1, 16)


@pytest.mark.parametrize(
    ("override", "section", "field", "expected"),
    [
        ("train.total_steps=7", "train", "total_steps", 7),
        ("optimizer.peak_learning_rate=1", "optimizer", "peak_learning_rate", 1.0),
        ("optimizer.b2=9e-1", "optimizer", "b2", 0.9),
        ("model.tied_head=False", "model", "tied_head", False),
        ("model.positions=alibi", "model", "positions", "alibi"),
        ("model.positions='alibi'", "model", "positions", "alibi"),
        ("data.directory=/some where/it's=x", "data", "directory", "/some where/it's=x"),
        ("data.directory=None", "data", "directory", None),
        ("data.sources={'python': 'folder:/x'}", "data", "sources", {"python": "folder:/x"}),
        ("data.extensions=['.py', '.c']", "data", "extensions", (".py", ".c")),
        ("model.mlp_dim=%size", "model", "mlp_dim", 256),
        ("size=128", "model", "vocab_size", 128),
    ],
)
def test_overrides(small, override, section, field, expected):
    before = getattr(getattr(load_recipe(["tiny.gin", small]), section), field)
    assert before != expected or override == "data.directory=None"
    overrides = ["data.directory=/elsewhere", override]
    value = getattr(getattr(load_recipe(["tiny.gin", small], overrides), section), field)
    assert value == expected and type(value) is type(expected)


def test_one_call_leaves_nothing_to_the_next(small):
    before = load_recipe(["tiny.gin"])
    load_recipe(["tiny.gin", small], ["train.seed=5"])
    error(["tiny.gin"], ["model.nothing=1"])
    assert load_recipe(["tiny.gin"]) == before


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("modle.num_layers = 3", [], "unknown section 'modle'.*did you mean 'model'.*optimizer"),
        ("model.num_layer = 3", [], "'model.num_layer'.*did you mean 'model.num_layers'"),
        ("", ["model.num_layer=3"], "'model.num_layer'.*did you mean 'model.num_layers'"),
        ("", ["train.peak_learning_rate=3"], "did you mean 'optimizer.peak_learning_rate'"),
        ("model.num_layers = 3.0", [], "model.num_layers is 3.0, a float; it must be int"),
        ("model.num_layers = True", [], "model.num_layers is True, a bool; it must be int"),
        ("model.dtype = 16", [], "model.dtype is 16, a int; it must be str"),
        ("model.sliding_window = 'x'", [], r"model.sliding_window is 'x'.* int \| None"),
        ("data.rates = {'python': '1'}", [], r"data.rates is .*Mapping\[str, float\]"),
        ("data.extensions = '.py'", [], r"data.extensions is '.py'.*tuple\[str, ...\]"),
        ("", ["optimizer.b1=high"], "optimizer.b1 is 'high', a str; it must be float"),
        ("", ["train.total_steps=0"], "train.total_steps is 0"),
        ("", ["train.hang_seconds=-1"], "train.hang_seconds is -1"),
        ("", ["train.profile_steps=(5, 3)"], r"steps is \(5, 3\); it must be \(first, last\)"),
        ("", ["train.profile_steps=[0, 3]"], r"train.profile_steps is \(0, 3\)"),
        ("", ["train.profile_steps=(3,)"], r"train.profile_steps is \(3,\)"),
        ("", ["train.profile_steps=3"], "train.profile_steps is 3, a int"),
        ("", ["model.positions=sideways"], "model.positions is 'sideways'.*learned, rope, alibi"),
        ("train.total_steps = %gin.REQUIRED", [], "train.total_steps;.*--gin.train.total_steps="),
        ("model.num_layers = %layers", [], "defines %layers, which model uses"),
        ("", ["model.num_layers=%layers"], "defines %layers, which model uses"),
        ("", ["layers=3"], "no recipe given defines 'layers'"),
        ("model.num_layers = = 3", [], r"line 1"),
        ("import no_such_module", [], "No module named 'no_such_module'"),
        ("include 'no_such.gin'", [], "no_such.gin"),
        ("model.num_layers = @nothing", [], "'@nothing'"),
        ("", ["model.num_layers"], "'model.num_layers' must have the form --gin.section.field="),
        ("", ["scope/model.num_layers=3"], "must have the form --gin.section.field="),
    ],
)
def test_mistakes_are_named(tmp_path, capfd, text, overrides, expected):
    (tmp_path / "mistake.gin").write_text(text)
    assert re.search(expected, error(["tiny.gin", str(tmp_path / "mistake.gin")], overrides))
    assert capfd.readouterr() == ("", "")


def test_missing_values_are_named(small):
    message = error([small], ["train.total_steps=3"])
    assert "train.batch_size, train.sequence_length" in message
    assert "--gin.train.batch_size=..." in message
    assert "total_steps" not in message


def test_an_unknown_recipe_names_the_nearest_and_those_there_are(tmp_path):
    message = error(["tinny.gin"])
    assert "no recipe 'tinny.gin' (did you mean 'tiny.gin'?)" in message
    assert all(name in message for name in packaged_recipes())
    assert "no recipe" in error([str(tmp_path)])


def test_text_reads_back_equal(tmp_path, small):
    overrides = [
        "data.directory=/some where/it's",
        'model.positions="learned"',
        "model.sliding_window=7",
        "optimizer.epsilon=1e-20",
        "data.extensions=['.py', '.c']",
        "data.rates={'python': 1}",
    ]
    recipe = load_recipe(["tiny.gin", small], overrides)
    text = recipe_text(recipe, header="first line\nsecond line")
    assert text.startswith("# first line\n# second line\n")
    (tmp_path / "config.gin").write_text(text)
    assert load_recipe([str(tmp_path / "config.gin")]) == recipe
    for section in dataclasses.fields(recipe):
        for field in dataclasses.fields(getattr(recipe, section.name)):
            assert f"\n{section.name}.{field.name} = " in text


def test_changed_fields():
    before = load_recipe(["tiny.gin"])
    free = [
        "mesh.fsdp=1",
        "mesh.tensor=-1",
        "evaluation.max_files=3",
        "data.directory=/x",
        "data.read_workers=2",
        "model.rematerialization=full",
        "model.attention_backend=reference",
        "train.log_every=3",
        "train.eval_every=3",
        "train.checkpoint_every=3",
        "train.keep_checkpoints=9",
        "train.micro_batches=2",
        "train.hang_seconds=0",
        "train.profile_steps=(3, 5)",
    ]
    after = load_recipe(["tiny.gin"], free)
    assert after != before and changed_fields(before, after) == []
    bound = ["train.seed=3", "model.num_layers=99", "data.rates={'python': 2.0}", "fim.rate=0.25"]
    assert changed_fields(before, load_recipe(["tiny.gin"], [*free, *bound])) == [
        "train.seed: 0 -> 3",
        f"model.num_layers: {before.model.num_layers} -> 99",
        "data.rates: {'python': 1.0} -> {'python': 2.0}",
        "fim.rate: 0.5 -> 0.25",
    ]


@dataclasses.dataclass(frozen=True)
class Oven:
    degrees: int = 180
    limits: tuple[int, float] = (0, 250.0)
    dishes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Kitchen:
    oven: Oven


def test_sections_of_another_kind_of_file_mean_nothing(tmp_path):
    """gin has heard of ovens by then, and would take the line for a recipe of a run as well."""
    (tmp_path / "kitchen.gin").write_text("oven.degrees = 200")
    assert gin_files.load(Kitchen, [str(tmp_path / "kitchen.gin")]) == Kitchen(Oven(200))
    assert "unknown section 'oven'" in error(["tiny.gin", str(tmp_path / "kitchen.gin")])


def test_values_of_fixed_and_any_length(tmp_path):
    path = tmp_path / "kitchen.gin"

    def oven(text: str) -> Oven:
        path.write_text(text)
        return gin_files.load(Kitchen, [str(path)]).oven

    assert oven("oven.limits = (1, 2.5)").limits == (1, 2.5)
    assert oven("oven.dishes = {'cake': ['egg']}").dishes == {"cake": ["egg"]}
    for wrong in ("limits = (1,)", "limits = (1, 2, 3)", "limits = (1.5, 2)", "limits = 1"):
        with pytest.raises(ValueError, match=r"it must be tuple\[int, float\]"):
            oven(f"oven.{wrong}")
    for wrong in ("{'cake': 'egg'}", "{'cake': [1]}", "['cake']"):
        with pytest.raises(ValueError, match=r"it must be Mapping\[str, Sequence\[str\]\]"):
            oven(f"oven.dishes = {wrong}")
