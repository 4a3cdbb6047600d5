"""Tokenizers: byte-level BPE (`tokenizer.json`) and SentencePiece (`*.model`), one interface.

Every vocabulary that loads keeps two promises, which fill-in-the-middle and data lineage rest on:

* Text survives: `decode_bytes(encode(text))` is `text` in UTF-8. A vocabulary that normalizes text,
  puts a space in front of it or has unknown tokens is refused when it is loaded.
* Documents cannot forge structure: `encode` never returns the id of a special token, whatever the
  text says. Only `encode_prompt` and `special_id` do.

The one exception to the first promise: a character that the vocabulary cannot spell becomes U+FFFD,
the replacement character. For every vocabulary these are the lone surrogates, which UTF-8 cannot
spell either. The published StarCoder vocabularies also lack 14 bytes (C0, C1, F1 and F5 to FF), of
which F1 occurs in UTF-8: it begins the code points U+40000 to U+7FFFF, none of which is assigned.
Left to itself the library would drop that byte, or put `<|endoftext|>` in its place.
"""

import abc
import difflib
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import tokenizers

END_OF_TEXT = "<|endoftext|>"

# In the order of their ids, which begin at 0.
STARCODER2_SPECIAL_TOKENS: tuple[str, ...] = (
    END_OF_TEXT,
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<repo_name>",
    "<file_sep>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
    "<code_to_intermediate>",
    "<intermediate_to_code>",
    "<pr>",
    "<pr_status>",
    "<pr_is_merged>",
    "<pr_base>",
    "<pr_file>",
    "<pr_base_code>",
    "<pr_diff>",
    "<pr_diff_hunk>",
    "<pr_comment>",
    "<pr_event_id>",
    "<pr_review>",
    "<pr_review_state>",
    "<pr_review_comment>",
    "<pr_in_reply_to_review_id>",
    "<pr_in_reply_to_comment_id>",
    "<pr_diff_hunk_comment_line>",
    "<NAME>",
    "<EMAIL>",
    "<KEY>",
    "<PASSWORD>",
)

_REPLACEMENT = "\ufffd"
# Bytes that no replacement helps with: ASCII, the continuation bytes, the first byte of U+FFFD.
_INDISPENSABLE_BYTES = frozenset([*range(0xC0), 0xEF])
# SentencePiece writes a space as U+2581, and so would read a U+2581 in a text back as a space.
_SPACE_MARK = "\u2581"
# Space at both ends, runs of it, and characters that the usual normalizations change.
_PROBE = "  if x:\n\n\t\treturn\r\n    e\u0301 \ufb01 \uff11 \u2163 \u4e2d \u2581 \U0001f600  \n "


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids, the largest id plus one: the embedding needs as many rows.
        special_tokens: name to id of the tokens that ordinary text never becomes.
        fingerprint: SHA-256 (hex) of what the vocabulary means: tokens, merges or scores, special
            tokens and the splitting of text. The layout of its file does not enter.

    Objects are picklable, may be shared between threads, and do not change.
    """

    vocab_size: int
    special_tokens: Mapping[str, int]
    file_name: ClassVar[str]

    def __init__(
        self,
        content: bytes,
        token_bytes: Mapping[int, bytes],
        special_tokens: Mapping[str, int],
        missing_bytes: Iterable[int],
    ):
        """Stores what both kinds share; `content` is the vocabulary's file, byte for byte."""
        self._content = content
        self.vocab_size = max(token_bytes) + 1
        self.special_tokens = MappingProxyType(dict(special_tokens))
        unused = _REPLACEMENT.encode()
        self._token_bytes = [token_bytes.get(i, unused) for i in range(self.vocab_size)]
        self._unspellable = _unspellable(missing_bytes)
        # Longest first: of two names that begin alike, the longer one was meant.
        names = sorted(self.special_tokens, key=lambda name: (-len(name), name))
        self._special_names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        if self.decode_bytes(self.encode(_PROBE)) != self._spellable(_PROBE).encode():
            raise ValueError(
                "the vocabulary changes the text it encodes; use one without normalization and "
                "without a space put in front"
            )

    def __reduce__(self):
        return type(self), (self._content,)

    @abc.abstractmethod
    def _encode_spellable(self, texts: list[str], parallel: bool) -> list[np.ndarray]:
        """Encodes texts whose every character the vocabulary can spell."""

    @abc.abstractmethod
    def _meaning(self) -> Any:
        """Returns what `fingerprint` covers, as a JSON value."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the meaning of the vocabulary."""
        canonical = json.dumps(self._meaning(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def end_of_text_id(self) -> int:
        """The id of `<|endoftext|>`; raises `ValueError` if the vocabulary has no such token."""
        return self.special_id(END_OF_TEXT)

    def special_id(self, name: str) -> int:
        """Returns the id of a special token, or raises `ValueError` naming the nearest one."""
        if name in self.special_tokens:
            return self.special_tokens[name]
        nearest = difflib.get_close_matches(name, self.special_tokens, n=1, cutoff=0.0)
        hint = f"; the nearest is {nearest[0]!r}" if nearest else "; it has none at all"
        raise ValueError(f"the vocabulary has no special token {name!r}{hint}")

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of ordinary text, int32 [n]; names of special tokens are mere text."""
        return self._encode_spellable([self._spellable(text)], parallel=False)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns `encode` of every text, int32 [n] each, computed on all cores."""
        return self._encode_spellable([self._spellable(text) for text in texts], parallel=True)

    def encode_prompt(self, text: str) -> np.ndarray:
        """Returns the ids of text, int32 [n], in which names of special tokens become those."""
        ids, end = [], 0
        for match in self._special_names.finditer(text):
            ids.append(self.encode(text[end : match.start()]))
            ids.append(np.array([self.special_tokens[match.group()]], np.int32))
            end = match.end()
        return np.concatenate([*ids, self.encode(text[end:])])

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Returns the exact bytes that ids [n] stand for; special tokens appear by name.

        An id below `vocab_size` that has no token stands for U+FFFD. Raises `ValueError` on an id
        outside of the vocabulary.
        """
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise ValueError(f"token id {wrong} is outside of the vocabulary of {self.vocab_size}")
        return b"".join(map(self._token_bytes.__getitem__, ids.tolist()))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids [n]; bytes that are not valid UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the vocabulary as it was read, as `tokenizer.json` or `tokenizer.model`."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / self.file_name).write_bytes(self._content)

    def _spellable(self, text: str) -> str:
        return text if text.isascii() else self._unspellable.sub(_REPLACEMENT, text)


class BpeTokenizer(Tokenizer):
    """Byte-level BPE, from the content of a Hugging Face `tokenizer.json`.

    What the file says about truncation, padding, unknown tokens, dropout, and tokens to add around
    a text is set aside: ids depend on the text alone. Added tokens count as special when the
    file says so or when their name is written `<...>`: some files leave the mark out.
    """

    file_name = "tokenizer.json"

    def __init__(self, content: bytes):
        try:
            spec = json.loads(content)
            model, added = spec["model"], spec["added_tokens"]
            kind, vocabulary = model.get("type", "BPE"), model["vocab"]
            spelled = {character: byte for byte, character in enumerate(_byte_alphabet())}
            missing = [byte for character, byte in spelled.items() if character not in vocabulary]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                "not a tokenizer.json of the Hugging Face tokenizers library"
            ) from None
        if kind != "BPE" or not _INDISPENSABLE_BYTES.isdisjoint(missing):
            raise ValueError("not a byte-level BPE: bytes of ordinary text have no token")

        for token in added:
            token["special"] = token.get("special", False) or _is_control(token["content"])
        spec.update(truncation=None, padding=None, post_processor=None)
        model.update(unk_token=None, dropout=None)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # The library raises no narrower type.
            raise ValueError(f"the tokenizers library cannot read it: {error}") from None
        self._tokenizer.encode_special_tokens = True

        to_bytes = str.maketrans({character: chr(byte) for character, byte in spelled.items()})
        token_bytes = {}
        for token, index in vocabulary.items():
            try:
                token_bytes[index] = token.translate(to_bytes).encode("latin-1")
            except UnicodeEncodeError:  # Not spelled in the alphabet: a name, as it stands.
                token_bytes[index] = token.encode()
        token_bytes |= {token["id"]: token["content"].encode() for token in added}
        special = {token["content"]: token["id"] for token in added if token["special"]}
        super().__init__(content, token_bytes, special, missing)

    def _encode_spellable(self, texts: list[str], parallel: bool) -> list[np.ndarray]:
        if parallel:
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        else:
            encoded = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [np.array(encoding.ids, np.int32) for encoding in encoded]

    def _meaning(self) -> Any:
        spec = json.loads(self._content)
        model, added = spec["model"], spec["added_tokens"]
        return {
            "kind": "bpe",
            "tokens": model["vocab"] | {token["content"]: token["id"] for token in added},
            "special_tokens": dict(self.special_tokens),
            # Older files write a merge as "a b", newer ones as ["a", "b"].
            "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
            "ignore_merges": bool(model.get("ignore_merges")),
            "normalizer": spec.get("normalizer"),
            "pre_tokenizer": _without_offsets(spec.get("pre_tokenizer")),
        }


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece, from the content of a `*.model` that has byte fallback.

    Special tokens are the control symbols, and user-defined symbols whose name is written `<...>`:
    left as they are, those would be found inside ordinary text.
    """

    file_name = "tokenizer.model"

    def __init__(self, content: bytes):
        # Here, because this module of SentencePiece ties the process to a version of protobuf.
        from sentencepiece import sentencepiece_model_pb2

        Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
        model = sentencepiece_model_pb2.ModelProto()
        try:
            model.ParseFromString(content)
        except Exception:  # protobuf's error is a subclass of Exception alone.
            model.Clear()
        if not model.pieces:
            raise ValueError("not a SentencePiece model")

        token_bytes, special, byte_ids = {}, {}, {}
        for index, piece in enumerate(model.pieces):
            if piece.type == Piece.USER_DEFINED and _is_control(piece.piece):
                piece.type = Piece.CONTROL
            token_bytes[index] = piece.piece.encode()
            if piece.type == Piece.CONTROL:
                special[piece.piece] = index
            elif piece.type == Piece.BYTE:
                byte_ids[int(piece.piece[1:-1], 16)] = index
                token_bytes[index] = bytes([int(piece.piece[1:-1], 16)])
            elif piece.type != Piece.UNKNOWN:
                token_bytes[index] = piece.piece.replace(_SPACE_MARK, " ").encode()
        if len(byte_ids) != 256 or not model.trainer_spec.byte_fallback:
            raise ValueError("the SentencePiece model has no byte fallback: it would lose text")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(
                model_proto=model.SerializeToString()
            )
        except RuntimeError as error:
            raise ValueError(f"the sentencepiece library cannot read it: {error}") from None
        self._space_mark_ids = [byte_ids[byte] for byte in _SPACE_MARK.encode()]
        self._model = model
        super().__init__(content, token_bytes, special, missing_bytes=())

    def _encode_spellable(self, texts: list[str], parallel: bool) -> list[np.ndarray]:
        split = [text.split(_SPACE_MARK) for text in texts]
        parts = [part for text in split for part in text]
        encoded = iter(self._processor.encode(parts, num_threads=-1 if parallel else 1))
        results = []
        for text in split:
            ids = next(encoded)
            for _ in text[1:]:
                ids += self._space_mark_ids + next(encoded)
            results.append(np.array(ids, np.int32))
        return results

    def _meaning(self) -> Any:
        model = self._model
        return {
            "kind": "sentencepiece",
            "pieces": [[piece.piece, piece.score, piece.type] for piece in model.pieces],
            "algorithm": model.trainer_spec.model_type,
            "normalizer": model.normalizer_spec.SerializeToString(deterministic=True).hex(),
        }


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a `tokenizer.json`, a SentencePiece `*.model`, or a directory that holds one of them.

    Raises `ValueError` if there is none, more than one, or one that cannot be used.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = sorted([*path.glob("tokenizer.json"), *path.glob("*.model")])
        if not found:
            raise ValueError(f"{path}: holds neither a tokenizer.json nor a *.model")
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise ValueError(f"{path}: holds {names}; give the path of the one you mean")
        path = found[0]
    kinds = {".json": BpeTokenizer, ".model": SentencePieceTokenizer}
    if path.suffix not in kinds:
        raise ValueError(f"{path}: a tokenizer is a tokenizer.json, a *.model or a directory")
    try:
        return kinds[path.suffix](path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _unspellable(missing_bytes: Iterable[int]) -> re.Pattern[str]:
    """Matches the surrogates and the characters whose UTF-8 begins with a missing byte."""
    ranges = "\ud800-\udfff"
    for byte in missing_bytes:
        # Of the code points that the byte could begin, UTF-8 writes only those from `lowest` on so.
        if 0xC2 <= byte <= 0xDF:
            first, count, lowest = (byte & 0x1F) << 6, 1 << 6, 0x80
        elif 0xE0 <= byte <= 0xEF:
            first, count, lowest = (byte & 0x0F) << 12, 1 << 12, 0x800
        elif 0xF0 <= byte <= 0xF4:
            first, count, lowest = (byte & 0x07) << 18, 1 << 18, 0x10000
        else:
            continue
        last = min(first + count - 1, 0x10FFFF)
        ranges += f"{chr(max(first, lowest))}-{chr(last)}"
    return re.compile(f"[{ranges}]")


def _byte_alphabet() -> list[str]:
    """Returns the 256 characters that byte-level BPE writes bytes with, as GPT-2 defined them."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _is_control(name: str) -> bool:
    return len(name) > 2 and name[0] == "<" and name[-1] == ">"


def _without_offsets(pre_tokenizer: Any) -> Any:
    """Drops `trim_offsets`, which moves character offsets and no ids."""
    if isinstance(pre_tokenizer, list):
        return [_without_offsets(item) for item in pre_tokenizer]
    if isinstance(pre_tokenizer, dict):
        return {
            key: _without_offsets(value)
            for key, value in pre_tokenizer.items()
            if key != "trim_offsets"
        }
    return pre_tokenizer
