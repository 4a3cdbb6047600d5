"""Attention by the splash kernel, for TPUs: it skips what is masked and keeps no scores."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from starcoder_jax.model.mask import AttentionMask

_LANES = 128  # of a TPU's vector registers: every block is a multiple of it

def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    interpret: bool = False,
) -> jax.Array:
    batch, length, kv_heads, groups, head_dim = query.shape
    sharding = jax.typeof(query).sharding
    shard_length = sharding.shard_shape(query.shape)[1]
    kernel = _kernel(length, shard_length, mask.window, head_dim, interpret)
    scale = head_dim**-0.5
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    segments = None
    if mask.segment_ids is not None:
        segments = splash.SegmentIds(mask.segment_ids, mask.segment_ids)
    if sharding.mesh.empty:
        return _attend(kernel, query, key, value, segments)
    query_spec, key_spec = sharding.spec, jax.typeof(key).sharding.spec
    rows, columns = query_spec[:2]
    kernel_spec = kernel.manual_sharding_spec(
        jax.NamedSharding(sharding.mesh, jax.P(None, columns))
    )
    kernel = jax.tree.map(jax.reshard, kernel, kernel_spec)
    segments_spec = None
    if segments is not None:
        segments_spec = splash.SegmentIds(jax.P(rows, columns), jax.P(rows, None))
        segments = jax.tree.map(jax.reshard, segments, segments_spec)
    return jax.shard_map(_attend, in_specs=(kernel_spec, query_spec, key_spec, key_spec, segments_spec), out_specs=query_spec, check_vma=False)(kernel, query, key, value, segments)


def _attend(kernel, query, key, value, segments):
    query = jnp.moveaxis(query, 1, 3)  # [b, k, g, t, h]
    key, value = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)  # [b, k, s, h]
    one_sequence = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    return jnp.moveaxis(jax.vmap(one_sequence)(query, key, value, segments), 3, 1)


def _kernel(length, shard_length, window, head_dim, interpret):
    if window is None:
        visible = splash.CausalMask((length, length))
    else:
        visible = splash.LocalMask((length, length), (window - 1, 0), 0)
    block_q, block_kv = _block(shard_length, 1024), _block(length, 512)
    sizes = splash.BlockSizes(
        block_q=block_q, block_kv=block_kv, block_q_dkv=block_q, block_kv_dkv=block_kv,
        block_q_dq=block_q, block_kv_dq=block_kv)
    return splash.make_splash_mqa(splash.MultiHeadMask([visible]), block_sizes=sizes, head_shards=1, q_seq_shards=length // shard_length,
        residual_checkpoint_name="attention", interpret=interpret)


def _block(length, largest):
    return max(b for b in range(_LANES, min(length, largest) + 1, _LANES) if length % b == 0)
