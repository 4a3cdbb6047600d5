"""Markdown of generated pages: text from elsewhere that must mean nothing to Markdown."""

import re
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    """Text on one line, in which backticks alone keep their meaning."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    pieces[::2] = [re.sub(r"[\\|<*_\[`]", r"\\\g<0>", piece) for piece in pieces[::2]]
    pieces[1::2] = [piece.replace("|", "\\|") for piece in pieces[1::2]]
    return "".join(pieces)


def code(text: str, limit: int = 120) -> str:
    """Code, cut where it is too long for a cell of a table."""
    text = " ".join(text.replace("|", "\\|").split())
    return f"`{text if len(text) <= limit else text[: limit - 3] + '...'}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing where it has no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])
