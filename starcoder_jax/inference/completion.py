"""Completing and infilling by the most likely token, one after the other.

The whole sequence is run again for each token: exact and simple, for a few dozen tokens.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starcoder_jax.data.fim import FimConfig
from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.model.decoder import Decoder

_BUCKET = 128  # buffers are multiples of this long, so that few lengths are compiled


def generate(
    model: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], *, max_tokens: int = 64
) -> list[str]:
    """Completes each prompt greedily, until a special token or `max_tokens`.

    Args:
        model: on one device.
        tokenizer: the model's.
        prompts: names of special tokens in them become those tokens.
        max_tokens: new tokens at most.

    Returns:
        The new text of each prompt.

    Raises:
        ValueError: a prompt is empty, or too long for the model's learned positions.
    """
    return [
        _complete_text(model, tokenizer, tokenizer.encode_prompt(prompt), max_tokens)
        for prompt in prompts
    ]


def infill(
    model: Decoder,
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    max_tokens: int = 64,
    fim: FimConfig = FimConfig(),  # noqa: B008 (frozen)
) -> str:
    """What greedily belongs between prefix and suffix, both ordinary text.

    Args:
        model, tokenizer, max_tokens: as for `generate`.
        prefix, suffix: the text around the gap.
        fim: names of the tokens.

    Raises:
        ValueError: the tokenizer has no infilling tokens, or the text is too long.
    """
    prompt = infill_prompt(tokenizer, fim, tokenizer.encode(prefix), tokenizer.encode(suffix))
    return _complete_text(model, tokenizer, prompt, max_tokens)


def infill_prompt(
    tokenizer: Tokenizer, fim: FimConfig, prefix: np.ndarray, suffix: np.ndarray
) -> np.ndarray:
    """Prefix-suffix-middle order, int32: the model goes on with the middle.

    Raises:
        ValueError: the tokenizer has no such tokens.
    """
    before, between, after = (
        [tokenizer.special_id(name)]
        for name in (fim.prefix_token, fim.suffix_token, fim.middle_token)
    )
    return np.concatenate([before, prefix, between, suffix, after]).astype(np.int32)


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


def _complete_text(model, tokenizer, prompt, max_tokens):
    stop_ids = frozenset(tokenizer.special_tokens.values())
    new = complete(model, prompt, max_tokens, stop_ids=stop_ids, num_ids=tokenizer.vocab_size)
    return tokenizer.decode(new)


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
