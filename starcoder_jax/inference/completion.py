"""Completing and infilling texts: the public functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.infilling import infill_prompt
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.model.decoder import Decoder

_SLOTS = 32
_BUCKET = 128  # of lengths, so that few are compiled


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    **sampling: Any,
) -> list[str]:
    """Completes each prompt, until a special token, a stop string or `max_tokens`.

    Args:
        model: on one device, or on the mesh in use; twice as fast with `sj.unstacked`.
        tokenizer: the model's.
        prompts: names of special tokens in them become those tokens.
        samples: completions of each prompt; they run it once.
        **sampling: fields of `inference.sampling.Sampling`, such as max_tokens=64, temperature=0.2
            or stop=("\\n\\n",). Without them the most likely tokens are taken.

    Returns:
        The new texts: all those of the first prompt, then of the next.

    Raises:
        ValueError: a prompt is empty, or too long for the model's learned positions; a field of
            `sampling` is out of range.
    """
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    return _complete(model, tokenizer, encoded, samples, Sampling(**sampling))


def infill(
    model: Decoder,
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    order: str = "psm",
    **sampling: Any,
) -> str:
    """What belongs between prefix and suffix, both ordinary text.

    Args:
        model, tokenizer, sampling: as for `generate`.
        prefix, suffix: the text around the gap.
        order: "psm" shows the model the prefix first, "spm" the suffix.

    Raises:
        ValueError: as `generate` does, or the tokenizer has no infilling tokens.
    """
    prompt = infill_prompt(tokenizer, prefix, suffix, order=order)
    return _complete(model, tokenizer, [prompt], 1, Sampling(**sampling))[0]


def _complete(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    samples: int,
    sampling: Sampling,
) -> list[str]:
    if not prompts:
        return []
    length = max(map(len, prompts)) + sampling.max_tokens
    room = -(-length // _BUCKET) * _BUCKET
    if model.config.positions == "learned":
        room = max(length, min(room, model.config.max_length))
    engine = Engine(model, tokenizer, slots=min(len(prompts) * samples, _SLOTS), max_length=room)
    completions = []
    for prompt in prompts:
        completions += engine.submit(prompt, sampling, samples=samples)
    engine.run()
    return [completion.text for completion in completions]
