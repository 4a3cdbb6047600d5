"""Attention by cuDNN's flash attention, for NVIDIA GPUs."""

import jax
import jax.numpy as jnp

from starcoder_jax.model.mask import AttentionMask

_MAX_HEAD_DIM = 128  # before Hopper; from there on 256
_HEAD_DIM_STEP = 8


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask
) -> jax.Array:
    """Attention for NVIDIA GPUs; under a mesh each device computes its own sequences and heads.

    Args:
        query: [batch, length, kv_heads, groups, head_dim], bfloat16 or float16; whole along the
            length.
        key, value: [batch, length, kv_heads, head_dim].
        mask: what is visible; without segment ids.

    Returns:
        Like query.

    Raises:
        ValueError: cuDNN has no such mask, sharding, head size or dtype.
    """
    sharding = jax.typeof(query).sharding
    _check(query, sharding.shard_shape(query.shape)[1], mask)
    window = None if mask.window is None else (mask.window - 1, 0)

    def attend(query, key, value):
        batch, length, kv_heads, groups, head_dim = query.shape
        attended = jax.nn.dot_product_attention(
            query.reshape(batch, length, kv_heads * groups, head_dim),
            key,
            value,
            is_causal=True,
            local_window_size=window,
            implementation="cudnn",
        )
        return attended.reshape(query.shape)

    if sharding.mesh.empty:
        return attend(query, key, value)
    key_spec = jax.typeof(key).sharding.spec
    return jax.shard_map(
        attend,
        in_specs=(sharding.spec, key_spec, key_spec),
        out_specs=sharding.spec,
        check_vma=False,  # cuDNN's call does not say over which axes its outputs vary
    )(query, key, value)


def is_cudnn_forward(primitive, *_, **__) -> bool:
    """Rematerialization policy that saves what the backward pass needs of the kernel.

    JAX gives those values no name: this one knows their primitive.
    """
    return primitive.name.startswith("dot_product_attention_fwd")


def _check(query: jax.Array, shard_length: int, mask: AttentionMask) -> None:
    backend = 'model.attention_backend="cudnn"'
    head_dim = query.shape[-1]
    if mask.segment_ids is not None:
        raise ValueError(
            f"{backend} cannot keep the documents of a sequence apart (segment ids): "
            'set it to "xla"'
        )
    if shard_length != query.shape[1]:
        raise ValueError(
            f"{backend} cannot split a sequence over devices: set mesh.sequence to 1, "
            'or the backend to "xla"'
        )
    if head_dim > _MAX_HEAD_DIM or head_dim % _HEAD_DIM_STEP:
        raise ValueError(
            f"{backend} takes head sizes up to {_MAX_HEAD_DIM} in steps of {_HEAD_DIM_STEP}, not "
            f'{head_dim}: change model.num_heads, or set the backend to "xla"'
        )
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f'{backend} has no {query.dtype}: set model.dtype to "bfloat16", or the backend to '
            '"xla"'
        )
