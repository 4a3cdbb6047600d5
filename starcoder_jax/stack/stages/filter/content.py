"""Measures of a file's content that filters go by. Each takes time linear in the content."""

import re2

# StarCoder2's patterns of encoded data (arXiv:2402.19173, section 3): base64, hexadecimal bytes
# and escaped code points.
_ENCODED = tuple(
    re2.compile(pattern)
    for pattern in (
        rb"[a-zA-Z0-9+/\n=]{64,}",
        rb"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}",
        rb"(?:\\u[0-9a-fA-F]{4}){8,}",
    )
)
_TAG = re2.compile(rb"<[^>]*>")
_ENTITY = re2.compile(rb"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]{1,31});")
# What a browser does not show, up to its end or that of the file.
_HIDDEN = (
    (b"<!--", b"-->"),
    (b"<script", b"</script"),
    (b"<style", b"</style"),
    (b"<template", b"</template"),
)
_HIDDEN_START = re2.compile(rb"(?i)<(?:!--|script|style|template)")


def encoded_data(content: bytes) -> tuple[int, int]:
    """Finds base64, hexadecimal and escaped code point data.

    Returns:
        The length of the longest piece, and the length of all pieces of the pattern that has most
        of the content; all of it is ASCII.
    """
    longest = most = 0
    for pattern in _ENCODED:
        lengths = [match.end() - match.start() for match in pattern.finditer(content)]
        longest = max(longest, *lengths, 0)
        most = max(most, sum(lengths))
    return longest, most


def visible_characters(content: bytes) -> int:
    """The number of characters of an HTML page's text, white space in a row counted once.

    Tags, comments, scripts, styles and templates are left out; an entity is one character.
    """
    shown, lower = [], content.lower()
    place = 0
    while (hidden := _HIDDEN_START.search(content, place)) is not None:
        shown.append(content[place : hidden.start()])
        start = lower[hidden.start() : hidden.end()]
        end = next(end for begin, end in _HIDDEN if begin == start)
        stop = lower.find(end, hidden.end())
        # Of a closing tag, the rest is left for `_TAG`.
        place = len(content) if stop < 0 else stop + (len(end) if end == b"-->" else 0)
    shown.append(content[place:])
    text = _ENTITY.sub(b".", _TAG.sub(b" ", b" ".join(shown))).decode(errors="replace")
    return len(" ".join(text.split()))
