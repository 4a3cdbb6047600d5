"""Next-token cross-entropy that never holds the logits of a whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from starcoder_jax.model.spec import Spec, scattered, token_axes, unsharded


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the loss is computed and regularised."""

    z_loss: float = 0.0  # weight of log(sum(exp(logits)))^2 (PaLM, arXiv:2204.02311, §5, uses 1e-4)
    chunk_tokens: int = 512  # tokens of a device whose logits exist at one time

    def __post_init__(self):
        if self.z_loss < 0 or self.chunk_tokens < 1:
            raise ValueError(
                f"loss.z_loss={self.z_loss} must not be negative and "
                f"loss.chunk_tokens={self.chunk_tokens} must be at least 1"
            )


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    config: LossConfig,
    spec: Spec = unsharded,
) -> jax.Array:
    """Weighted sum of the cross-entropy, in nats, of each target.

    Logits are float32 products of inputs in the dtype of `hidden`. They are made, and with the
    gradient taken at once turned into gradients, for `config.chunk_tokens` at a time and device: a
    backward pass computes nothing again, and costs what an unchunked one costs.

    Args:
        hidden: [batch, length, embed], output of `Decoder.hidden_states`.
        head: [vocab, embed].
        targets: int32 [batch, length].
        weights: float32 [batch, length]; 0 leaves a token out.

    Returns:
        float32 scalar: sum(weights * (cross-entropy + z_loss * logsumexp^2)).
    """
    chunks = _num_chunks(hidden, config.chunk_tokens)
    return _chunked(config.z_loss, chunks, spec, hidden, head, targets, weights)


def token_cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    config: LossConfig,
    spec: Spec = unsharded,
) -> jax.Array:
    """The cross-entropy, in nats, of each target, without z-loss; for evaluation.

    Args:
        hidden, head, targets, config: as for `cross_entropy`.

    Returns:
        float32 [batch, length].
    """
    chunks = _num_chunks(hidden, config.chunk_tokens)
    head = _gathered(head, hidden.dtype, spec)

    def losses(_, chunk):
        return None, _softmax(spec, chunk[0], head, chunk[1])[0]

    return _join(spec, jax.lax.scan(losses, None, _split(chunks, spec, hidden, targets))[1])


def _num_chunks(hidden: jax.Array, chunk_tokens: int) -> int:
    """In how many chunks a device takes its part of hidden, [batch, length, embed]."""
    batch, length, _ = jax.typeof(hidden).sharding.shard_shape(hidden.shape)
    wanted = min(-(-batch * length // chunk_tokens), length)
    return next(chunks for chunks in range(wanted, length + 1) if length % chunks == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(z_loss, chunks, spec, hidden, head, targets, weights):
    head = _gathered(head, hidden.dtype, spec)

    def add(total, chunk):
        loss, _ = _chunk_loss(z_loss, spec, chunk[0], head, *chunk[1:])
        return total + loss, None

    start = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, start, _split(chunks, spec, hidden, targets, weights))[0]


def _chunked_forward(z_loss, chunks, spec, hidden, head, targets, weights):
    whole_head = _gathered(head, hidden.dtype, spec)
    # Each device sums up what its own tokens add to the head's gradient: reduced within the loop,
    # this largest of all gradients would be sent once a chunk.
    own_sum = _unreduced(spec)

    def add(carry, chunk):
        total, head_gradient = carry
        x = chunk[0]
        loss, logit_gradient = _chunk_loss(z_loss, spec, x, whole_head, *chunk[1:])
        logit_gradient = logit_gradient.astype(x.dtype)
        # Transposed: a product that reads the gradient, the largest array here, as it lies.
        head_gradient += jnp.einsum(
            "btd,btv->dv",
            x,
            logit_gradient,
            preferred_element_type=jnp.float32,
            out_sharding=own_sum,
        )
        hidden_gradient = jnp.einsum(
            "btv,vd->btd",
            logit_gradient,
            whole_head,
            out_sharding=spec("batch", "length", None),
        )
        return (total + loss, head_gradient), hidden_gradient

    zeros = jnp.zeros(head.T.shape, jnp.float32, out_sharding=own_sum)
    chunked = _split(chunks, spec, hidden, targets, weights)
    start = (jnp.zeros((), jnp.float32), zeros)
    (total, head_gradient), hidden_gradient = jax.lax.scan(add, start, chunked)
    if own_sum is not None:
        head_gradient = scattered(head_gradient, ("embed", "vocab"), spec)
    # A single chunk is no loop, and XLA for CPUs would turn the transposition into a product of
    # bfloat16 that it has no code for.
    head_gradient = jax.lax.optimization_barrier(head_gradient)
    return total, (_join(spec, hidden_gradient), head_gradient.T.astype(head.dtype))


def _chunked_backward(z_loss, chunks, spec, residuals, cotangent):
    hidden_gradient, head_gradient = residuals
    hidden_gradient = hidden_gradient * cotangent.astype(hidden_gradient.dtype)
    return hidden_gradient, head_gradient * cotangent.astype(head_gradient.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _chunk_loss(z_loss, spec, hidden, head, targets, weights):
    """The loss of a chunk and its gradient by the logits, float32 [batch, tokens, vocab]."""
    cross_entropies, normalizer, exponentials, total = _softmax(spec, hidden, head, targets)
    loss = jnp.sum(weights * (cross_entropies + z_loss * jnp.square(normalizer)))
    scale = weights * (1 + 2 * z_loss * normalizer) / total  # [b, t]
    # A comparison instead of a scatter: it fuses, and needs no communication when the vocabulary
    # is split.
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, exponentials.shape, 2)
    is_target = vocabulary == targets[:, :, None]
    gradient = exponentials * scale[:, :, None] - jnp.where(is_target, weights[:, :, None], 0.0)
    return loss, gradient


def _softmax(spec, hidden, head, targets):
    """The pieces of softmax cross-entropy, float32.

    Returns:
        The cross-entropies and the logsumexp of the logits, [batch, tokens]; exp(logits - largest),
        [batch, tokens, vocab], and its sum over the vocabulary.
    """
    logits = jnp.einsum(
        "btd,vd->btv",
        hidden,
        head,
        preferred_element_type=jnp.float32,
        out_sharding=spec("batch", "length", "vocab"),
    )
    largest = jnp.max(logits, axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    total = jnp.sum(exponentials, axis=-1)
    normalizer = jnp.log(total) + largest[:, :, 0]
    # The product with one row of the head again: cheaper than to look for it in the logits.
    rows = head.at[targets].get(out_sharding=spec("batch", "length", None))  # [b, t, d]
    target_logit = jnp.sum(hidden.astype(jnp.float32) * rows.astype(jnp.float32), axis=-1)
    return normalizer - target_logit, normalizer, exponentials, total


def _gathered(head, dtype, spec):
    """The head with whole rows, in the dtype of products: once, instead of once a chunk."""
    sharding = spec("vocab", None)
    head = head.astype(dtype)
    return head if sharding is None else jax.reshard(head, sharding)


def _unreduced(spec):
    """Of a [embed, vocab] array whose devices hold addends: one for each part of the tokens."""
    if spec("batch") is None:
        return None
    return jax.P(None, *spec("vocab"), unreduced=set(token_axes(spec)))


def _split(chunks, spec, *arrays):
    """[batch, length, ...] to [chunks, batch, length / chunks, ...], strided along the length.

    Striding keeps every device's tokens on that device when the length is split over devices.
    """

    def split(x):
        batch, length, *rest = x.shape
        shape = (batch, length // chunks, chunks, *rest)
        # Given, as JAX by itself would move the sharding off a new axis of size 1.
        sharding = spec("batch", "length", None, *[None] * len(rest))
        return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=sharding), 2, 0)

    return tuple(split(x) for x in arrays)


def _join(spec, x):
    """The inverse of `_split`."""
    chunks, batch, length, *rest = x.shape
    sharding = spec("batch", "length", *[None] * len(rest))
    shape = (batch, length * chunks, *rest)
    return jnp.reshape(jnp.moveaxis(x, 0, 2), shape, out_sharding=sharding)
