"""Prepares a corpus: reads, filters, tokenizes and stores it, once."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping

from starcoder_jax.data.config import DataConfig, TokenizerConfig
from starcoder_jax.data.corpus import SPLITS, Corpus, gather
from starcoder_jax.data.folders import exclusive_folder
from starcoder_jax.data.progress import Progress
from starcoder_jax.data.store import MANIFEST, StoreWriter, TokenStore, read_manifest
from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, directory: str | os.PathLike
) -> TokenStore:
    """Makes sure that a token store lies in a directory, and opens it.

    A store that was made from the same values is returned at once; changes of the sources' content
    since then are not looked for. Otherwise the corpus is read, filtered and tokenized by the seqio
    tasks of `starcoder_jax.data.tasks`, and the store appears when it is whole. Of several
    processes that prepare the same directory, one does it and the others wait. Progress and what
    became of the texts go to stderr.

    Args:
        data: Which documents. `rates`, `directory` and `read_workers` do not shape the store.
        tokenizer: The vocabulary to use, or how to train one on the training documents.
        directory: Where the store lies, or shall lie.

    Raises:
        ValueError: The store there was made from other values (which are named); a source or the
            tokenizer does not exist; or a source has no document to train on.
    """
    directory = pathlib.Path(directory).resolve()
    given = load_tokenizer(tokenizer.path) if tokenizer.path is not None else None
    config = _config(data, tokenizer, given)
    if _is_prepared(directory, config):
        return TokenStore(directory)
    with exclusive_folder(directory.with_name(directory.name + ".corpus")) as folder:
        # Another process may have prepared it while this one waited for the folder.
        if not _is_prepared(directory, config):
            _build(data, tokenizer, given, config, directory, folder)
    return TokenStore(directory)


def _config(data: DataConfig, tokenizer: TokenizerConfig, given: Tokenizer | None) -> dict:
    """Returns the values that shape a store, as they are in its manifest."""
    trained = {name: getattr(tokenizer, name) for name in ("kind", "vocab_size", "train_bytes")}
    return {
        "sources": dict(data.sources),
        "extensions": list(data.extensions),
        "max_source_bytes": data.max_source_bytes,
        "heldout_fraction": data.heldout_fraction,
        "tokenizer": {"fingerprint": given.fingerprint} if given else trained,
    }


def _is_prepared(directory: pathlib.Path, config: Mapping) -> bool:
    if not (directory / MANIFEST).exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(
                f"{directory} is in the way: it is no token store; name another directory for the "
                "data, or remove it"
            )
        return False
    differing = sorted(_differing_keys(read_manifest(directory).get("config", {}), config))
    if differing:
        raise ValueError(
            f"the token store at {directory} was made from other values of {', '.join(differing)}: "
            "restore them, name another directory for the data, or remove the store"
        )
    return True


def _differing_keys(old: Mapping, new: Mapping) -> Iterator[str]:
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if key == "tokenizer" and before and before.keys() == after.keys():
            yield from (f"tokenizer.{name}" for name in _differing_keys(before, after))
        elif before != after:
            yield key


def _build(
    data: DataConfig,
    tokenizer_config: TokenizerConfig,
    tokenizer: Tokenizer | None,
    config: Mapping,
    directory: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    with Progress() as progress:
        corpus = gather(data, folder, progress.reading)
        progress.sources(corpus.counts)
        if tokenizer is None:
            kind, size = tokenizer_config.kind, tokenizer_config.vocab_size
            progress.message(f"training a {kind} vocabulary of {size:,}")
            texts = _sample(corpus, tokenizer_config.train_bytes)
            tokenizer = train_tokenizer(texts, kind=kind, vocab_size=size)
        with StoreWriter(directory, tokenizer) as writer:
            _write(corpus, tokenizer, data.rates, writer, progress)
            sources = {task: vars(count) for task, count in corpus.counts.items()}
            writer.finish({"config": config, "sources": sources})


def _sample(corpus: Corpus, train_bytes: int) -> Iterator[str]:
    """Yields training documents of every task, in proportion to its size."""
    total = sum(count.bytes for count in corpus.counts.values())
    for task, count in corpus.counts.items():
        wanted = train_bytes * count.bytes / total
        for document in corpus.documents(task, "train"):
            if wanted <= 0:
                break
            wanted -= document.num_bytes
            yield document.text


@contextlib.contextmanager
def _discard_stderr() -> Iterator[None]:
    """Keeps off stderr what TensorFlow's libraries write there about the machine when loaded.

    They write before any setting of theirs applies. An exception still passes as it is.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _write(
    corpus: Corpus,
    tokenizer: Tokenizer,
    rates: Mapping[str, float],
    writer: StoreWriter,
    progress: Progress,
) -> None:
    # TensorFlow comes in here, and only here.
    with _discard_stderr():
        from starcoder_jax.data import tasks

    with _discard_stderr():
        tasks.leave_accelerators_alone()
    tasks.register(corpus, tokenizer, rates)
    for task, count in corpus.counts.items():
        for split in SPLITS:
            documents = tasks.tokenized_documents(task, split)
            summary = writer.write_split(
                task, split, progress.tokenizing(f"{task} {split}", count.splits[split], documents)
            )
            progress.message(
                f"{task} {split}: {summary['documents']:,} documents, {summary['tokens']:,} tokens"
            )
