"""What a training run is asked for, apart from model, data and optimizer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, batch and cadence of a run. Steps are optimizer updates, counted from 1."""

    total_steps: int
    batch_size: int  # sequences an update sees, over all hosts
    sequence_length: int  # tokens
    seed: int = 0  # of initial parameters, data order and dropout
    log_every: int = 10  # steps
    eval_every: int = 1000  # steps; the last step is evaluated too
    checkpoint_every: int = 1000  # steps; the last step is saved too
    keep_checkpoints: int = 3  # the newest ones
    micro_batches: int = 1  # parts of a batch whose gradients are accumulated
    isolate_documents: bool = False  # no attention across the documents packed into one window
    initial_checkpoint: str | None = None  # parameters to start from, with a fresh optimizer
    hang_seconds: int = 600  # without a finished step at least, until stacks are dumped; 0: never
    profile_steps: tuple[int, ...] = ()  # first and last step of a profiler trace; (): none

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < (field.name not in ("seed", "hang_seconds")):
                raise ValueError(f"train.{field.name} is {value}; it must be positive")
        steps = self.profile_steps
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise ValueError(
                f"train.profile_steps is {steps}; it must be (first, last), steps counted from 1"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which held-out files are evaluated, and what is generated for the report."""

    max_files: int = 64  # of each task, the first in the order of content hashes
    max_file_tokens: int = 16384  # longer files are left out
    batch_size: int | None = None  # windows; None: train.batch_size
    sample_tokens: int = 64  # tokens at most that the report's infilling generates

    def __post_init__(self):
        if self.max_files < 1 or self.max_file_tokens < 1 or self.sample_tokens < 1:
            raise ValueError(
                f"evaluation.max_files={self.max_files}, evaluation.max_file_tokens="
                f"{self.max_file_tokens} and evaluation.sample_tokens={self.sample_tokens} must "
                "be at least 1"
            )
