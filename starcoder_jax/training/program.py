"""The program of a training step, as the loop runs it and as planning compiles it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from starcoder_jax.parallel.mesh import make_mesh
from starcoder_jax.parallel.sharding import ShardingRules, check_batch, sharding_rules
from starcoder_jax.recipes import Recipe
from starcoder_jax.training.checkpoint import placed
from starcoder_jax.training.optimizer import make_optimizer
from starcoder_jax.training.step import TrainState, initial_state, make_train_step


def make_devices(
    recipe: Recipe, devices: list[jax.Device] | None = None
) -> tuple[jax.sharding.Mesh, ShardingRules]:
    """The mesh of a run and where everything lives on it.

    Args:
        recipe: of the run.
        devices: None: those of this machine.

    Raises:
        ValueError: model, batch or sequence do not split over the devices as the recipe asks.
    """
    settings = recipe.train
    mesh = make_mesh(recipe.mesh, devices)
    rules = sharding_rules(recipe.model, mesh)
    check_batch(settings.batch_size, settings.micro_batches, mesh)
    if settings.sequence_length % mesh.shape["sequence"]:
        raise ValueError(
            f"train.sequence_length={settings.sequence_length} does not split over mesh.sequence="
            f"{mesh.shape['sequence']}"
        )
    return mesh, rules


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step and what goes into it.

    Attributes:
        step: jitted; takes state (which it consumes), tokens and weights.
        fresh_state: makes the first state; to be jitted.
        state: shapes, dtypes and shardings of a state.
        tokens: those of a batch, int32 [batch, length + 1].
        weights: those of its weights, float32 [batch, length].
    """

    step: Callable
    fresh_state: Callable[[], TrainState]
    state: TrainState
    tokens: jax.ShapeDtypeStruct
    weights: jax.ShapeDtypeStruct


def make_program(
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    end_of_text: int,
) -> Program:
    """The program of a recipe on a mesh, which is in use (`jax.set_mesh`).

    Args:
        recipe: of the run.
        mesh: of devices that may exist or not.
        rules: of the model on the mesh.
        end_of_text: the token between documents.
    """
    settings = recipe.train
    optimizer: optax.GradientTransformation = make_optimizer(recipe.optimizer, settings.total_steps)

    def fresh_state() -> TrainState:
        return initial_state(recipe.model, optimizer, settings.seed, rules)

    step = make_train_step(
        recipe.model,
        optimizer,
        recipe.loss,
        micro_batches=settings.micro_batches,
        seed=settings.seed,
        segment_token=end_of_text if settings.isolate_documents else None,
        spec=rules,
    )
    rows = jax.NamedSharding(mesh, rules("batch", None))
    shape = (settings.batch_size, settings.sequence_length)
    return Program(
        step=jax.jit(step, donate_argnums=0),
        fresh_state=fresh_state,
        state=placed(jax.eval_shape(fresh_state), mesh),
        tokens=jax.ShapeDtypeStruct((shape[0], shape[1] + 1), jnp.int32, sharding=rows),
        weights=jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows),
    )
