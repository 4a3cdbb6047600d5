"""Which key a query may see, as a value instead of a tensor."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Causal attention, optionally within a window and within segments.

    Every attention backend lowers this itself; one that cannot express a field raises.

    Attributes:
        window: number of keys a query sees, itself included: query i sees key j iff
            i - window < j <= i. None: every key before it.
        segment_ids: int32 [batch, length]; a query sees keys of its own segment only. None: one
            segment. StarCoder's own training used None: documents packed into one sequence see
            each other.
    """

    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    segment_ids: jax.Array | None = None

    def block(self, queries: slice, keys: slice) -> jax.Array | None:
        """The mask of a rectangle of the score matrix.

        Args:
            queries, keys: static ranges of positions, with integer start and stop.

        Returns:
            bool [batch or 1, queries, keys], True where the key is visible; None if all are.
        """
        query = jnp.arange(queries.start, queries.stop)[:, None]
        key = jnp.arange(keys.start, keys.stop)[None, :]
        visible = None
        if keys.stop - 1 > queries.start:
            visible = _both(visible, (key <= query)[None])
        if self.window is not None and keys.start <= queries.stop - 1 - self.window:
            visible = _both(visible, (key > query - self.window)[None])
        if self.segment_ids is not None:
            query_segments = self.segment_ids[:, queries.start : queries.stop]
            key_segments = self.segment_ids[:, keys.start : keys.stop]
            visible = _both(visible, query_segments[:, :, None] == key_segments[:, None, :])
        return visible

    def first_visible(self, query: int) -> int:
        """The smallest key position that a query can see, segments aside."""
        return 0 if self.window is None else max(0, query - self.window + 1)


def _both(first: jax.Array | None, second: jax.Array) -> jax.Array:
    return second if first is None else first & second
