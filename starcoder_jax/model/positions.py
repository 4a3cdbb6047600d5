"""How a position reaches attention: rotary embeddings and ALiBi slopes."""

import math

import jax
import jax.numpy as jnp


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation of each position and frequency.

    Frequencies are theta^(-2i/head_dim), i < head_dim/2 (Su et al. 2021, arXiv:2104.09864, §3.2.2).

    Args:
        positions: int32 [batch, length].

    Returns:
        Two float32 arrays [batch, length, head_dim / 2].
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[:, :, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + head_dim/2) of each head ("rotate half", as GPT-NeoX pairs them).

    Args:
        x: [batch, length, ..., head_dim].
        cos, sin: float32 [batch, length, head_dim / 2].

    Returns:
        An array like x; the arithmetic is done in float32.
    """
    heads = x.ndim - 3
    cos = cos.reshape(*cos.shape[:2], *[1] * heads, cos.shape[-1])
    sin = sin.reshape(*sin.shape[:2], *[1] * heads, sin.shape[-1])
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def alibi_slopes(num_heads: int) -> list[float]:
    """Slope of each head's linear distance penalty (Press et al. 2022, arXiv:2108.12409, §3).

    For a head count that is no power of two, the rest are every second slope of the next power, as
    in BLOOM.
    """

    def geometric(count: int) -> list[float]:
        base = 2.0 ** (-(2.0 ** -(math.log2(count) - 3)))
        return [base ** (i + 1) for i in range(count)]

    power = 2 ** int(math.log2(num_heads))
    return geometric(power) + geometric(2 * power)[::2][: num_heads - power]
