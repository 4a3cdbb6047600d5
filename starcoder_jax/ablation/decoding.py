"""Speed and memory of decoding with a trained model, as one of an ablation's measurements.

Run by `starcoder_jax.ablate` in a process of its own, where the task decoding is asked for.
"""

import argparse
import pathlib
import statistics
import time

import numpy as np

from starcoder_jax.command import one_line_errors
from starcoder_jax.evals.records import complete, write
from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.sampling import Sampling
from starcoder_jax.model.decoder import Decoder, unstacked
from starcoder_jax.training.load import load_model

_REPEATS = 20


class _AnyText:
    """Stands for a vocabulary without special tokens, so that all sequences are as long."""

    special_tokens = {}  # noqa: RUF012 (read only)

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Of any ids."""
        return b"."


def measure(
    model: Decoder, sequences: int, prompt_tokens: int, new_tokens: int
) -> dict[str, float]:
    """Decodes random prompts with the most likely tokens; the first round, which compiles, is left.

    Args:
        model: on one device; cannot be used by itself afterwards.
        sequences: at once.
        prompt_tokens: of each prompt.
        new_tokens: of each completion.

    Returns:
        `tokens_per_second`, new tokens of all sequences, prompts included in the time, median of
        twenty rounds; and `cache_bytes`, memory of all keys and values.

    Raises:
        ValueError: the model has fewer learned positions.
    """
    vocabulary = model.config.vocab_size
    length = prompt_tokens + new_tokens
    engine = Engine(
        unstacked(model, release=True), _AnyText(vocabulary), slots=sequences, max_length=length
    )
    prompts = np.random.default_rng(0).integers(0, vocabulary, (sequences, prompt_tokens), np.int32)
    seconds = []
    for _ in range(1 + _REPEATS):
        for prompt in prompts:
            engine.submit(prompt, Sampling(max_tokens=new_tokens))
        start = time.perf_counter()
        engine.run()
        seconds.append(time.perf_counter() - start)
    return {
        "tokens_per_second": sequences * new_tokens / statistics.median(seconds[1:]),
        "cache_bytes": engine.cache_bytes,
    }


def main() -> None:
    """Runs the measurement, and writes its result as `starcoder_jax.evaluate` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--new_tokens", type=int, default=128)
    args = vars(parser.parse_args())
    output, checkpoint = args.pop("output"), args.pop("checkpoint")
    with one_line_errors("decoding"):
        metrics = measure(load_model(checkpoint)[0], **args)
        write(output, complete({"task": "decoding", "metrics": metrics, "settings": args}))


if __name__ == "__main__":
    main()
