"""Keys and values of the tokens before, so that decoding runs one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.spec import Spec

_HIDDEN = jnp.finfo(jnp.float32).min

KeysAndValues = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a batch of rows has seen; a value that goes in and comes out.

    A ring: position p of a row is kept at p modulo the capacity. With a sliding window no more than
    the window is ever kept, and with multi-query attention one head.

    Attributes:
        layers: keys and values, [batch, kv_heads, capacity, head_dim] each: a pair with a leading
            axis of layers, or a pair for each layer, as the decoder has them.
        lengths: int32 [batch], tokens that each row has seen: the position of its next one.
    """

    layers: KeysAndValues | tuple[KeysAndValues, ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """Positions that a row keeps."""
        return jax.tree.leaves(self.layers)[0].shape[-2]

    @property
    def nbytes(self) -> int:
        """Memory that keys and values take, over all devices."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.layers))

    def positions(self) -> jax.Array:
        """The position that is at each place once the next token is in; int32 [batch, capacity].

        It is negative where there is nothing yet.
        """
        newest = self.lengths[:, None]
        return newest - (newest - jnp.arange(self.capacity)) % self.capacity

    def insert(self, rows: jax.Array, prompts: "Prompts") -> "Cache":
        """Puts prompts into rows of the cache, in place of what is there.

        Args:
            rows: int32 [n]; a row that the cache does not have is left out.
            prompts: n of them.
        """
        last = prompts.lengths[:, None] - 1
        place = last - (last - jnp.arange(self.capacity)) % self.capacity  # [n, capacity]

        def put(kept, new):  # [..., batch, k, capacity, h], [..., n, t, k, h]
            index = jnp.maximum(place, 0)[:, :, None, None]
            new = jnp.take_along_axis(new, jnp.expand_dims(index, range(new.ndim - 4)), axis=-3)
            new = jnp.swapaxes(new, -2, -3).astype(kept.dtype)  # [..., n, k, capacity, h]
            return kept.at[..., rows, :, :, :].set(new, mode="drop")

        layers = jax.tree.map(put, self.layers, prompts.layers)
        return Cache(layers, self.lengths.at[rows].set(prompts.lengths, mode="drop"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Keys and values of whole prompts.

    Attributes:
        layers: as in `Cache`, but [batch, length, kv_heads, head_dim] each.
        lengths: int32 [batch], how many of the tokens are the prompt; the others are padding.
    """

    layers: KeysAndValues | tuple[KeysAndValues, ...]
    lengths: jax.Array

    def take(self, index: jax.Array) -> "Prompts":
        """The prompts at these places, int32 [n]; one may be there several times."""
        layers = jax.tree.map(lambda x: jnp.take(x, index, axis=-4), self.layers)
        return Prompts(layers, self.lengths[index])


def empty_cache(
    config: DecoderConfig, batch: int, max_length: int, spec: Spec, *, stacked: bool
) -> Cache:
    """A cache that nothing is in.

    Args:
        config: of the model.
        batch: rows.
        max_length: tokens that a row ever sees.
        spec: of the model.
        stacked: whether the decoder's layers are.

    Returns:
        A cache in config.dtype, with a capacity of `max_length` or the window, which is shorter.
    """
    capacity = min(max_length, config.sliding_window or max_length)
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    axes = ("batch", "kv_heads", None, "head_dim")
    if stacked:
        shape, axes = (config.num_layers, *shape), ("layers", *axes)

    def zeros():
        return jnp.zeros(shape, config.dtype, out_sharding=spec(*axes))

    pairs = tuple((zeros(), zeros()) for _ in range(1 if stacked else config.num_layers))
    lengths = jnp.zeros(batch, jnp.int32, out_sharding=spec("batch"))
    return Cache(pairs[0] if stacked else pairs, lengths)


def written(kept: KeysAndValues, key: jax.Array, value: jax.Array, lengths: jax.Array):
    """A layer's keys and values with one more token.

    Args:
        kept: [batch, kv_heads, capacity, head_dim] each.
        key, value: [batch, 1, kv_heads, head_dim].
        lengths: int32 [batch], its position.
    """

    def write(kept, new):
        place = lengths % kept.shape[2]
        new = jnp.swapaxes(new, 1, 2).astype(kept.dtype)  # [b, k, 1, h]
        return jax.vmap(lambda row, x, i: jax.lax.dynamic_update_slice(row, x, (0, i, 0)))(
            kept, new, place
        )

    return write(kept[0], key), write(kept[1], value)


def cached_attention(
    query: jax.Array,
    kept: KeysAndValues,
    positions: jax.Array,
    lengths: jax.Array,
    window: int | None,
    slopes: jax.Array | None,
) -> jax.Array:
    """Attention of one token a row over what the cache keeps, this token included.

    Args:
        query: [batch, 1, kv_heads, groups, head_dim].
        kept: keys and values, [batch, kv_heads, capacity, head_dim] each.
        positions: int32 [batch, capacity], of the keys; negative: nothing is there.
        lengths: int32 [batch], the position of the query.
        window: keys that a query sees.
        slopes: float32 [kv_heads, groups], ALiBi's.

    Returns:
        Like query. Scores and softmax are float32.
    """
    keys, values = kept
    scores = jnp.einsum("bkgh,bksh->bkgs", query[:, 0], keys, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    distance = positions - lengths[:, None]  # [b, s], of the keys that are visible at most 0
    if slopes is not None:
        scores = scores + slopes[:, :, None] * distance[:, None, None].astype(jnp.float32)
    visible = positions >= 0
    if window is not None:
        visible &= distance > -window
    scores = jnp.where(visible[:, None, None], scores, _HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bkgs,bksh->bkgh", weights, values)[:, None].astype(query.dtype)
