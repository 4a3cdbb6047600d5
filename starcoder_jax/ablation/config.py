"""What an ablation's gin file says."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence

from starcoder_jax.evals.requests import READING, Request
from starcoder_jax.evals.tasks import TASKS

# Measures speed and memory of decoding, beside the tasks of `starcoder_jax.evaluate`.
DECODING = "decoding"

EQUAL = ("tokens", "flops")

# Tasks whose texts may be what the run's own token store holds out.
_OF_HELD_OUT = ("fim", *READING)
_DECODING_SETTINGS = ("sequences", "prompt_tokens", "new_tokens")
# Flags of `evaluate` that say what is scored and where the result goes: that is decided here.
_DECIDED = ("task", "output", "checkpoint", "samples", "solutions", "generate_only")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """The arms of an ablation and how they are compared.

    Attributes:
        base: Recipes of `train` that every run starts from, read in order.
        arms: Name of each arm to what it changes, "section.field=value". The others are compared
            with the first.
        overrides: What is changed for all arms alike.
        seeds: Values of `train.seed`. Arms are compared seed by seed: the same initialization and
            data order, wherever the arms leave them alike.
        equal: "tokens": all arms train on as many tokens as the first, `train.total_steps` of it;
            "flops": on as many floating-point operations, by the rule of `model.flops`. For both,
            what both need is run once.
        curation: Recipes of `stack`. Where there are any, arms train on what they curate, and
            `overrides` and `arms` may change the curation as well, "dedup.threshold=0.85".
        evaluations: Name of an evaluation of final checkpoints to its settings: `task` and flags of
            `starcoder_jax.evaluate`, where without `data` the tasks fim, perplexity and
            fim-perplexity take, for all arms, what the first arm's token store holds out; or the
            task decoding, with `sequences` at once (8), `prompt_tokens` (128) and `new_tokens`
            (128) each.
        confidence: Of the intervals.
        give_up: An arm whose held-out bits per byte exceed the first arm's of the same seed by
            this share, or that diverges, gets no further seed. None: all are run.

    Raises:
        ValueError: A value makes no sense, or a name is unknown.
    """

    base: Sequence[str]
    arms: Mapping[str, Sequence[str]]
    overrides: Sequence[str] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    equal: tuple[str, ...] = ("tokens",)
    curation: Sequence[str] = ()
    evaluations: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    confidence: float = 0.95
    give_up: float | None = None

    def __post_init__(self):
        if not self.base:
            raise ValueError("ablation.base is empty: name a recipe, such as ('tiny.gin',)")
        if len(self.arms) < 2:
            raise ValueError(
                "ablation.arms must name at least two: a first one, and one to compare"
            )
        for kind, names in (("arms", self.arms), ("evaluations", self.evaluations)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"ablation.{kind}: the name {name!r} must be letters, digits, '.', '_' and "
                        "'-', and start with a letter or digit: it is also a folder's"
                    )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"ablation.seeds is {self.seeds}: name at least one, and none twice")
        if not self.equal or len(set(self.equal)) < len(self.equal) or set(self.equal) - {*EQUAL}:
            raise ValueError(
                f"ablation.equal is {self.equal}: it must be one or both of {', '.join(EQUAL)}"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"ablation.confidence is {self.confidence}: it must be above 0, below 1"
            )
        if self.give_up is not None and self.give_up <= 0:
            raise ValueError(f"ablation.give_up is {self.give_up}: it must be above 0, or None")
        for name, settings in self.evaluations.items():
            try:
                _check_evaluation(settings)
            except (TypeError, ValueError) as error:
                raise ValueError(f"ablation.evaluations, {name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class AblationRecipe:
    """An ablation's gin file; the field name is its section."""

    ablation: AblationConfig


def evaluation_flags(settings: Mapping[str, object]) -> list[str]:
    """Settings of an evaluation as the flags of its command."""
    flags = []
    for name, value in settings.items():
        if value is True:
            flags.append(f"--{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            flags.append(f"--{name}={text}")
    return flags


def _check_evaluation(settings: Mapping[str, object]) -> None:
    task = settings.get("task")
    tasks = [*TASKS, *READING, DECODING]
    if task not in tasks:
        raise ValueError(f"task is {task!r}{_nearest(task, tasks)}; there are {', '.join(tasks)}")
    if task == DECODING:
        known = _DECODING_SETTINGS
    else:
        known = [f.name for f in dataclasses.fields(Request) if f.name not in _DECIDED]
    for name, value in settings.items():
        if name != "task" and name not in known:
            raise ValueError(
                f"unknown setting {name!r}{_nearest(name, known)}; there are {', '.join(known)}"
            )
        if value is None or value is False:
            raise ValueError(f"{name}={value} has no effect: leave it out")
        if task == DECODING and name != "task" and not (type(value) is int and value > 0):
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
    if task == DECODING:
        return
    if "data" not in settings and task not in _OF_HELD_OUT:
        raise ValueError(f"the task {task} needs data, the benchmark's file")
    # Refuses what the command would refuse, before anything is trained.
    data = pathlib.Path(str(settings.get("data", "data")))
    if "data" in settings and not data.exists():
        raise ValueError(f"data: there is no {data}")
    flags = {name: value for name, value in settings.items() if name != "data"}
    Request(output=pathlib.Path("result.json"), checkpoint="run", data=data, **flags)


def _nearest(name: object, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
