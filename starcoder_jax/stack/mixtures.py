"""The published corpus as seqio tasks, and the mixtures of the StarCoder models over them.

    names = register(directory, load_tokenizer(path))
    dataset = seqio.get_mixture_or_task("stack.starcoder2_17").get_dataset(
        {"targets": 4096}, split="train", shuffle=False
    )

A task is called `stack.COMPONENT`. Rates are natural: bytes of text, which the caps of
`format.max_language_bytes` have cut already.

This module imports TensorFlow.
"""

import functools
import pathlib
from collections.abc import Iterator

from starcoder_jax.data import published, tasks
from starcoder_jax.data.documents import Document
from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.stack.languages import LANGUAGE_SETS


def register(directory: str | pathlib.Path, tokenizer: Tokenizer) -> list[str]:
    """Registers a task for every component, and the mixtures.

    The mixture `stack` is of everything; `stack.starcoder`, `stack.starcoder2_17` and
    `stack.starcoder2_619` have the languages of those models (see `stack.languages`) and all
    documents that are no files.

    Args:
        directory: of the published corpus, in use for as long as the tasks are.
        tokenizer: makes the tokens.

    Returns:
        The names of the mixtures.

    Raises:
        ValueError: there is no published corpus.
    """
    there = published.components(directory)
    for name in there:
        documents = functools.partial(_documents, directory, name)
        tasks.add_task(f"{published.DATASET}.{name}", documents, ("train",), tokenizer)
    names = []
    for title, languages in {None: None, **LANGUAGE_SETS}.items():
        rates = {
            f"{published.DATASET}.{name}": float(entry.bytes)
            for name, entry in there.items()
            if languages is None or entry.language is None or entry.language in languages
        }
        if rates:
            names.append(published.DATASET if title is None else f"{published.DATASET}.{title}")
            tasks.add_mixture(names[-1], rates)
    return names


def _documents(directory: str | pathlib.Path, component: str, split: str) -> Iterator[Document]:
    del split
    return published.read_component(directory, component)
