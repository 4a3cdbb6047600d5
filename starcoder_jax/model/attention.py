"""Attention over a structured mask: the reference, and a blocked form for any XLA device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from starcoder_jax.model.mask import AttentionMask

# Queries are taken in blocks of at least this many, and in at most _MAX_BLOCKS blocks: small blocks
# skip more of the invisible keys, each costs compilation time.
_MIN_BLOCK = 128
_MAX_BLOCKS = 8

Dropout = Callable[[jax.Array], jax.Array]


def reference_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    slopes: jax.Array | None = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Attention with the whole score matrix in memory: the oracle of every other backend.

    Args:
        query: [batch, length, kv_heads, groups, head_dim]; head k * groups + g reads key head k.
        key, value: [batch, length, kv_heads, head_dim].
        mask: what is visible; all of it is honoured.
        slopes: float32 [kv_heads, groups], ALiBi's; None for none.
        dropout: applied to the attention weights; None for none.

    Returns:
        Like query. Scores and softmax are float32 whatever the inputs are.
    """
    everything = slice(0, query.shape[1])
    return _attend(query, key, value, mask.block(everything, everything), 0, 0, slopes, dropout)


def xla_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    slopes: jax.Array | None = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """`reference_attention`, in blocks of queries that leave out the keys no query of them sees.

    Saves half of the work and memory of causal attention, and nearly all of it when the window is
    short against the sequence.
    """
    length = query.shape[1]
    block = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    if length % block or _sharded(query, axis=1):
        return reference_attention(query, key, value, mask, slopes=slopes, dropout=dropout)
    outputs = []
    for start in range(0, length, block):
        rows = slice(start, start + block)
        columns = slice(mask.first_visible(start), start + block)
        attended = _attend(
            query[:, rows],
            key[:, columns],
            value[:, columns],
            mask.block(rows, columns),
            start,
            columns.start,
            slopes,
            dropout,
        )
        outputs.append(attended)
    return jnp.concatenate(outputs, axis=1)


ATTENTION = {"reference": reference_attention, "xla": xla_attention}


def _attend(query, key, value, visible, query_start, key_start, slopes, dropout):
    """Attention of a block of queries [b, t, k, g, h] to a range of keys [b, s, k, h]."""
    # Scores stay in the order in which the batched product makes them: [b, k, t, g, s].
    scores = jnp.einsum("btkgh,bskh->bktgs", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if slopes is not None:
        key_position = key_start + jnp.arange(key.shape[1])
        query_position = query_start + jnp.arange(query.shape[1])
        distance = (key_position[None, :] - query_position[:, None]).astype(jnp.float32)  # [t, s]
        scores = scores + slopes[:, None, :, None] * distance[None, :, None, :]
    if visible is not None:
        hidden = jnp.finfo(jnp.float32).min
        scores = jnp.where(visible[:, None, :, None, :], scores, hidden)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    attended = jnp.einsum("bktgs,bskh->bktgh", weights, value)
    return jnp.moveaxis(attended, 1, 2)  # [b, t, k, g, h]


def _sharded(x: jax.Array, axis: int) -> bool:
    """Whether the axis is split over devices (known at trace time: shardings are in types)."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] if len(sharding.spec) > axis else None
    if names is None:
        return False
    names = (names,) if isinstance(names, str) else names
    return any(sharding.mesh.shape[name] > 1 for name in names)
