"""A program to run, and what became of it."""

import dataclasses

from starcoder_jax.evals.sandbox.inside.languages import LANGUAGES


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole program, whose tests run when it runs.

    Attributes:
        language: "python", "javascript", "java", "cpp", "bash" or "rust".
        source: of Java, with a class that has `main`.
        time_limit: seconds on the reference machine (see `Sandbox`), compilation not counted.

    Raises:
        ValueError: a field is out of range.
    """

    language: str
    source: str
    time_limit: float = 10.0

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(
                f"language {self.language!r} is unknown: choose one of {', '.join(LANGUAGES)}"
            )
        if not self.time_limit > 0:
            raise ValueError(f"time_limit is {self.time_limit}: it must be above 0 s")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: it ran to its end, and no test failed.
        reason: "passed", "failed" (an assertion), "exception", "syntax" (does not parse or
            compile), "timeout", "memory", "output", "exited" (before its end), "killed" (by
            something else than the sandbox's limits).
        detail: lines of its standard error: the last, or those of the compiler.
        seconds: wall time, compilation included.
    """

    passed: bool
    reason: str
    detail: str
    seconds: float
