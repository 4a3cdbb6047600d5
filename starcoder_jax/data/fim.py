"""Fill-in-the-middle: reorders parts of documents so that a causal model learns to infill.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle"
(arXiv 2207.14255), in the form that StarCoder was trained with: on packed windows ("context
level"), cut at characters, the three parts tokenized apart from each other.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from starcoder_jax.data.tokenizer import Tokenizer

# Text to permute spells a special token or a byte of a cut character as one lone surrogate: decoded
# UTF-8 holds none. Bytes get U+DC80 to U+DCFF, as in Python's "surrogateescape"; special tokens get
# what lies below.
_FIRST_SPECIAL = 0xD800
_MAX_SPECIALS = 0xDC80 - _FIRST_SPECIAL
_ATOM = re.compile("([\ud800-\udcff])")


@dataclasses.dataclass(frozen=True)
class FimConfig:
    """How often, and with which special tokens, documents are permuted.

    Attributes:
        rate: Share of documents that are permuted; with `split_token`, also the share of
            repositories whose files may be.
        spm_rate: Share of the permuted ones written suffix-prefix-middle instead of
            prefix-suffix-middle.
        prefix_token: Special token before the prefix.
        middle_token: Special token before the middle.
        suffix_token: Special token before the suffix.
        pad_token: Special token that fills a window which became shorter.
        split_token: Special token between the files of a repository, such as "<file_sep>": each
            file is then permuted within itself. None treats a document as a whole.
        fragment_rate: Share of the files permuted in a repository that was chosen; unused without
            `split_token`.
        skip_prefix: Special token, such as "<repo_name>": a document or file that begins with it is
            not permuted.

    Raises:
        ValueError: A rate is outside [0, 1].
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    prefix_token: str = "<fim_prefix>"
    middle_token: str = "<fim_middle>"
    suffix_token: str = "<fim_suffix>"
    pad_token: str = "<fim_pad>"
    split_token: str | None = None
    fragment_rate: float = 0.5
    skip_prefix: str | None = None

    def __post_init__(self):
        for name in ("rate", "spm_rate", "fragment_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"fill-in-the-middle {name} is {getattr(self, name)}: it must be from 0 to 1"
                )


class FillInTheMiddle:
    """Permutes the documents of a packed window, each within itself.

    A document is what lies between two <|endoftext|>, or between one and the window's edge. A
    chosen document is cut at two places between characters, drawn uniformly with both ends
    included, so that any part may be empty:

        prefix-suffix-middle:  <fim_prefix> P <fim_suffix> S <fim_middle> M
        suffix-prefix-middle:  <fim_prefix> <fim_suffix> S <fim_middle> P M    (variant 2)

    Tokenizing the parts apart changes the length: the window is cut or padded at its right. As in
    StarCoder's training, an empty document that is not the window's last goes, together with its
    <|endoftext|>, and an empty one that is the last may become three bare special tokens; the same
    holds for the files of a repository.

    Unlike there, nothing is lost on the way: a special token inside a document counts as one
    character and stays what it is, and so does each byte of a character cut by the window's edge.

    Args:
        config: Rates and special tokens.
        tokenizer: The vocabulary of the windows.

    Raises:
        ValueError: The vocabulary lacks one of the special tokens.
    """

    def __init__(self, config: FimConfig, tokenizer: Tokenizer):
        self._config = config
        self._tokenizer = tokenizer
        self._prefix = _token(tokenizer.special_id(config.prefix_token))
        self._middle = _token(tokenizer.special_id(config.middle_token))
        self._suffix = _token(tokenizer.special_id(config.suffix_token))
        self._pad = tokenizer.special_id(config.pad_token)
        self._split = _optional_id(tokenizer, config.split_token)
        self._skip = _optional_id(tokenizer, config.skip_prefix)
        self._special_atoms = _special_atoms(tokenizer)
        special_ids = np.flatnonzero(self._special_atoms)
        self._atom_tokens = _byte_atoms(tokenizer) | {
            chr(self._special_atoms[id_]): _token(id_) for id_ in special_ids
        }

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the permuted window.

        Args:
            tokens: int32 [n], the packed window.
            rng: Source of all randomness. Takes one draw a document or file that may be permuted,
                and three more for each that is.

        Returns:
            int32 [n]; `tokens` itself where the rate is 0.
        """
        if self._config.rate == 0:
            return tokens
        parts = _apply_between(
            self._tokenizer.end_of_text_id, tokens, lambda document: self._document(document, rng)
        )
        texts = [part for part in parts if isinstance(part, str)]
        encoded = iter(self._tokenizer.encode_batch(texts))
        out = np.concatenate([next(encoded) if isinstance(p, str) else p for p in parts])
        out = out[: len(tokens)]
        return np.pad(out, (0, len(tokens) - len(out)), constant_values=self._pad)

    def _document(self, tokens: np.ndarray, rng: np.random.Generator) -> list[np.ndarray | str]:
        if self._split is None or not (tokens == self._split).any():
            return self._permute(tokens, self._config.rate, rng)
        if rng.random() >= self._config.rate:
            return [tokens]
        return _apply_between(
            self._split,
            tokens,
            lambda file: self._permute(file, self._config.fragment_rate, rng),
        )

    def _permute(
        self, tokens: np.ndarray, rate: float, rng: np.random.Generator
    ) -> list[np.ndarray | str]:
        if rng.random() >= rate:
            return [tokens]
        if self._skip is not None and self._skip in tokens[:1]:
            return [tokens]
        text = self._text(tokens)
        start, stop = sorted(rng.integers(0, len(text), size=2, endpoint=True))
        prefix, middle, suffix = (
            self._parts(part) for part in (text[:start], text[start:stop], text[stop:])
        )
        if rng.random() < self._config.spm_rate:
            return [self._prefix, self._suffix, *suffix, self._middle, *prefix, *middle]
        return [self._prefix, *prefix, self._suffix, *suffix, self._middle, *middle]

    def _text(self, tokens: np.ndarray) -> str:
        atoms = self._special_atoms[tokens]
        positions = np.flatnonzero(atoms)
        head, *tails = np.split(tokens, positions)
        pieces = [self._decode(head)]
        for position, tail in zip(positions, tails, strict=True):
            pieces += [chr(atoms[position]), self._decode(tail[1:])]
        return "".join(pieces)

    def _decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode_bytes(tokens).decode("utf-8", "surrogateescape")

    def _parts(self, text: str) -> list[np.ndarray | str]:
        """Returns what `text` consists of: ordinary text, and tokens of what is none."""
        chunks = _ATOM.split(text)
        chunks[1::2] = [self._atom_tokens[atom] for atom in chunks[1::2]]
        return [chunk for chunk in chunks if len(chunk)]


def _apply_between(
    separator: int,
    tokens: np.ndarray,
    function: Callable[[np.ndarray], list[np.ndarray | str]],
) -> list[np.ndarray | str]:
    """Applies `function` to each stretch between separators; empty ones go, but for the last."""
    head, *tails = np.split(tokens, np.flatnonzero(tokens == separator))
    *stretches, last = [head, *(tail[1:] for tail in tails)]
    out = []
    for stretch in stretches:
        if len(stretch):
            out += [*function(stretch), _token(separator)]
    return out + function(last)


def _optional_id(tokenizer: Tokenizer, name: str | None) -> int | None:
    return None if name is None else tokenizer.special_id(name)


def _token(id_: int) -> np.ndarray:
    return np.array([id_], np.int32)


def _special_atoms(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the code point that stands for each id in text, int32 [vocab]; 0: ordinary token."""
    ids = sorted(set(tokenizer.special_tokens.values()))
    if len(ids) > _MAX_SPECIALS:
        raise ValueError(
            f"the tokenizer has {len(ids)} special tokens, fill-in-the-middle takes up to "
            f"{_MAX_SPECIALS}: turn it off by a rate of 0"
        )
    atoms = np.zeros(tokenizer.vocab_size, np.int32)
    atoms[ids] = _FIRST_SPECIAL + np.arange(len(ids))
    return atoms


def _byte_atoms(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns the token of each byte that is no character by itself, by its escaped spelling."""
    atoms = {}
    for id_ in range(tokenizer.vocab_size):
        content = tokenizer.decode_bytes([id_])
        if len(content) == 1 and content[0] >= 0x80:
            atoms[content.decode("utf-8", "surrogateescape")] = _token(id_)
    return atoms
