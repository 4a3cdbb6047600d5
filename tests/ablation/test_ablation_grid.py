import pathlib
import re

import pytest

from starcoder_jax.ablation.grid import make_grid
from starcoder_jax.gin_files import packaged_recipes
from starcoder_jax.model.flops import training_flops
from starcoder_jax.recipes import load_recipe

WORKDIR = pathlib.Path("here")
ARMS = {"first": (), "wide": ("model.mlp_dim=2048",), "fim": ("fim.rate=0.9",)}


@pytest.fixture
def grid(tmp_path):
    """Reads an ablation of the tiny recipe whose section has these values."""

    def make(*overrides: str, **fields):
        path = tmp_path / "ablation.gin"
        fields = {"base": ("tiny.gin",), "arms": ARMS, "seeds": (0, 1)} | fields
        path.write_text("".join(f"ablation.{name} = {value!r}\n" for name, value in fields.items()))
        return make_grid([str(path)], overrides, WORKDIR)

    return make


def test_all_arms_of_a_seed_come_before_the_next_seed(grid):
    found = grid()
    assert [(run.seed, run.arm) for run in found.runs] == [
        (seed, arm) for seed in (0, 1) for arm in ARMS
    ]
    assert found.first_arm == "first"
    for run in found.runs:
        assert run.recipe.train.seed == run.seed
        assert run.recipe.model.mlp_dim == (2048 if run.arm == "wide" else 1024)
        assert run.recipe.fim.rate == (0.9 if run.arm == "fim" else 0.5)
    assert len({run.name for run in found.runs}) == 6
    assert found.caveats() == []


def test_the_arguments_of_a_run_give_its_recipe(grid):
    found = grid("vocabulary=512", overrides=("model.num_layers=1", "train.total_steps=200"))
    assert found.runs[1].recipe.model.vocab_size == 512
    assert found.runs[1].steps == 200
    for run in found.runs:
        files = [a.removeprefix("--gin_file=") for a in run.arguments if "--gin_file" in a]
        changes = [a.removeprefix("--gin.") for a in run.arguments if a.startswith("--gin.")]
        assert load_recipe(files, changes) == run.recipe
        assert len(files) + len(changes) == len(run.arguments)


def test_what_arms_change_comes_last(grid):
    found = grid("fim.rate=0.25", overrides=("fim.rate=0.125",))
    assert [run.recipe.fim.rate for run in found.runs[:3]] == [0.25, 0.25, 0.9]


def test_equal_tokens(grid):
    arms = {"first": (), "long": ("train.sequence_length=256", "train.batch_size=16")}
    found = grid(arms=arms | {"half": ("train.batch_size=2",)}, seeds=(0,))
    assert [run.steps for run in found.runs] == [1200, 600, 2400]
    assert {run.tokens for run in found.runs} == {1200 * 4 * 512}
    assert any("sequence lengths" in caveat for caveat in found.caveats())


def test_equal_flops(grid):
    found = grid(equal=("flops",), seeds=(3,))
    first, wide, fim = found.runs
    assert first.steps == fim.steps == 1200 and 600 < wide.steps < 1200
    step = training_flops(wide.recipe.model, 4, 512)
    assert wide.flops == wide.steps * step
    assert abs(wide.flops - first.flops) <= step / 2


def test_what_two_budgets_need_is_run_once(grid):
    found = grid(equal=("tokens", "flops"), seeds=(0,))
    assert [run.arm for run in found.runs] == ["first", "wide", "fim", "wide"]
    assert found.run("tokens", "fim", 0) is found.run("flops", "fim", 0) is found.runs[2]
    assert found.run("tokens", "wide", 0) is found.runs[1]
    assert found.run("flops", "wide", 0) is found.runs[3]


def test_arms_with_the_same_data_share_a_token_store(grid):
    arms = {
        "first": (),
        "rate": ("fim.rate=0.9", "data.read_workers=1"),
        "small": ("data.max_source_bytes=1000",),
        "words": ("tokenizer.train_bytes=1000",),
    }
    found = grid(arms=arms, seeds=(0, 1))
    stores = [run.recipe.data.directory for run in found.runs]
    assert stores[:4] == stores[4:]
    assert stores[0] == stores[1] and len(set(stores)) == 3
    assert all(pathlib.Path(store).parent == WORKDIR / "data" for store in stores)
    caveats = " ".join(found.caveats())
    assert "different vocabularies" in caveats and "different texts" in caveats
    given = grid("data.directory=/given")
    assert {run.recipe.data.directory for run in given.runs} == {"/given"}


@pytest.mark.parametrize(
    ("fields", "overrides", "message"),
    [
        ({"arms": {"a": ()}}, [], "at least two"),
        ({"arms": {"a": (), "b/c": ()}}, [], "the name 'b/c' must be letters"),
        ({"arms": {"a": (), "b": ()}}, [], "arms 'a' and 'b' are the same"),
        ({"arms": {"a": (), "b": "fim.rate=0.1"}}, [], "ablation.arms is"),
        (
            {"arms": {"a": (), "b": ("model.num_kv_head=1",)}},
            [],
            "arm 'b': unknown parameter 'model.num_kv_head' .did you mean 'model.num_kv_heads'",
        ),
        ({"arms": {"a": (), "b": ("modle.mlp_dim=1",)}}, [], "arm 'b'.*did you mean 'model'"),
        ({"arms": {"a": (), "b": ("fim.rate=2",)}}, [], "arm 'b'.*from 0 to 1"),
        ({"arms": {"a": (), "b": ("train.seed=2",)}}, [], "train.seed, which ablation.seeds"),
        ({"arms": {"a": (), "b": ("train.total_steps=2",)}}, [], "which ablation.equal decides"),
        ({"arms": {"a": (), "b": ("data.directory=x",)}}, [], "arm 'b' sets data.directory"),
        ({"arms": {"a": (), "b": ("evaluation.max_files=2",)}}, [], "must be measured alike"),
        ({"arms": {"a": (), "b": ("data.heldout_fraction=0.5",)}}, [], "must be measured alike"),
        ({"arms": {"a": (), "b": ("dedup.threshold=0.5",)}}, [], "unknown section 'dedup'"),
        ({"overrides": ("train.seed=1",)}, [], "train.seed is decided by ablation.seeds"),
        ({}, ["train.seed=1"], "train.seed is decided by ablation.seeds"),
        ({}, ["model.num_layer=1"], "arm 'first': .*did you mean 'model.num_layers'"),
        ({}, ["data.heldout_fraction=0"], "holds nothing out"),
        ({}, ["train.total_steps=50"], "arm 'first' at equal tokens: .*warmup_steps=100 is longer"),
        ({}, ["ablation.seed=(1,)"], "'ablation.seed' .did you mean 'ablation.seeds'"),
        ({}, ["ablation.seeds=(1, 1)"], "name at least one, and none twice"),
        ({"equal": ("steps",)}, [], "one or both of tokens, flops"),
        ({"confidence": 95}, [], "confidence is 95"),
        ({"give_up": 0}, [], "give_up is 0"),
        ({"base": ("tinny.gin",)}, [], "did you mean 'tiny.gin'"),
        ({"base": ()}, [], "ablation.base is empty"),
        ({"evaluations": {"x": {"task": "humanevel"}}}, [], "x: task .*did you mean 'humaneval'"),
        (
            {"evaluations": {"x": {"task": "fim", "limits": 3}}},
            [],
            "'limits' .did you mean 'limit'",
        ),
        ({"evaluations": {"x": {"task": "fim", "limit": 0}}}, [], "--limit=0 must be at least 1"),
        ({"evaluations": {"x": {"task": "fim", "limit": "3"}}}, [], "evaluations, x: "),
        ({"evaluations": {"x": {"task": "fim", "limit": None}}}, [], "limit=None has no effect"),
        ({"evaluations": {"x": {"task": "fim", "window": 3}}}, [], "--window has no effect here"),
        ({"evaluations": {"x": {"task": "humaneval"}}}, [], "needs data"),
        ({"evaluations": {"x": {"task": "fim", "data": "absent"}}}, [], "there is no absent"),
        ({"evaluations": {"x": {"task": "fim", "output": "y"}}}, [], "unknown setting 'output'"),
        (
            {"evaluations": {"x": {"task": "decoding", "tokens": 3}}},
            [],
            "did you mean 'new_tokens'",
        ),
        ({"evaluations": {"x": {"task": "decoding", "new_tokens": 0}}}, [], "whole number"),
    ],
)
def test_mistakes_are_found_before_anything_runs(grid, fields, overrides, message):
    with pytest.raises(ValueError) as raised:
        grid(*overrides, **fields)
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


CURATION = {
    "curation": ("stack/santacoder.gin",),
    "arms": {"all": ("dedup.threshold=None",), "near": (), "fim": ("fim.rate=0.9",)},
}


def test_arms_with_the_same_curation_share_a_corpus(grid):
    found = grid("collect.sources=('folder:demo',)", "vocabulary=512", **CURATION)
    every, near, fim = found.runs[:3]
    assert near.corpus == fim.corpus != every.corpus
    for run in found.runs:
        folder = run.corpus.folder
        assert run.recipe.data.sources == {"stack": f"stack:{folder / 'published'}"}
        assert run.corpus.arguments[0] == "--gin_file=stack/santacoder.gin"
        assert run.corpus.arguments[-1] == f"--folder={folder}"
        assert "--gin.collect.sources=('folder:demo',)" in run.corpus.arguments
        assert run.recipe.model.vocab_size == 512 and not any("dedup" in a for a in run.arguments)
    assert every.recipe.data.directory != near.recipe.data.directory == fim.recipe.data.directory
    assert any("of what all holds out" in caveat for caveat in found.caveats())
    # How it is run is no other corpus.
    other = grid("collect.sources=('folder:demo',)", "runner.workers=1", **CURATION)
    assert other.runs[0].corpus.folder == every.corpus.folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.sources={'a': 'folder:b'}"],
            "data.sources is decided by ablation.curation: leave it out",
        ),
        (["dedup.treshold=0.5"], "arm 'all': .*did you mean 'dedup.threshold'"),
        (["format.style='starcoder2'"], "arm 'all': an ablation of the curation needs"),
        (["format.metadata_rate=0.2"], "documents that are held out must be the same in all arms"),
        ([], "leaves open what it must say: collect.sources"),
    ],
)
def test_mistakes_of_a_curation_are_found_before_it_runs(grid, overrides, message):
    sources = ["collect.sources=('folder:demo',)"] if overrides else []
    with pytest.raises(ValueError, match=message):
        grid(*sources, *overrides, **CURATION)


def test_an_override_that_every_arm_replaces_is_refused(grid):
    arms = {"none": ("fim.rate=0.0",), "half": ("fim.rate=0.5",)}
    assert len(grid("fim.spm_rate=0.1", arms=arms).runs) == 4
    with pytest.raises(ValueError, match=r"--gin.fim.rate has no effect, since every arm sets it"):
        grid("fim.rate=0.1", arms=arms)


def test_arms_of_different_data_cannot_share_a_given_place(grid):
    arms = {"first": (), "small": ("data.max_source_bytes=1000",)}
    with pytest.raises(ValueError, match=r"'first' and 'small' have different data, but data.dir"):
        grid("data.directory=/given", arms=arms)


def test_every_packaged_ablation_resolves():
    names = [name for name in packaged_recipes() if name.startswith("ablations/")]
    assert len(names) > 8
    for name in names:
        found = make_grid([name], [], WORKDIR)
        assert len(found.config.seeds) > 2, name
        for equal in found.config.equal:
            costs = [getattr(found.run(equal, arm, 0), equal) for arm in found.config.arms]
            assert max(costs) / min(costs) < 1.01, name


def test_what_the_packaged_ablations_are_about():
    fim = make_grid(["ablations/fim.gin"], [], WORKDIR)
    assert [run.recipe.fim.rate for run in fim.runs[:3]] == [0.0, 0.5, 0.9]
    attention = make_grid(["ablations/attention.gin"], [], WORKDIR)
    assert [run.recipe.model.num_kv_heads for run in attention.runs[:3]] == [8, 2, 1]
    assert attention.runs[0].recipe.model.num_heads == 8
    for found in (fim, attention):
        assert found.caveats() == [] and found.config.evaluations
