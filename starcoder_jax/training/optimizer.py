"""AdamW as the StarCoder runs used it."""

import dataclasses

import jax
import optax

# Parameters that are matrices; all others (biases, norms) are vectors, one for each layer.
_MATRICES = ("kernel", "embedding", "position_embedding", "untied_head")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warmup and a cosine to a floor; defaults are those common to the family."""

    peak_learning_rate: float
    final_learning_rate: float  # the floor, reached at the last step
    warmup_steps: int
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of matrices only
    clip_norm: float = 1.0  # of the whole gradient

    def __post_init__(self):
        if not 0 <= self.final_learning_rate <= self.peak_learning_rate:
            raise ValueError(
                f"optimizer.final_learning_rate={self.final_learning_rate} must lie between 0 and "
                f"optimizer.peak_learning_rate={self.peak_learning_rate}"
            )
        if self.warmup_steps < 0 or self.clip_norm <= 0:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} must not be negative and "
                f"optimizer.clip_norm={self.clip_norm} must be positive"
            )


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate by step: step t of the warmup uses peak * (t + 1) / warmup_steps.

    Raises:
        ValueError: the warmup is longer than the run.
    """
    if config.warmup_steps > total_steps:
        raise ValueError(
            f"optimizer.warmup_steps={config.warmup_steps} is longer than "
            f"train.total_steps={total_steps}"
        )
    warmup = max(config.warmup_steps, 1)
    cosine = optax.cosine_decay_schedule(
        config.peak_learning_rate,
        max(total_steps - warmup, 1),
        alpha=config.final_learning_rate / config.peak_learning_rate
        if config.peak_learning_rate
        else 0.0,
    )
    ramp = optax.linear_schedule(
        config.peak_learning_rate / warmup, config.peak_learning_rate, max(warmup - 1, 1)
    )
    return optax.join_schedules([ramp, cosine], [warmup - 1])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW whose decay leaves out biases and norms."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def _is_matrix(params):
    """For each parameter, whether weight decay applies; decided by name, as layers are stacked."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _MATRICES, params)
