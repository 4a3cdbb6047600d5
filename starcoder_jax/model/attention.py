"""Attention over a structured mask: the reference, a blocked form for any device, and kernels."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from starcoder_jax.model.cudnn import cudnn_attention, is_cudnn_forward
from starcoder_jax.model.mask import AttentionMask
from starcoder_jax.model.splash import splash_attention

# Queries are taken in blocks of at least this many, and in at most _MAX_BLOCKS blocks: small blocks
# skip more of the invisible keys, each costs compilation time.
_MIN_BLOCK = 128
_MAX_BLOCKS = 8
_HIDDEN = jnp.finfo(jnp.float32).min


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionDropout:
    """Dropout of attention weights."""

    key: jax.Array
    rate: float = dataclasses.field(metadata={"static": True})

    def __call__(self, weights: jax.Array, block: int) -> jax.Array:
        """Drops weights of one block of queries; the same ones each time it is called."""
        key = jax.random.fold_in(self.key, block)
        keep = jax.random.bernoulli(
            key, 1 - self.rate, weights.shape, out_sharding=jax.typeof(weights).sharding
        )
        return jnp.where(keep, weights / (1 - self.rate), jnp.zeros_like(weights))


def reference_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    slopes: jax.Array | None = None,
    dropout: AttentionDropout | None = None,
) -> jax.Array:
    """Attention with the whole score matrix in memory: the oracle of every other backend.

    Args:
        query: [batch, length, kv_heads, groups, head_dim]; head k * groups + g reads key head k.
        key, value: [batch, length, kv_heads, head_dim].
        mask: what is visible; all of it is honoured.
        slopes: float32 [kv_heads, groups], ALiBi's; None for none.
        dropout: of the attention weights; None for none.

    Returns:
        Like query. Scores and softmax are float32 whatever the inputs are.
    """
    everything = slice(0, query.shape[1])
    scores = _scores(query, key, mask, slopes, everything, everything)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights, 0)
    attended = jnp.einsum("bktgs,bskh->bktgh", weights, value)
    return jnp.moveaxis(attended, 1, 2)  # [b, t, k, g, h]


def xla_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    slopes: jax.Array | None = None,
    dropout: AttentionDropout | None = None,
) -> jax.Array:
    """`reference_attention` in blocks of queries, without keeping scores for the backward pass.

    A block leaves out the keys that no query of it sees: half of the work of causal attention, and
    nearly all of it when the window is short against the sequence. The backward pass computes the
    weights again from the sums that normalised them (Dao et al. 2022, arXiv:2205.14135, §3.1).
    """
    length = query.shape[1]
    block = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    if length % block or _is_split(query, axis=1):
        block = length
    return _blocked(block, query, key, value, mask, slopes, dropout)


def _kernel_backend(name: str, platform: str, attend: Callable[..., jax.Array]) -> Callable:
    """A kernel as a backend, which gets what every backend gets: see `reference_attention`.

    Args:
        name: of the backend.
        platform: of the devices that the kernel runs on, as in `jax.Device.platform`.
        attend: takes query, key, value and mask.

    Returns:
        A backend that raises ValueError when it is given ALiBi's slopes or dropout, or is under a
        mesh of other devices.
    """

    def backend(query, key, value, mask, *, slopes=None, dropout=None):
        chosen = f'model.attention_backend="{name}"'
        if slopes is not None:
            raise ValueError(f'{chosen} has no ALiBi (model.positions="alibi"): set it to "xla"')
        if dropout is not None:
            raise ValueError(
                f"{chosen} has no dropout: set model.attention_dropout to 0, "
                'or the backend to "xla"'
            )
        # The devices of the mesh, not those of this process: planning compiles for others.
        device = jax.typeof(query).sharding.mesh.abstract_device
        if device is not None and device.platform != platform:
            raise ValueError(
                f'{chosen} needs a {platform}, not a {device.platform}: set it to "xla"'
            )
        return attend(query, key, value, mask)

    return backend


ATTENTION = {
    "reference": reference_attention,
    "xla": xla_attention,
    "splash": _kernel_backend("splash", "tpu", splash_attention),
    "cudnn": _kernel_backend("cudnn", "gpu", cudnn_attention),
}

# Rematerialization policy: the backward pass finds what it needs of attention's forward pass.
attention_saveable = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names("attention"), is_cudnn_forward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(block, query, key, value, mask, slopes, dropout):
    return _blocked_forward(block, query, key, value, mask, slopes, dropout)[0]


def _blocked_forward(block, query, key, value, mask, slopes, dropout):
    outputs, normalizers = [], []
    for rows, columns in _rectangles(query.shape[1], block, mask):
        scores = _scores(query[:, rows], key[:, columns], mask, slopes, rows, columns)
        largest = jnp.max(scores, axis=-1, keepdims=True)  # [b, k, t, g, 1]
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if dropout is not None:
            weights = dropout(weights, rows.start)
        attended = jnp.einsum(
            "bktgs,bskh->bktgh",
            weights.astype(value.dtype),
            value[:, columns],
            preferred_element_type=jnp.float32,
        )
        outputs.append(jnp.moveaxis((attended / total).astype(query.dtype), 1, 2))
        normalizers.append(largest + jnp.log(total))
    # Named, so that a rematerialisation policy can keep what the backward pass needs.
    output = checkpoint_name(jnp.concatenate(outputs, axis=1), "attention")  # [b, t, k, g, h]
    normalizers = [checkpoint_name(normalizer, "attention") for normalizer in normalizers]
    return output, (query, key, value, mask, slopes, dropout, output, normalizers)


def _blocked_backward(block, residuals, gradient):
    query, key, value, mask, slopes, dropout, output, normalizers = residuals
    scale = query.shape[-1] ** -0.5
    # The gradient of softmax needs, for each query, sum(weights * their gradient), which equals
    # sum(output * its gradient).
    mean = jnp.sum(output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    mean = jnp.moveaxis(mean, 1, 2)[..., None]  # [b, k, t, g, 1]
    # Keys are whole along the length, queries may be split: their products are summed over devices.
    key_sharding = _sharding(key)
    key_gradient = jnp.zeros_like(key, jnp.float32)
    value_gradient = jnp.zeros_like(value, jnp.float32)
    query_gradients = []
    rectangles = _rectangles(query.shape[1], block, mask)
    for (rows, columns), normalizer in zip(rectangles, normalizers, strict=True):
        scores = _scores(query[:, rows], key[:, columns], mask, slopes, rows, columns)
        weights = jnp.exp(scores - normalizer)  # [b, k, t, g, s]
        dropped = weights if dropout is None else dropout(weights, rows.start)
        value_gradient = value_gradient.at[:, columns].add(
            jnp.einsum(
                "bktgs,btkgh->bskh",
                dropped.astype(value.dtype),
                gradient[:, rows],
                preferred_element_type=jnp.float32,
                out_sharding=key_sharding,
            )
        )
        weight_gradient = jnp.einsum(
            "btkgh,bskh->bktgs",
            gradient[:, rows],
            value[:, columns],
            preferred_element_type=jnp.float32,
        )
        if dropout is not None:
            weight_gradient = dropout(weight_gradient, rows.start)
        score_gradient = weights * (weight_gradient - mean[:, :, rows]) * scale
        score_gradient = score_gradient.astype(query.dtype)
        query_gradient = jnp.einsum("bktgs,bskh->bktgh", score_gradient, key[:, columns])
        query_gradients.append(jnp.moveaxis(query_gradient, 1, 2))
        key_gradient = key_gradient.at[:, columns].add(
            jnp.einsum(
                "bktgs,btkgh->bskh",
                score_gradient,
                query[:, rows],
                preferred_element_type=jnp.float32,
                out_sharding=key_sharding,
            )
        )
    return (
        jnp.concatenate(query_gradients, axis=1),
        key_gradient.astype(key.dtype),
        value_gradient.astype(value.dtype),
        None,
        None,
        None,
    )


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _rectangles(length: int, block: int, mask: AttentionMask) -> list[tuple[slice, slice]]:
    """The blocks of queries, each with the range of keys that it may see."""
    return [
        (slice(start, start + block), slice(mask.first_visible(start), start + block))
        for start in range(0, length, block)
    ]


def _scores(query, key, mask, slopes, rows, columns):
    """Masked scores, float32 [b, k, t, g, s], of a block of queries and a range of keys.

    The axes are in the order in which the batched product makes them.
    """
    scores = jnp.einsum("btkgh,bskh->bktgs", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if slopes is not None:
        distance = jnp.arange(columns.start, columns.stop)[None, :]
        distance = distance - jnp.arange(rows.start, rows.stop)[:, None]  # [t, s]
        distance = distance[None, None, :, None, :].astype(jnp.float32)
        scores = scores + slopes[:, None, :, None] * distance
    visible = mask.block(rows, columns)
    if visible is not None:
        scores = jnp.where(visible[:, None, :, None, :], scores, _HIDDEN)
    return scores


def _sharding(x: jax.Array) -> jax.P | None:
    """How an array is split (known at trace time: it is in its type); None outside of a mesh."""
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else sharding.spec


def _is_split(x: jax.Array, axis: int) -> bool:
    """Whether an axis is split over devices."""
    sharding = jax.typeof(x).sharding
    return sharding.shard_shape(x.shape)[axis] != x.shape[axis]
