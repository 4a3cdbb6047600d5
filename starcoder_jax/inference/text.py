"""Text of tokens that come one at a time."""

import codecs
from collections.abc import Sequence

from starcoder_jax.data.tokenizer import Tokenizer


class TextStream:
    """The text of a growing sequence of tokens, up to the first stop string.

    Held back is only what is not certain yet: bytes that begin a character, and characters that
    begin a stop string. Each token is decoded once.

    Args:
        tokenizer: of the tokens.
        stop: strings that end the text, none of them empty. The one that begins first counts, and
            it may begin or end within a token.

    Attributes:
        text: what is certain so far; it only grows. In the end it is what decoding all tokens at
            once and cutting before the first stop string gives.
        stopped: whether a stop string was found: what is fed after that changes nothing. While an
            earlier one may still come about, this waits.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, token_id: int) -> None:
        """Takes the next token; raises `ValueError` if the vocabulary has none of this id."""
        self._take(self._decoder.decode(self._tokenizer.decode_bytes([token_id])), last=False)

    def finish(self) -> None:
        """Releases what was held back; no token may follow.

        A character that is not whole becomes U+FFFD. A stop string may turn up: one that overlaps
        with a longer one that did not come about.
        """
        self._take(self._decoder.decode(b"", final=True), last=True)

    def _take(self, new: str, last: bool) -> None:
        if self.stopped:
            return
        held = self._held + new
        found = min((at for stop in self._stop if (at := held.find(stop)) >= 0), default=len(held))
        certain = found if last else self._first_possible_stop(held, found)
        self.text += held[:certain]
        self._held = held[certain:]
        self.stopped = certain == found < len(held)

    def _first_possible_stop(self, held: str, end: int) -> int:
        """The first place before `end` from where on all that is held begins a stop string."""
        if not self._stop:
            return end
        for start in range(end):
            rest = held[start:]
            if any(stop.startswith(rest) for stop in self._stop):
                return start
        return end
