"""What an evaluation is asked to do, and whether that makes sense."""

import dataclasses
import pathlib

from starcoder_jax.evals.tasks import TASKS

PERPLEXITY = "perplexity"
FIM_PERPLEXITY = "fim-perplexity"
# Tasks that read texts, and write none.
READING = (PERPLEXITY, FIM_PERPLEXITY)

_INFILLING = ("fim", "humaneval-infilling")
_MODEL = frozenset({"checkpoint", "dtype"})
_SAMPLING = frozenset({"num_samples", "temperature", "top_p", "max_tokens", "slots"})
_CHOICE = frozenset({"only", "limit", "prompt_format", "seed"})
_RUNNING = frozenset({"k", "time_limit", "workers", "without_sandbox"})


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of the command; None and False: not given.

    Raises:
        ValueError: two of them contradict each other, or one would have no effect.
    """

    task: str
    data: pathlib.Path
    output: pathlib.Path
    checkpoint: str | None = None
    samples: pathlib.Path | None = None
    solutions: str | None = None
    generate_only: bool = False
    only: str | None = None
    limit: int | None = None
    prompt_format: str | None = None
    order: str | None = None
    num_samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    slots: int | None = None
    dtype: str | None = None
    window: int | None = None
    k: tuple[int, ...] | None = None
    time_limit: float | None = None
    workers: int | None = None
    without_sandbox: bool = False

    def __post_init__(self):
        sources = [self.checkpoint, self.samples, self.solutions]
        if sum(source is not None for source in sources) != 1:
            raise ValueError("give one of --checkpoint, --samples and --solutions")
        if self.task in READING and self.checkpoint is None:
            raise ValueError(f"--task={self.task} needs a --checkpoint")
        if self.output.suffix != ".json":
            raise ValueError(f"--output={self.output} must be named .json")
        for name in ("limit", "num_samples", "max_tokens", "window", "slots", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}={value} must be at least 1")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"--time_limit={self.time_limit} must be above 0 seconds")
        if (self.num_samples or 1) > 1 and not self.temperature:
            raise ValueError(
                f"--num_samples={self.num_samples} without a --temperature draws the same sample "
                f"{self.num_samples} times: give one, such as 0.2"
            )
        if self.k and self.checkpoint is not None and max(self.k) > (self.num_samples or 1):
            raise ValueError(f"--k={max(self.k)} needs at least --num_samples={max(self.k)}")
        given = {
            field.name
            for field in dataclasses.fields(self)
            if field.default is not dataclasses.MISSING
            and getattr(self, field.name) is not field.default
        }
        if idle := sorted(given - self._effective()):
            raise ValueError(f"--{idle[0]} has no effect here: leave it out")

    def _effective(self) -> frozenset[str]:
        """Names of the flags that do something."""
        if self.task == PERPLEXITY:
            return _MODEL | {"limit", "window"}
        if self.task == FIM_PERPLEXITY:
            return _MODEL | {"limit", "window", "seed"}
        names = _CHOICE | {"samples", "solutions"}
        if self.checkpoint is not None:
            names |= _MODEL | _SAMPLING | {"generate_only"}
            if self.task in _INFILLING:
                names |= {"order"}
        if TASKS[self.task].metric == "pass":
            if self.checkpoint is None:
                names -= {"seed"}
            if not self.generate_only:
                names |= _RUNNING
        return names

    def file(self, suffix: str) -> pathlib.Path:
        """A file beside the result, such as `result.html`."""
        return self.output.with_suffix(suffix)
