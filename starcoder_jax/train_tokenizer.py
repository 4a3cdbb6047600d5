"""Trains a tokenizer on source code: `python -m starcoder_jax.train_tokenizer --help`."""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer

_BATCH = 256


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train_tokenizer: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = _Parser(
        prog="python -m starcoder_jax.train_tokenizer",
        description="Trains a vocabulary with StarCoder2's special tokens at the ids 0 to 37.",
    )
    parser.add_argument(
        "corpus",
        nargs="+",
        metavar="CORPUS",
        help="a source file, a folder of them, or a *.jsonl whose rows hold 'text' or 'content'",
    )
    kinds = ("bpe", "sentencepiece")
    parser.add_argument("--kind", choices=kinds, default="bpe", help="(%(default)s)")
    parser.add_argument("--vocab_size", type=int, default=49152, help="ids in all (%(default)s)")
    parser.add_argument("--output", required=True, help="directory to write the tokenizer into")
    parser.add_argument(
        "--extensions",
        default=".py",
        help="which files inside folders to read, for example .py,.js (%(default)s); files that "
        "are not UTF-8 are left out",
    )
    flags = parser.parse_args(arguments)
    try:
        _run(flags)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def _run(flags: argparse.Namespace) -> None:
    output = pathlib.Path(flags.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output={output} is not a directory")
    if existing := [*output.glob("tokenizer.json"), *output.glob("*.model")]:
        raise ValueError(f"{existing[0]} exists already; give another --output or remove it")
    files = _files(flags.corpus, tuple(flags.extensions.split(",")))
    tokenizer = train_tokenizer(_texts(files), kind=flags.kind, vocab_size=flags.vocab_size)
    tokenizer.save(output)
    print(f"vocabulary size: {tokenizer.vocab_size}")
    print(f"bytes per token: {_bytes_per_token(tokenizer, _texts(files)):.3f}")
    print(f"written to: {output / tokenizer.file_name}")


def _files(corpus: Sequence[str], extensions: tuple[str, ...]) -> list[pathlib.Path]:
    files = []
    for path in map(pathlib.Path, corpus):
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.suffix in extensions and p.is_file()]
            if not found:
                raise ValueError(f"{path}: holds no {', '.join(extensions)} file")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder")
    return files


def _texts(files: Sequence[pathlib.Path]) -> Iterator[str]:
    for path in files:
        if path.suffix == ".jsonl":
            yield from _jsonl_texts(path)
            continue
        try:
            # As bytes: reading as text would turn every line end into \n.
            yield path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue


def _jsonl_texts(path: pathlib.Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                text = row["text"] if "text" in row else row["content"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise ValueError(
                    f"{path}:{number}: not a JSON object with a string 'text' or 'content'"
                )
            yield text


def _bytes_per_token(tokenizer: Tokenizer, texts: Iterator[str]) -> float:
    size = tokens = 0
    while batch := list(itertools.islice(texts, _BATCH)):
        encoded = tokenizer.encode_batch(batch)
        tokens += sum(map(len, encoded))
        size += sum(len(text.encode("utf-8", errors="replace")) for text in batch)
    return size / max(tokens, 1)


if __name__ == "__main__":
    sys.exit(main())
