"""The runs that an ablation asks for, checked before any of them starts."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starcoder_jax import gin_files
from starcoder_jax.ablation.config import AblationConfig, AblationRecipe
from starcoder_jax.command import of_extra
from starcoder_jax.model.flops import training_flops
from starcoder_jax.recipes import Recipe, load_recipe
from starcoder_jax.training.optimizer import learning_rate

if TYPE_CHECKING:
    from starcoder_jax.ablation.corpora import Corpus

_SECTION = "ablation."
_SEED, _STEPS, _STORE = "train.seed", "train.total_steps", "data.directory"
_SOURCES, _HELD_OUT = "data.sources", "data.heldout_fraction"
# Which texts a token store holds, and which of them are held out.
_TEXTS = ("sources", "extensions", "max_source_bytes", "heldout_fraction")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of one arm.

    Attributes:
        arm: name of the arm.
        recipe: all of it.
        arguments: those of `train`, but for the working directory.
        corpus: that is curated for it; None if its texts are there.
    """

    arm: str
    recipe: Recipe
    arguments: tuple[str, ...]
    corpus: "Corpus | None"

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.recipe.train.seed

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.recipe.train.total_steps

    @property
    def name(self) -> str:
        """Also of its folder."""
        return f"{self.arm}-{self.steps}-steps-seed-{self.seed}"

    @property
    def tokens(self) -> int:
        """That the run trains on."""
        return self.steps * _step_tokens(self.recipe)

    @property
    def flops(self) -> int:
        """Of the model, by the rule of `model.flops`."""
        return self.steps * _step_flops(self.recipe)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The runs of an ablation.

    Attributes:
        config: what was asked for.
        runs: each once, in the order in which they are done: seed by seed, all arms of each.
        steps: of each arm by what is held equal, `steps["flops"]["mqa"]`.
    """

    config: AblationConfig
    runs: tuple[Run, ...]
    steps: Mapping[str, Mapping[str, int]]

    def run(self, equal: str, arm: str, seed: int) -> Run:
        """The run of an arm where `equal` is what is held equal."""
        wanted = arm, self.steps[equal][arm], seed
        return next(run for run in self.runs if (run.arm, run.steps, run.seed) == wanted)

    @property
    def first_arm(self) -> str:
        """The arm that the others are compared with."""
        return self.first_run.arm

    @property
    def first_run(self) -> Run:
        """Of the first arm; what its token store holds out, evaluations measure all arms on."""
        return self.runs[0]

    def caveats(self) -> list[str]:
        """What a reader of a comparison must know of the arms."""
        equal, seed = self.config.equal[0], self.config.seeds[0]
        recipes = [self.run(equal, arm, seed).recipe for arm in self.config.arms]
        found = []
        if _differ([recipe.tokenizer for recipe in recipes]):
            found.append(
                "The arms have different vocabularies: compare bits per byte, not losses, which "
                "are per token."
            )
        if _differ([_texts(recipe) for recipe in recipes]):
            found.append(
                "The arms read different texts, and eval/... is measured on what each holds out: "
                f"compare an evaluation, which is of what {self.first_arm} holds out."
            )
        if _differ([recipe.train.sequence_length for recipe in recipes]):
            found.append(
                "The arms have different sequence lengths, and held-out texts are scored in "
                "windows of that length: longer ones see more of what came before."
            )
        return found


def make_grid(files: Sequence[str], overrides: Sequence[str], workdir: pathlib.Path) -> Grid:
    """Reads an ablation and the recipes of all its runs.

    Args:
        files: gin files of the section `ablation`.
        overrides: "ablation.field=value"; any other is of all arms, after `ablation.overrides` and
            before what an arm changes.
        workdir: of the ablation: corpora go there, and token stores that no recipe places, one for
            all arms whose data are the same.

    Raises:
        ValueError: something is wrong with the ablation or with the recipe of an arm; one line.
    """
    own = [override for override in overrides if override.startswith(_SECTION)]
    shared = [override for override in overrides if not override.startswith(_SECTION)]
    config = gin_files.load(AblationRecipe, files, own).ablation
    _check_overrides(config, shared)
    changes, corpora = _changes(config, shared, workdir)
    recipes = {arm: _load(arm, config.base, changes[arm]) for arm in config.arms}
    stores = _stores(recipes, workdir)
    _check_recipes(recipes)
    steps = {equal: _equal_steps(recipes, equal) for equal in config.equal}
    runs: dict[str, Run] = {}
    for seed in config.seeds:
        for equal in config.equal:
            for arm in config.arms:
                decided = [f"{_SEED}={seed}", f"{_STEPS}={steps[equal][arm]}"]
                all_changes = [*changes[arm], *decided, f"{_STORE}={stores[arm]}"]
                recipe = _load(arm, config.base, all_changes)
                arguments = _arguments(config.base, all_changes)
                run = Run(arm, recipe, arguments, corpora.get(arm))
                try:
                    learning_rate(recipe.optimizer, run.steps)
                except ValueError as error:
                    raise ValueError(f"arm {arm!r} at equal {equal}: {error}") from error
                runs[run.name] = run
    return Grid(config, tuple(runs.values()), steps)


def _changes(
    config: AblationConfig, shared: Sequence[str], workdir: pathlib.Path
) -> tuple[dict[str, list[str]], dict[str, "Corpus"]]:
    """All changes of each arm's recipe, and the corpus that it trains on."""
    changes = {arm: [*config.overrides, *shared, *own] for arm, own in config.arms.items()}
    if not config.curation:
        return changes, {}
    with of_extra("stack"):
        from starcoder_jax.ablation.corpora import make_corpus, separate

    corpora = {}
    for arm, mixed in changes.items():
        training, curation = separate(mixed)
        if _SOURCES in map(_field, training):
            raise ValueError(f"{_SOURCES} is decided by ablation.curation: leave it out")
        try:
            corpora[arm] = make_corpus(config.curation, curation, workdir)
        except ValueError as error:
            raise ValueError(f"arm {arm!r}: {error}") from error
        changes[arm] = [*corpora[arm].training, *training]
    return changes, corpora


def _load(arm: str, base: Sequence[str], overrides: Sequence[str]) -> Recipe:
    try:
        return load_recipe(base, overrides)
    except ValueError as error:
        raise ValueError(f"arm {arm!r}: {error}") from error


def _arguments(base: Sequence[str], overrides: Sequence[str]) -> tuple[str, ...]:
    return (
        *(f"--gin_file={file}" for file in base),
        *(f"--gin.{override}" for override in overrides),
    )


def _check_overrides(config: AblationConfig, shared: Sequence[str]) -> None:
    for arm, changes in config.arms.items():
        for name in map(_field, changes):
            if name in (_SEED, _STEPS, _STORE):
                instead = {_SEED: "ablation.seeds", _STEPS: "ablation.equal"}.get(name, "its place")
                raise ValueError(f"arm {arm!r} sets {name}, which {instead} decides: leave it out")
            if name.startswith("evaluation.") or name == _HELD_OUT:
                raise ValueError(f"arm {arm!r} sets {name}: all arms must be measured alike")
    for name in map(_field, [*config.overrides, *shared]):
        if name == _SEED:
            raise ValueError(f"{_SEED} is decided by ablation.seeds: set that")
    for name in map(_field, shared):
        if all(name in map(_field, changes) for changes in config.arms.values()):
            raise ValueError(f"--gin.{name} has no effect, since every arm sets it: leave it out")


def _field(override: str) -> str:
    return override.partition("=")[0]


def _check_recipes(recipes: Mapping[str, Recipe]) -> None:
    seen: list[tuple[str, Recipe]] = []
    for arm, recipe in recipes.items():
        if recipe.data.heldout_fraction == 0:
            raise ValueError(
                f"arm {arm!r} holds nothing out to compare by: set data.heldout_fraction above 0"
            )
        for other, its in seen:
            if its == recipe:
                raise ValueError(f"arms {other!r} and {arm!r} are the same: remove one")
        seen.append((arm, recipe))


def _equal_steps(recipes: Mapping[str, Recipe], equal: str) -> dict[str, int]:
    cost = {"tokens": _step_tokens, "flops": _step_flops}[equal]
    first = next(iter(recipes.values()))
    budget = first.train.total_steps * cost(first)
    return {arm: max(round(budget / cost(recipe)), 1) for arm, recipe in recipes.items()}


def _step_tokens(recipe: Recipe) -> int:
    return recipe.train.batch_size * recipe.train.sequence_length


def _step_flops(recipe: Recipe) -> int:
    settings = recipe.train
    return training_flops(recipe.model, settings.batch_size, settings.sequence_length)


def _stores(recipes: Mapping[str, Recipe], workdir: pathlib.Path) -> dict[str, str]:
    """The token store of each arm; arms have the same if what shapes it is the same."""
    stores: dict[str, str] = {}
    owners: dict[str, tuple[str, str]] = {}
    for arm, recipe in recipes.items():
        tokenizer = dataclasses.asdict(recipe.tokenizer)
        if recipe.tokenizer.path is not None:
            tokenizer = recipe.tokenizer.path
        elif recipe.train.initial_checkpoint is not None:
            tokenizer = ["of", recipe.train.initial_checkpoint]
        shape = json.dumps([_texts(recipe), tokenizer], sort_keys=True)
        digest = hashlib.sha256(shape.encode()).hexdigest()[:12]
        store = recipe.data.directory or str(workdir / "data" / digest)
        other, others_shape = owners.setdefault(store, (arm, shape))
        if shape != others_shape:
            raise ValueError(
                f"arms {other!r} and {arm!r} have different data, but data.directory={store} for "
                "both: leave it out"
            )
        stores[arm] = store
    return stores


def _texts(recipe: Recipe) -> dict[str, object]:
    data = dataclasses.asdict(recipe.data)
    return {name: data[name] for name in _TEXTS}


def _differ(values: Sequence[object]) -> bool:
    return any(value != values[0] for value in values)
