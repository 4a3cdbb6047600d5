"""Greedy completion by running the whole sequence again for each token: exact, and simple.

For samples of a few dozen tokens, as in a training report.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starcoder_jax.model.decoder import Spec, unsharded

_BUCKET = 128  # buffers are multiples of this long, so that few lengths are compiled


def complete(
    graph: nnx.GraphDef,
    params: dict,
    prompt: np.ndarray,
    max_tokens: int,
    *,
    stop_ids: frozenset[int] = frozenset(),
    vocab_size: int | None = None,
    rows: int = 1,
    spec: Spec = unsharded,
) -> np.ndarray:
    """The most likely continuation, token by token.

    Args:
        graph, params: the model, as `nnx.split` and `nnx.to_pure_dict` give them.
        prompt: int32 [length], at least one token.
        max_tokens: tokens to add at most.
        stop_ids: generation ends before any of these.
        vocab_size: ids from here on are never chosen (rows of the table that pad the vocabulary).
        rows: size of the batch in which the one prompt is repeated; a mesh needs a multiple of the
            ways in which it splits the batch.
        spec: of the model.

    Returns:
        int32 [n], n <= max_tokens: the new tokens.
    """
    length = len(prompt) + max_tokens
    buffer = np.zeros((rows, -(-length // _BUCKET) * _BUCKET), np.int32)
    buffer[:, : len(prompt)] = prompt
    new = []
    for position in range(len(prompt), length):
        token = int(_next_token(graph, vocab_size, spec, params, buffer, position - 1))
        if token in stop_ids:
            break
        buffer[:, position] = token
        new.append(token)
    return np.array(new, np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _next_token(graph, vocab_size, spec, params, tokens, position):
    """The most likely token after `position` of row 0."""
    model = nnx.merge(graph, params)
    if (sharding := spec("batch", "length")) is not None:
        tokens = jax.reshard(tokens, sharding)
    hidden = model.hidden_states(tokens)  # [rows, buffer, embed]
    if sharding is not None:
        hidden = jax.reshard(hidden, jax.P(None, None, None))
    last = jax.lax.dynamic_index_in_dim(hidden[0], position, keepdims=False)  # [embed]
    replicated = None if sharding is None else jax.P(None)
    head = model.head.astype(last.dtype)
    logits = jnp.einsum("d,vd->v", last, head, out_sharding=replicated)
    return jnp.argmax(logits[:vocab_size])
