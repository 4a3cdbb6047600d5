"""Attention by JAX's splash kernel for TPUs, which skips what is masked and keeps no scores."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from starcoder_jax.model.mask import AttentionMask

# The largest blocks of queries and keys. MaxText's published settings for TPU v6e are 1024 or 2048
# queries by its default of 512 keys. 2048 queries are more than the vector memory of a v4 holds;
# 1024 by 512 compile for v4, v5e, v5p, v6e and 7x at every head size up to _MAX_HEAD_DIM, in
# float32 too (libtpu 0.0.42.1). None of them was timed here.
_MAX_QUERY_BLOCK = 1024
_MAX_KEY_BLOCK = 512
_MAX_HEAD_DIM = 256
_LANES = 128  # of a vector register, which the sides of a block have to fill


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention for TPUs; under a mesh each device computes its own sequences, heads and queries.

    Args:
        query: [batch, length, kv_heads, groups, head_dim], float32 or bfloat16.
        key, value: [batch, length, kv_heads, head_dim], whole along the length.
        mask: what is visible; all of it is honored.
        interpret: whether to emulate the kernel in XLA, which is slow and runs anywhere: for tests.

    Returns:
        Like query. What the backward pass needs of it is named "attention" for rematerialization.

    Raises:
        ValueError: the kernel has no such head size, length or dtype.
    """
    sharding = jax.typeof(query).sharding
    shard_shape = sharding.shard_shape(query.shape)
    _check(shard_shape[1], query.shape[-1], query.dtype)
    kernel = _kernel(query.shape[1], shard_shape[1], mask.window, interpret)
    # The kernel does not scale. Scaled in float32, bfloat16 rounds the product and not the factor,
    # whose error would be the same in every score.
    scale = query.shape[-1] ** -0.5
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    segments = None
    if mask.segment_ids is not None:
        segments = splash.SegmentIds(q=mask.segment_ids, kv=mask.segment_ids)
    if sharding.mesh.empty:
        return _attend(kernel, query, key, value, segments)

    query_spec, key_spec = sharding.spec, jax.typeof(key).sharding.spec
    batch_axes, length_axes = query_spec[:2]
    # The kernel holds, for each block of queries, which blocks of keys to read: a device gets the
    # part of its own queries. All heads share it.
    kernel_spec = kernel.manual_sharding_spec(
        jax.NamedSharding(sharding.mesh, jax.P(None, length_axes))
    )
    segments_spec = None
    if segments is not None:
        segments_spec = splash.SegmentIds(
            q=jax.P(batch_axes, length_axes), kv=jax.P(batch_axes, None)
        )
    attend = jax.shard_map(
        _attend,
        in_specs=(kernel_spec, query_spec, key_spec, key_spec, segments_spec),
        out_specs=query_spec,
        check_vma=False,  # pallas_call does not say over which axes its outputs vary
    )
    kernel = jax.tree.map(jax.reshard, kernel, kernel_spec)
    segments = jax.tree.map(jax.reshard, segments, segments_spec)
    return attend(kernel, query, key, value, segments)


def _attend(kernel, query, key, value, segments):
    """Attention of what one device has: the multi-query kernel for each sequence and key head."""
    query = jnp.moveaxis(query, 1, 3)  # [b, k, g, t, h]
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)  # [b, k, s, h]
    for_each_key_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    attended = jax.vmap(for_each_key_head)(query, key, value, segments)
    return jnp.moveaxis(attended, 3, 1)  # [b, t, k, g, h]


def _kernel(length: int, shard_length: int, window: int | None, interpret: bool):
    """The multi-query kernel for queries in shards of shard_length."""
    shape = (length, length)
    if window is None:
        visible = splash.CausalMask(shape)
    else:
        visible = splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    queries, keys = _block(shard_length, _MAX_QUERY_BLOCK), _block(length, _MAX_KEY_BLOCK)
    blocks = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        # Query gradients have a kernel of their own: fused with those of the keys, they would be
        # summed from one array per block of keys, each as large and as coarse as the queries.
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    return splash.make_splash_mqa(
        splash.MultiHeadMask([visible]),  # one for all heads
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=length // shard_length,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )


def _block(length: int, largest: int) -> int:
    """The largest multiple of _LANES that divides a length and is at most `largest`."""
    sizes = range(_LANES, min(length, largest) + 1, _LANES)
    return max(size for size in sizes if length % size == 0)


def _check(shard_length: int, head_dim: int, dtype: jnp.dtype) -> None:
    backend = 'model.attention_backend="splash"'
    if shard_length % _LANES:
        raise ValueError(
            f"{backend} needs a multiple of {_LANES} tokens on each device, not {shard_length}: "
            'change train.sequence_length or mesh.sequence, or set the backend to "xla"'
        )
    if head_dim > _MAX_HEAD_DIM:
        raise ValueError(
            f"{backend} takes head sizes up to {_MAX_HEAD_DIM}, not {head_dim}: "
            'raise model.num_heads, or set the backend to "xla"'
        )
    if dtype == jnp.float16:
        raise ValueError(f'{backend} has no float16: set model.dtype to "bfloat16"')
