"""Decoding beside transformers' `generate`: tokens a second by batch size, and memory of the cache.

    python benchmarks/decoding.py

A StarCoder2 of about 40 million random parameters, float32, with one key/value head (multi-query),
two (grouped-query) and as many as query heads (multi-head). Both sides hold the same parameters,
get the same random prompts, take the most likely tokens, and are timed in turns, prompts included.
The first run of each, in which programs are compiled, is not counted.

Wants the extra `parity`.
"""

import argparse
import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import starcoder_jax as sj
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.sampling import Sampling

KINDS = {"multi-query": 1, "grouped-query": 2, "multi-head": 8}  # key/value heads
BATCHES = (1, 8, 32)


class AnyText:
    """Stands for a vocabulary without special tokens: every sequence runs to its end."""

    special_tokens = {}  # noqa: RUF012 (read only)

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Of any ids."""
        return b"."


def make_models(kv_heads: int, shape: dict) -> tuple[sj.Decoder, transformers.PreTrainedModel]:
    """The same parameters, here and there."""
    config = transformers.Starcoder2Config(
        num_key_value_heads=kv_heads, bos_token_id=0, eos_token_id=0, sliding_window=None, **shape
    )
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        train_tokenizer(["text"] * 9, kind="bpe", vocab_size=297).save(pathlib.Path(folder))
        ours, _ = sj.load_model(folder)
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    return sj.unstacked(ours, release=True), theirs


def our_run(model: sj.Decoder, prompts: np.ndarray, new: int) -> tuple[Callable, int]:
    """What decodes once and gives the tokens; and the bytes of the cache."""
    batch, length = prompts.shape
    tokenizer = AnyText(model.config.vocab_size)
    engine = Engine(model, tokenizer, slots=batch, max_length=length + new)

    def run() -> np.ndarray:
        found = [engine.submit(prompt, Sampling(max_tokens=new))[0] for prompt in prompts]
        engine.run()
        return np.array([completion.token_ids for completion in found])

    return run, engine.cache_bytes


def their_run(model: transformers.PreTrainedModel, prompts: np.ndarray, new: int) -> Callable:
    """What decodes once and gives the tokens."""
    inputs = torch.tensor(prompts, dtype=torch.long)
    mask = torch.ones_like(inputs)

    def run() -> np.ndarray:
        with torch.inference_mode():
            output = model.generate(
                inputs, attention_mask=mask, do_sample=False, max_new_tokens=new
            )
        return output[:, prompts.shape[1] :].numpy()

    return run


def measure(runs: list[Callable], repeats: int) -> tuple[list[list[float]], list[np.ndarray]]:
    """Seconds of each of the repeats of each run, made in turns; and what the runs gave."""
    outputs = [run() for run in runs]
    seconds = [[] for _ in runs]
    for _ in range(repeats):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            seconds[index].append(time.perf_counter() - start)
    return seconds, outputs


def product_rates(size: int = 2048, repeats: int = 5) -> tuple[float, float]:
    """FLOP/s of a product of float32 matrices, here and in PyTorch: what arithmetic allows."""
    ours, theirs = jnp.ones((size, size)), torch.ones(size, size)
    product = jax.jit(jnp.matmul)
    runs = [lambda: np.asarray(product(ours, ours)), lambda: theirs @ theirs]
    seconds, _ = measure(runs, repeats)
    return tuple(2 * size**3 / statistics.median(side) for side in seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt, and new ones")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, as a test")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    args = parser.parse_args()
    shape = dict(
        vocab_size=49152,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=2048,
    )
    if args.tiny:
        shape |= dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, JAX {jax.__version__} on "
        f"{jax.default_backend()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {args.tokens} tokens of prompt and {args.tokens} new ones"
    )
    rates = [rate / 1e9 for rate in product_rates()]
    print(f"product of matrices: {rates[0]:.0f} GFLOP/s, PyTorch {rates[1]:.0f}")
    rows = []
    for kind, kv_heads in KINDS.items():
        ours, theirs = make_models(kv_heads, shape)
        parameters = sum(p.numel() for p in theirs.parameters())
        for batch in BATCHES:
            rng = np.random.default_rng(batch)
            prompts = rng.integers(0, shape["vocab_size"], (batch, args.tokens)).astype(np.int32)
            run, cache_bytes = our_run(ours, prompts, args.tokens)
            seconds, outputs = measure([run, their_run(theirs, prompts, args.tokens)], args.repeats)
            rates = [[batch * args.tokens / s for s in side] for side in seconds]
            medians = [statistics.median(side) for side in rates]
            row = {
                "kind": kind,
                "parameters": parameters,
                "batch": batch,
                "cache_bytes": cache_bytes,
                "ours": rates[0],
                "transformers": rates[1],
                "ratio": medians[0] / medians[1],
                "same_tokens": float(np.mean(outputs[0] == outputs[1])),
            }
            rows.append(row)
            print(
                f"{kind}, {parameters / 1e6:.1f} M, batch {batch}: "
                f"{medians[0]:.1f} tokens/s ({min(rates[0]):.1f} to {max(rates[0]):.1f}), "
                f"transformers {medians[1]:.1f} ({min(rates[1]):.1f} to {max(rates[1]):.1f}), "
                f"{row['ratio']:.2f} times; cache {cache_bytes / 2**20:.2f} MiB; "
                f"{row['same_tokens']:.1%} of the tokens are the same",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
