"""What the renderers return and raise."""

import dataclasses
from collections.abc import Mapping, Sequence

from starcoder_jax.data.marks import joined

# A special token, or None, and the text after it.
Part = tuple[str | None, str]


class RejectedError(ValueError):
    """What was to be rendered is dropped, for the reason that the error says."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A text with special tokens.

    Attributes:
        kind: one of `record.KINDS`.
        parts: special tokens, and the text after each.
        path: within the repository; None: that of the row it is made from.
        authors: names that the text does not say any more.
        unused: of the rows it is made from, those that left nothing in it, and why.
    """

    kind: str
    parts: Sequence[Part]
    path: str | None = None
    authors: Sequence[str] = ()
    unused: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def encoded(self) -> tuple[bytes, list[dict]]:
        """The content and the marks. Lone surrogates, which JSON can spell, become "?"."""
        return joined([(token, text.encode("utf-8", "replace")) for token, text in self.parts])


def length(parts: Sequence[Part]) -> int:
    """Characters of what is rendered, special tokens included."""
    return sum(len(token or "") + len(text) for token, text in parts)
