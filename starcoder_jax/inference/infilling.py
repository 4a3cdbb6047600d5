"""Prompts that ask for what lies between a prefix and a suffix.

In the two orders that StarCoder's training knows (`data.fim`), where M follows:

    psm:  <fim_prefix> P <fim_suffix> S <fim_middle>
    spm:  <fim_prefix> <fim_suffix> S <fim_middle> P    (variant 2 of arXiv 2207.14255)

What stands around the file is written as the vocabulary's own training had it. StarCoder2 (arXiv
2402.19173, section 5) saw whole repositories, and the path as part of the file:

    <repo_name>R<file_sep>PATH1\\nCODE1<file_sep><fim_prefix>PATH\\nP<fim_suffix>S<fim_middle>

StarCoder (arXiv 2305.06161) saw single files, with names before the code:

    <fim_prefix><reponame>R<filename>PATH\\nP<fim_suffix>S<fim_middle>
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from starcoder_jax.data.documents import Document, read_file
from starcoder_jax.data.tokenizer import Tokenizer

ORDERS = ("psm", "spm")
_FEWEST = 2  # tokens of prefix and suffix together, below which no prompt is worth asking


@dataclasses.dataclass(frozen=True)
class FimTokens:
    """Ids of the special tokens that stand before prefix, middle and suffix."""

    prefix: int
    middle: int
    suffix: int


@dataclasses.dataclass(frozen=True)
class Repository:
    """What surrounds a file to fill in; all of it ordinary text.

    Attributes:
        name: of the repository, such as "owner/project".
        path: of the file within it.
        files: path and text of other files, the nearest first.
    """

    name: str
    path: str
    files: Sequence[tuple[str, str]] = ()


def fim_tokens(tokenizer: Tokenizer) -> FimTokens:
    """The infilling tokens of a vocabulary: `<fim_prefix>`, or SantaCoder's `<fim-prefix>`.

    Raises:
        ValueError: it has none.
    """
    for mark in "_-":
        names = [f"<fim{mark}{part}>" for part in ("prefix", "middle", "suffix")]
        if all(name in tokenizer.special_tokens for name in names):
            return FimTokens(*map(tokenizer.special_id, names))
    raise ValueError(
        "the vocabulary has no infilling tokens, such as <fim_prefix>: the model can only go on "
        "with a prompt"
    )


def infill_prompt(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    *,
    order: str = "psm",
    max_tokens: int | None = None,
    context: Repository | None = None,
    tokens: FimTokens | None = None,
) -> np.ndarray:
    """The prompt after which a model writes what belongs between prefix and suffix.

    Where it would be longer than `max_tokens`, files of the context go first: those stay that fit
    beside all nearer ones. Then goes what is farthest from the gap: prefix and suffix get half the
    room each, or what the other one leaves. Names of repository and file stay.

    Args:
        tokenizer: of the model.
        prefix, suffix: ordinary text around the gap; either may be empty.
        order: "psm" or "spm".
        max_tokens: of the prompt; None: no limit.
        context: of the file.
        tokens: None: those that `fim_tokens` finds.

    Returns:
        int32 [n], n <= max_tokens.

    Raises:
        ValueError: there is no such order, no room, or no token in the vocabulary for it.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is unknown: give {' or '.join(map(repr, ORDERS))}")
    tokens = tokens or fim_tokens(tokenizer)
    ahead, separator, names = _surroundings(tokenizer, context)
    # The path and the code that follows are one text, and so are tokenized together.
    title = "" if context is None else f"{context.path}\n"
    before, after = tokenizer.encode(title + prefix), tokenizer.encode(suffix)
    marks = 3 + len(ahead) + len(separator) + len(names)
    room = (math.inf if max_tokens is None else max_tokens) - marks
    left = room - len(before) - len(after)
    if left < 0:
        before, after = _nearest(tokenizer, title, prefix, after, room)
    before = [*names, *before]
    if order == "psm":
        file = [tokens.prefix, *before, tokens.suffix, *after, tokens.middle]
    else:
        file = [tokens.prefix, tokens.suffix, *after, tokens.middle, *before]
    files = () if context is None else context.files
    others = _others(tokenizer, files, separator, left)
    return np.array([*ahead, *others, *separator, *file], np.int32)


def split_at(text: str, cursor: str) -> tuple[str, str]:
    """The text before and after LINE:COLUMN, both counted from 1, columns in characters.

    Raises:
        ValueError: there is no such place in the text.
    """
    line, colon, column = cursor.partition(":")
    if not (colon and line.isdecimal() and column.isdecimal()):
        raise ValueError(f"cursor {cursor!r} must be LINE:COLUMN, such as 12:5")
    # As editors count: form feeds and the like, of which Python's files have some, end no line.
    lines = re.split("(?<=\n)", text)
    row, place = int(line) - 1, int(column) - 1
    if not 0 <= row < len(lines):
        raise ValueError(f"cursor {cursor} is outside the file of {len(lines)} lines")
    length = len(lines[row].rstrip("\n"))
    if not 0 <= place <= length:
        raise ValueError(f"cursor {cursor} is outside line {row + 1}, of {length} characters")
    offset = sum(map(len, lines[:row])) + place
    return text[:offset], text[offset:]


def read_repository(
    folder: str | os.PathLike, file: str | os.PathLike, max_bytes: int
) -> Repository:
    """What surrounds a file: the other files of its kind in a folder, and their names.

    The fewer steps lead from folder to folder, the nearer a file is. Hidden files and folders are
    skipped, and what training data would not hold (`data.documents`).

    Args:
        folder: of the repository, which bears its name.
        file: within it.
        max_bytes: of the other files; those that do not fit beside all nearer ones are not read.

    Raises:
        ValueError: the file is not in the folder.
    """
    root = pathlib.Path(folder).resolve()
    try:
        path = pathlib.Path(file).resolve().relative_to(root)
    except ValueError:
        raise ValueError(f"the file {file} is not in the folder {folder}") from None

    def distance(other: pathlib.Path) -> tuple[int, str]:
        return len({*path.parents} ^ {*other.parents}), other.as_posix()

    files = []
    for other in sorted(_alike(root, path.suffix), key=distance):
        size = (root / other).stat().st_size
        if other == path or size > max_bytes:
            continue
        name = other.as_posix()
        document = read_file(str(root / other), path=name, repository=root.name, license="unknown")
        if isinstance(document, Document):
            files.append((name, document.text))
            max_bytes -= size
    return Repository(root.name, path.as_posix(), tuple(files))


def _alike(root: pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """The regular files with this suffix below the root, relative to it."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = pathlib.Path(folder, name)
            if name.startswith(".") or path.suffix != suffix:
                continue
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(root)


def _surroundings(
    tokenizer: Tokenizer, context: Repository | None
) -> tuple[list[int], list[int], list[int]]:
    """Tokens before all files, those before each file, and those before the path in its prefix."""
    if context is None:
        return [], [], []
    special = tokenizer.special_tokens
    name = tokenizer.encode(context.name).tolist()
    if "<repo_name>" in special and "<file_sep>" in special:
        return [special["<repo_name>"], *name], [special["<file_sep>"]], []
    if "<reponame>" in special and "<filename>" in special:
        if context.files:
            raise ValueError(
                "the vocabulary has no token <file_sep>: the model knows the names of repository "
                "and file, but no other files; leave them out"
            )
        return [], [], [special["<reponame>"], *name, special["<filename>"]]
    raise ValueError(
        "the vocabulary has no tokens for the names of repository and file, such as <repo_name>: "
        "leave out the context"
    )


def _nearest(
    tokenizer: Tokenizer, title: str, prefix: str, after: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """The title, then what fits before and after the gap."""
    top, before = tokenizer.encode(title), tokenizer.encode(prefix)
    room -= len(top)
    if room < _FEWEST:
        raise ValueError(
            f"{max(room, 0)} tokens are left for the text around the gap: ask for fewer new tokens"
            + (" or give no context" if title else "")
        )
    after = after[: max(room // 2, room - len(before))]
    before = before[max(len(before) + len(after) - room, 0) :]
    return np.concatenate([top, before]), after


def _others(
    tokenizer: Tokenizer,
    files: Sequence[tuple[str, str]],
    separator: Sequence[int],
    room: float,
) -> list[int]:
    """Tokens of the other files that fit; the nearest ones come last."""
    others: list[int] = []
    for path, text in files:
        other = [*separator, *tokenizer.encode(f"{path}\n{text}").tolist()]
        if len(others) + len(other) <= room:
            others = other + others
    return others
