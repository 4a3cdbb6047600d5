"""One training step: from a state and a batch to the next state and its metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.model.spec import Spec, unsharded
from starcoder_jax.training.loss import LossConfig, cross_entropy

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes.

    Attributes:
        step: int32 scalar, steps done.
        params: nested dict of float32 arrays, as `nnx.to_pure_dict` names them.
        optimizer_state: optax's.
        first_bad_step: int32 scalar: the first step whose loss or gradient was not finite, -1 if
            none. Kept on the device, so that no step waits for the host to look.
    """

    step: jax.Array
    params: Params
    optimizer_state: optax.OptState
    first_bad_step: jax.Array


def graph_definition(config: DecoderConfig, spec: Spec = unsharded) -> nnx.GraphDef:
    """The structure of the model, into which `nnx.merge` puts parameters."""
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), spec=spec))
    return nnx.split(model)[0]


def initial_state(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    spec: Spec = unsharded,
) -> TrainState:
    """A fresh state, whose parameters do not depend on the sharding.

    Under `jax.jit` it comes out sharded, under `jax.eval_shape` as the target of a restore.
    """
    model = Decoder(config, rngs=nnx.Rngs(seed), spec=spec)
    params = nnx.to_pure_dict(nnx.state(model))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer.init(params),
        first_bad_step=jnp.full((), -1, jnp.int32),
    )


def make_train_step(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    loss_config: LossConfig,
    *,
    micro_batches: int = 1,
    seed: int = 0,
    segment_token: int | None = None,
    spec: Spec = unsharded,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """The function that `jax.jit(..., donate_argnums=0)` compiles.

    It takes the state, tokens int32 [batch, length + 1] and weights float32 [batch, length] of the
    targets tokens[:, 1:], and returns the next state and scalars: `loss` (nats a token, z-loss
    included: the sum of weighted losses over the sum of weights, whatever the number of
    micro-batches), `grad_norm` (before clipping), `tokens` (sum of weights).

    Args:
        config, optimizer, loss_config, spec: of the run.
        micro_batches: gradients are accumulated over this many equal parts of the batch.
        seed: of dropout; each step draws from (seed, step).
        segment_token: if given, attention stays between two such tokens (documents do not see each
            other); None: documents of a window see each other, as in StarCoder's training.
    """
    graph = graph_definition(config, spec)
    uses_dropout = max(config.embedding_dropout, config.attention_dropout, config.residual_dropout)

    def loss_sum(params, tokens, weights, key):
        model = nnx.merge(graph, params)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]  # [b, t]
        # Of the whole length: a cumulative sum, and every query compares all keys' segments.
        segments = None if segment_token is None else document_segments(inputs, segment_token)
        if (sharding := spec("batch", "length")) is not None:
            # The batch comes with an odd length, which the sequence axis cannot split.
            inputs, targets, weights = jax.reshard((inputs, targets, weights), sharding)
        hidden = model.hidden_states(inputs, segment_ids=segments, dropout_key=key)
        return cross_entropy(hidden, model.head, targets, weights, loss_config, spec)

    def gradients(params, tokens, weights, key):
        """The gradient of the summed loss, accumulated over micro-batches."""
        if micro_batches == 1:
            return jax.value_and_grad(loss_sum)(params, tokens, weights, key)

        def accumulate(total, part):
            tokens, weights, index = part
            part_key = None if key is None else jax.random.fold_in(key, index)
            result = jax.value_and_grad(loss_sum)(params, tokens, weights, part_key)
            return jax.tree.map(jnp.add, total, result), None

        start = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        parts = (
            _micro_batches(tokens, micro_batches, spec),
            _micro_batches(weights, micro_batches, spec),
            jnp.arange(micro_batches),
        )
        return jax.lax.scan(accumulate, start, parts)[0]

    def train_step(state: TrainState, tokens: jax.Array, weights: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), state.step) if uses_dropout else None
        total, summed = gradients(state.params, tokens, weights, key)
        weight_sum = jnp.sum(weights)
        loss = total / weight_sum
        mean = jax.tree.map(lambda gradient: gradient / weight_sum, summed)
        grad_norm = optax.tree.norm(mean)
        updates, optimizer_state = optimizer.update(mean, state.optimizer_state, state.params)
        step = state.step + 1
        is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        next_state = TrainState(
            step=step,
            params=optax.apply_updates(state.params, updates),
            optimizer_state=optimizer_state,
            first_bad_step=jnp.where(
                (state.first_bad_step < 0) & is_bad, step, state.first_bad_step
            ),
        )
        return next_state, {"loss": loss, "grad_norm": grad_norm, "tokens": weight_sum}

    return train_step


def document_segments(tokens: jax.Array, end_of_text: int) -> jax.Array:
    """Number of the document of each token, int32 [batch, length]; its end belongs to it."""
    ends = (tokens == end_of_text).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends


def _micro_batches(x: jax.Array, count: int, spec: Spec) -> jax.Array:
    """[batch, ...] to [count, batch / count, ...], rows of one part strided over the batch.

    Striding keeps every device's rows on that device.
    """
    shape = (x.shape[0] // count, count, *x.shape[1:])
    # Given, as JAX by itself would move the sharding off a new axis of size 1.
    sharding = spec("batch", *[None] * x.ndim)
    return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=sharding), 1, 0)
