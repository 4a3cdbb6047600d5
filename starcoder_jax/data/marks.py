"""Special tokens at places of a text.

A mark is a mapping of `token`, the name of a special token, and `offset`, the byte of the UTF-8
text before which it stands. The text itself is ordinary, and can imitate no special token.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from starcoder_jax.data.tokenizer import Tokenizer

# StarCoder2 has these tokens for what was redacted; for StarCoder they are ordinary text.
_REDACTIONS = ("<NAME>", "<EMAIL>", "<KEY>", "<PASSWORD>")


def pieces(content: bytes, marks: Sequence[Mapping]) -> Iterator[tuple[str | None, bytes]]:
    """Splits a content at its marks: pairs of a special token, or None, and the text after it.

    The first pair has no token, and may have no text.
    """
    token, start = None, 0
    for mark in marks:
        yield token, content[start : mark["offset"]]
        token, start = mark["token"], mark["offset"]
    yield token, content[start:]


def joined(parts: Sequence[tuple[str | None, bytes]]) -> tuple[bytes, list[dict]]:
    """The content and the marks whose `pieces` are these."""
    marks, offset = [], 0
    for token, text in parts:
        if token is not None:
            marks.append({"offset": offset, "token": token})
        offset += len(text)
    return b"".join(text for _, text in parts), marks


def encode_marked(
    tokenizer: Tokenizer, texts: Sequence[str], marks: Sequence[Sequence[Mapping]]
) -> list[np.ndarray]:
    """The ids of marked texts, int32 [n] each, computed on all cores.

    Raises:
        ValueError: the vocabulary has no such special token.
    """
    parts = [
        _written_out(tokenizer, pieces(text.encode(), its)) if its else [(None, text)]
        for text, its in zip(texts, marks, strict=True)
    ]
    encoded = iter(tokenizer.encode_batch([text for its in parts for _, text in its]))
    ids = []
    for its in parts:
        rows = []
        for token, _ in its:
            if token is not None:
                rows.append(np.array([tokenizer.special_id(token)], np.int32))
            rows.append(next(encoded))
        ids.append(np.concatenate(rows))
    return ids


def _written_out(
    tokenizer: Tokenizer, parts: Iterator[tuple[str | None, bytes]]
) -> list[tuple[str | None, str]]:
    """Pieces as text; redactions for which the vocabulary has no token become a part of it."""
    written: list[tuple[str | None, str]] = []
    for token, content in parts:
        text = content.decode()
        if token in _REDACTIONS and token not in tokenizer.special_tokens:
            before, beginning = written.pop()
            written.append((before, beginning + token + text))
        else:
            written.append((token, text))
    return written
