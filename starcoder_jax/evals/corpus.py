"""Texts to measure a model on, and lines of them to fill in."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from starcoder_jax.data.documents import Document, Dropped, read_file
from starcoder_jax.data.sources import read_source
from starcoder_jax.data.store import MANIFEST, TokenStore
from starcoder_jax.evals.problems import Row, fingerprint

_LONGEST_LINE = 120  # to fill in, in characters: nobody could guess longer ones


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts in a fixed order.

    Attributes:
        documents: the texts.
        dropped: how many were left out, by reason: those that training would leave out as well.
    """

    documents: list[Document]
    dropped: Counter[str]

    @property
    def sha256(self) -> str:
        """Of the texts and their order, in hex."""
        return fingerprint([document.id for document in self.documents])


def read_corpus(path: pathlib.Path, limit: int | None = None) -> Corpus:
    """Reads texts.

    Args:
        path: a token store, whose held-out documents are read in stored order; a folder, all of
            whose text files are read in the order of their paths; a `.jsonl`, `.jsonl.gz` or
            `.parquet` file with a text in each row; or one text file.
        limit: so many texts at most; None: all.

    Raises:
        ValueError: there is nothing to read.
    """
    if (path / MANIFEST).is_file():
        found = _held_out(TokenStore(path))
    elif path.is_dir():
        found = sorted(read_source(f"folder:{path}", ("",)), key=_path)
    elif not path.is_file():
        raise ValueError(f"{path}: there is no such file or folder")
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        found = read_source(f"jsonl:{_literal(path)}", ())
    elif path.name.endswith(".parquet"):
        found = read_source(f"parquet:{_literal(path)}", ())
    else:
        found = [read_file(str(path), path=path.name, repository="unknown", license="unknown")]
    documents: list[Document] = []
    dropped: Counter[str] = Counter()
    for document in found:
        if len(documents) == limit:
            break
        if isinstance(document, Dropped):
            dropped[document.reason] += 1
        else:
            documents.append(document)
    if not documents:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise ValueError(f"{path}: has no text to measure on ({reasons or 'it is empty'})")
    return Corpus(documents, dropped)


def held_out_lines(documents: Sequence[Document], count: int, seed: int) -> list[Row]:
    """Rows for the task `fim`: lines drawn at random, from as many documents as there are.

    Args:
        documents: to draw from.
        count: lines at most.
        seed: of the draw.

    Raises:
        ValueError: there is none that is neither blank nor too long.
    """
    rng = np.random.default_rng(seed)
    candidates = []
    for document in documents:
        lines = document.text.split("\n")
        good = [index for index, line in enumerate(lines) if _is_good(line)]
        # The n-th line of each document comes before the n+1-th of any.
        for turn, index in enumerate(rng.permutation(good)[:count].tolist()):
            candidates.append((turn, rng.random(), document, lines, index))
    if not candidates:
        raise ValueError(f"the corpus has no line of at most {_LONGEST_LINE} characters to fill in")
    candidates.sort(key=lambda candidate: candidate[:2])
    return [_row(*candidate[2:]) for candidate in candidates[:count]]


def _row(document: Document, lines: Sequence[str], index: int) -> Row:
    return {
        "task_id": f"{document.id[:12]}:{document.path}:{index + 1}",
        "prefix": "".join(f"{line}\n" for line in lines[:index]),
        "middle": lines[index],
        "suffix": "".join(f"\n{line}" for line in lines[index + 1 :]),
        "is_line": True,
    }


def _is_good(line: str) -> bool:
    return bool(line.strip()) and len(line) <= _LONGEST_LINE


def _held_out(store: TokenStore) -> Iterator[Document]:
    for task in store.tasks:
        split = store.split(task, "validation")
        for index in range(split.num_documents):
            info = split.document_info(index)
            text = store.tokenizer.decode(split.document_tokens(index))
            yield Document(text, info["path"], info["repository"], info["license"])


def _path(document: Document | Dropped) -> str:
    return document.path if isinstance(document, Document) else ""


def _literal(path: pathlib.Path) -> str:
    """A pattern that matches this path alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
