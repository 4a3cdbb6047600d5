"""The most likely continuation of one prompt, without a cache.

The whole sequence is run again for each token. Nothing but the model is in memory, split in any way
that training splits it, also along the sequence: a sample during a run costs no second program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starcoder_jax.model.decoder import Decoder

_BUCKET = 128  # buffers are multiples of this long, so that few lengths are compiled


def complete(
    model: Decoder,
    prompt: np.ndarray,
    max_tokens: int,
    *,
    stop_ids: frozenset[int] = frozenset(),
    num_ids: int | None = None,
    rows: int = 1,
) -> np.ndarray:
    """The most likely continuation, token by token.

    Args:
        model: on one device or on the mesh in use.
        prompt: int32 [length], at least one token.
        max_tokens: tokens to add at most.
        stop_ids: generation ends before any of these.
        num_ids: ids from here on are never chosen: rows of the table that pad the vocabulary.
        rows: size of the batch in which the one prompt is repeated; a mesh needs a multiple of the
            ways in which it splits the batch.

    Returns:
        int32 [n], n <= max_tokens: the new tokens.

    Raises:
        ValueError: the prompt is empty, or too long for learned positions.
    """
    if not len(prompt):
        raise ValueError("the prompt is empty: give at least one token")
    length = len(prompt) + max_tokens
    buffer_length = -(-length // _BUCKET) * _BUCKET
    if model.config.positions == "learned":
        buffer_length = min(buffer_length, model.config.max_length)
        if length > buffer_length:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {max_tokens} new ones do not fit into the "
                f"model's {model.config.max_length} learned positions"
            )
    buffer = np.zeros((rows, buffer_length), np.int32)
    buffer[:, : len(prompt)] = prompt
    graph, params = nnx.split(model)
    new = []
    for position in range(len(prompt), length):
        token = int(_next_token(graph, num_ids, params, buffer, position - 1))
        if token in stop_ids:
            break
        buffer[:, position] = token
        new.append(token)
    return np.array(new, np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _next_token(graph, num_ids, params, tokens, position):
    """The most likely token after `position` of row 0."""
    model = nnx.merge(graph, params)
    on_mesh = model.spec("batch", "length")
    if on_mesh is not None:
        tokens = jax.reshard(tokens, on_mesh)
    hidden = model.hidden_states(tokens)  # [rows, buffer, embed]
    if on_mesh is not None:
        hidden = jax.reshard(hidden, jax.P(None, None, None))
    last = jax.lax.dynamic_index_in_dim(hidden[0], position, keepdims=False)  # [embed]
    logits = jnp.einsum(
        "d,vd->v",
        last,
        model.head.astype(last.dtype),
        preferred_element_type=jnp.float32,
        out_sharding=None if on_mesh is None else jax.P(None),
    )
    return jnp.argmax(logits[:num_ids])
