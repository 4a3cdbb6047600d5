"""The recipes of the family say what the published runs did."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from starcoder_jax.data.tokenizer import STARCODER2_SPECIAL_TOKENS
from starcoder_jax.gin_files import packaged_recipes
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from starcoder_jax.training.step import initial_state, make_train_step

GIN = pathlib.Path(__file__).parent.parent / "gin"
# Overlay under gin/model, steps, batch, length, peak, floor, warmup, weight decay.
RUNS = {
    "santacoder_1b": ("santacoder_1b", 600_000, 192, 2048, 2e-4, 0.0, 12_000, 0.1),
    "starcoderbase_1b": ("starcoderbase_1b", 1_000_000, 128, 8192, 4e-4, 4e-5, 2000, 0.1),
    "starcoderbase_3b": ("starcoderbase_3b", 500_000, 256, 8192, 5e-4, 5e-5, 2000, 0.1),
    "starcoderbase_7b": ("starcoderbase_7b", 250_000, 512, 8192, 3e-4, 3e-5, 2000, 0.1),
    "starcoderbase_15b": ("starcoderbase_15b", 250_000, 512, 8192, 3e-4, 3e-5, 2000, 0.1),
    "starcoder": ("starcoderbase_15b", 8500, 512, 8192, 5e-5, 5e-6, 500, 0.1),
    "octocoder": ("starcoderbase_15b", 200, 32, 2048, 1e-4, 0.0, 12, 0.05),
    "3b": ("starcoder2_3b", 1_200_000, 640, 4096, 3e-4, 3e-5, 1000, 0.1),
    "7b": ("starcoder2_7b", 1_000_000, 864, 4096, 3.2e-4, 3.2e-5, 1000, 0.1),
    "15b": ("starcoder2_15b", 1_000_000, 1024, 4096, 3e-4, 3e-5, 1000, 0.1),
    "3b_long": ("starcoder2_3b", 80_000, 160, 16384, 3e-5, 3e-6, 1000, 0.1),
    "7b_long": ("starcoder2_7b", 56_000, 216, 16384, 2e-5, 2e-6, 1000, 0.1),
    "15b_long": ("starcoder2_15b", 50_000, 256, 16384, 3e-5, 3e-6, 1000, 0.1),
    "bloom_176b": ("bloom_176b", 97_656, 2048, 2048, 6e-5, 6e-6, 910, 0.1),
}
# Tokens a step and in all, as model cards and papers round them.
TOKENS = {
    "santacoder_1b": (393_216, 236e9),
    "starcoderbase_1b": (1_048_576, 1.05e12),
    "starcoderbase_3b": (2_097_152, 1.05e12),
    "starcoderbase_7b": (4_194_304, 1.05e12),
    "starcoderbase_15b": (4_194_304, 1.05e12),
    "starcoder": (4_194_304, 35e9),
    "octocoder": (65_536, 13e6),
    "3b": (2.6e6, 3.1e12),
    "7b": (3.5e6, 3.5e12),
    "15b": (4.2e6, 4.2e12),
    "3b_long": (2.6e6, 0.2e12),
    "7b_long": (3.5e6, 0.2e12),
    "15b_long": (4.2e6, 0.2e12),
    "bloom_176b": (4.2e6, 410e9),
}
STAGE_BEFORE = {
    "starcoder": "starcoderbase_15b",
    "octocoder": "starcoder",
    "3b_long": "3b",
    "7b_long": "7b",
    "15b_long": "15b",
}


def test_every_recipe_of_the_family_is_here():
    alone = {name for name in packaged_recipes() if "/" not in name}
    assert alone == {"tiny.gin"} | {f"{name}.gin" for name in RUNS}
    overlays = {f"model/{run[0]}.gin" for run in RUNS.values()}
    assert overlays == {name for name in packaged_recipes() if name.startswith("model/")}


@pytest.mark.parametrize("name", RUNS)
def test_training_figures(name):
    model, steps, batch, length, peak, floor, warmup, decay = RUNS[name]
    recipe = load_recipe([name])
    train, optimizer = recipe.train, recipe.optimizer
    assert (train.total_steps, train.batch_size, train.sequence_length) == (steps, batch, length)
    b2 = 0.999 if name == "octocoder" else 0.95
    assert optimizer == OptimizerConfig(peak, floor, warmup, 0.9, b2, 1e-8, decay, 1.0)
    schedule = learning_rate(optimizer, steps)
    assert float(schedule(warmup - 1)) == pytest.approx(peak)
    assert float(schedule(steps)) == pytest.approx(floor, rel=1e-4, abs=1e-9)
    per_step, total = TOKENS[name]
    assert batch * length == pytest.approx(per_step, rel=0.02)
    assert steps * batch * length == pytest.approx(total, rel=0.06)
    assert train.initial_checkpoint == (
        f"runs/{STAGE_BEFORE[name]}" if name in STAGE_BEFORE else None
    )
    assert not train.isolate_documents
    assert recipe.loss.z_loss == 0

    published = load_recipe(["tiny.gin", f"model/{model}.gin"]).model
    changed = {
        field.name
        for field in dataclasses.fields(published)
        if getattr(recipe.model, field.name) != getattr(published, field.name)
    } - {"dtype", "rematerialization"}
    if recipe.model.positions != "rope":
        changed.discard("rope_theta")
    expected = set()
    if name in ("3b", "7b", "15b"):
        expected = {"max_length", "sliding_window", "rope_theta"}
        assert (recipe.model.max_length, recipe.model.sliding_window) == (4096, None)
        assert recipe.model.rope_theta == (1e4 if name == "15b" else 1e5)
    assert changed == expected
    assert recipe.model.dtype == "bfloat16"
    small = name in ("santacoder_1b", "starcoderbase_1b")
    assert recipe.model.rematerialization == ("dots" if small else "full")


@pytest.mark.parametrize("name", RUNS)
def test_vocabulary_and_fill_in_the_middle_fit(name):
    recipe = load_recipe([name])
    fim, tokenizer = recipe.fim, recipe.tokenizer
    names = (fim.prefix_token, fim.middle_token, fim.suffix_token, fim.pad_token)
    assert (fim.rate, fim.spm_rate) == (0.0 if name in ("octocoder", "bloom_176b") else 0.5, 0.5)
    if name == "santacoder_1b":
        assert names == ("<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>")
        # A vocabulary that is trained has other names for them: this one must be given.
        assert tokenizer.path == "gpt_bigcode-santacoder/tokenizer.json"
    else:
        assert set(names) <= set(STARCODER2_SPECIAL_TOKENS)
        assert tokenizer.path is None
    if name.removesuffix("_long") in ("3b", "7b", "15b"):
        assert (fim.split_token, fim.fragment_rate) == ("<file_sep>", 0.5)
        assert fim.skip_prefix == "<repo_name>"
        assert {fim.split_token, fim.skip_prefix} < set(STARCODER2_SPECIAL_TOKENS)
    else:
        assert (fim.split_token, fim.skip_prefix) == (None, None)
    if tokenizer.path is None and name not in STAGE_BEFORE:
        assert tokenizer.train_bytes == 1_000_000_000
        rows = recipe.model.vocab_size
        assert tokenizer.vocab_size == (250_680 if name == "bloom_176b" else rows)


@pytest.mark.parametrize("name", STAGE_BEFORE)
def test_a_stage_goes_on_from_a_model_it_can_take(name):
    """Only what has no parameters may differ: with learned positions, not even the length."""
    before, after = load_recipe([STAGE_BEFORE[name]]).model, load_recipe([name]).model
    rotary = {"rope_theta": 1.0, "sliding_window": None, "max_length": 1}
    free = rotary if before.positions == "rope" else {}
    assert dataclasses.replace(before, **free) == dataclasses.replace(after, **free)


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_opens_with_what_it_needs(name):
    header, _, values = (GIN / f"{name}.gin").read_text().partition("\ninclude ")
    lines = header.splitlines()
    assert all(line.startswith("#") for line in lines if line)
    for part in ("# For: ", "# Hardware: ", "# REQUIRED: ", "# Often changed: "):
        assert any(line.startswith(part) for line in lines), part
    assert all(len(line) <= 100 for line in [*lines, *values.splitlines()])


def test_a_small_bloom_learns():
    """Sizes aside, and the learning rate that goes with them, it is the recipe's model."""
    sizes = ["vocab_size=64", "num_layers=2", "embed_dim=24", "num_heads=6", "num_kv_heads=6",
             "mlp_dim=96"]  # fmt: skip
    # Compiled unoptimized, as tests are, CPUs lack some bfloat16 products.
    overrides = ["model.dtype=float32", *(f"model.{size}" for size in sizes)]
    recipe = load_recipe(["bloom_176b"], overrides)
    config = recipe.model
    assert config.positions == "alibi" and config.embedding_norm
    optimizer = dataclasses.replace(
        recipe.optimizer, peak_learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2
    )
    optimizer = make_optimizer(optimizer, 30)
    step = jax.jit(make_train_step(config, optimizer, recipe.loss, seed=recipe.train.seed))
    state = jax.jit(lambda: initial_state(config, optimizer, recipe.train.seed))()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (4, 33)).astype(np.int32)
    weights = np.ones((4, 32), np.float32)
    losses = []
    for _ in range(30):
        state, metrics = step(state, tokens, weights)
        losses.append(float(metrics["loss"]))
    assert int(state.first_bad_step) == -1
    assert losses[0] < 1.5 * np.log(config.vocab_size)
    assert losses[-1] < 0.5 * losses[0]
