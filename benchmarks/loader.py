"""Tokens a second that one process loads, with and without fill-in-the-middle.

    python benchmarks/loader.py --tokenizer=tokenizer.json --seconds=5

The data are the Python standard library's own files, in a token store made for the occasion. "one
thread" calls `Loader.batch` step by step, "prefetched" iterates over `Loader.batches`. The
variants alternate so that all see the same machine; printed are the median over the repeats, the
slowest and the fastest. Tokens are those trained on: rows times sequence length.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from starcoder_jax.data.fim import FimConfig
from starcoder_jax.data.loader import Loader
from starcoder_jax.data.store import StoreWriter, TokenStore
from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer

PACKAGES = ("grain", "array_record", "tokenizers", "numpy")
MAX_FILES = 600
TRAINED_VOCAB_SIZE = 8192


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", help="vocabulary; default: a small one, trained here")
    parser.add_argument("--seconds", type=float, default=3, help="of one repeat of one variant")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, default=4096, help="sequence length")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--read_workers", type=int, default=0, help="for the prefetched variants")
    return parser.parse_args()


def read_texts() -> list[str]:
    paths = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    own = [path for path in paths if path.parent.name != "site-packages"]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in own[:MAX_FILES])
    return [text for text in texts if text]


def make_store(directory: str, texts: list[str], tokenizer: Tokenizer) -> TokenStore:
    def documents() -> Iterator[tuple[dict, np.ndarray]]:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            data = text.encode()
            info = {"id": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            info |= {"path": "", "repository": "", "license": ""}
            yield info, np.append(ids, tokenizer.end_of_text_id)

    with StoreWriter(directory, tokenizer) as writer:
        writer.write_split("library", "train", documents())
        writer.finish({})
    return TokenStore(directory)


def step_by_step(loader: Loader) -> Iterator[np.ndarray]:
    step = 0
    while True:
        yield loader.batch(step)
        step += 1


def tokens_per_second(batches: Iterator[np.ndarray], seconds: float) -> float:
    next(batches)  # opens files, starts threads and processes
    tokens, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        rows = next(batches)
        tokens += rows.shape[0] * (rows.shape[1] - 1)
    return tokens / (time.perf_counter() - start)


def main() -> None:
    args = parse_arguments()
    texts = read_texts()
    if args.tokenizer:
        tokenizer = load_tokenizer(args.tokenizer)
    else:
        tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=TRAINED_VOCAB_SIZE)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    print(f"Python {platform.python_version()}, {', '.join(versions)}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(os.path.join(folder, "store"), texts, tokenizer)
        loaders = {
            name: Loader(
                store,
                rates={"library": 1},
                batch_size=args.batch,
                sequence_length=args.length,
                seed=0,
                fim=fim,
                read_workers=args.read_workers,
            )
            for name, fim in {"none": None, "0.5": FimConfig(rate=0.5)}.items()
        }
        print(
            f"{store.split('library', 'train').num_tokens:,} tokens of {len(texts)} files, "
            f"vocabulary of {tokenizer.vocab_size}, sequence length {args.length}, "
            f"batch {args.batch}, {args.repeats} repeats of {args.seconds:g} s\n"
        )
        report(measure(loaders, args.seconds, args.repeats))


def measure(
    loaders: dict[str, Loader], seconds: float, repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Returns tokens a second of each repeat, by reading and fill-in-the-middle rate."""
    readings = {"one thread": step_by_step, "prefetched": lambda loader: loader.batches(0)}
    speeds: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for reading, read in readings.items():
            for rate, loader in loaders.items():
                with contextlib.closing(read(loader)) as batches:
                    speed = tokens_per_second(batches, seconds)
                speeds.setdefault((reading, rate), []).append(speed)
    return speeds


def report(speeds: dict[tuple[str, str], list[float]]) -> None:
    print("| reading | FIM rate | tokens/s, median | slowest | fastest |")
    print("|---|---|---|---|---|")
    for (reading, rate), values in speeds.items():
        figures = statistics.median(values), min(values), max(values)
        print(f"| {reading} | {rate} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
