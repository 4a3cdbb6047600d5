"""Trains a vocabulary on source code."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from starcoder_jax.data.tokenizer import (
    END_OF_TEXT,
    STARCODER2_SPECIAL_TOKENS,
    BpeTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)

# A pair seen once says nothing about other code: running out of pairs seen twice is an error.
_MIN_PAIR_COUNT = 2
_SURROGATES = re.compile("[\ud800-\udfff]")


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: str,
    vocab_size: int,
    special_tokens: Sequence[str] = STARCODER2_SPECIAL_TOKENS,
) -> Tokenizer:
    """Trains a tokenizer; the same texts, in any order, give the same vocabulary.

    Both kinds keep every byte of a text, split numbers into digits, and have the special tokens at
    the ids 0, 1, 2, … in the order given. "bpe" splits text as StarCoder2 does and learns byte
    pairs that occur at least twice; it spells all 256 bytes. "sentencepiece" is SentencePiece's BPE
    with byte fallback and without normalization; its tokens may reach over line ends.

    Args:
        texts: documents to learn from, read once.
        kind: "bpe" or "sentencepiece".
        vocab_size: number of ids, special tokens and 256 bytes included.
        special_tokens: distinct names, `<|endoftext|>` among them.

    Raises:
        ValueError: if an argument is not as said, or `vocab_size` is too small for the bytes and
            special tokens or larger than the texts support.
    """
    special_tokens = list(special_tokens)
    if END_OF_TEXT not in special_tokens or len(set(special_tokens)) < len(special_tokens):
        raise ValueError(f"special_tokens must be distinct and hold {END_OF_TEXT!r}")
    train = {"bpe": _train_bpe, "sentencepiece": _train_sentencepiece}.get(kind)
    if train is None:
        raise ValueError(f"kind must be 'bpe' or 'sentencepiece', not {kind!r}")
    smallest = len(special_tokens) + 256 + 1
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {len(special_tokens)} special tokens and 256 "
            f"bytes need at least {smallest}"
        )
    return train((_SURROGATES.sub("\ufffd", text) for text in texts), vocab_size, special_tokens)


def _train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(_too_large(vocab_size, tokenizer.get_vocab_size()))
    return BpeTokenizer(tokenizer.to_str().encode())


def _train_sentencepiece(
    texts: Iterable[str], vocab_size: int, special_tokens: list[str]
) -> Tokenizer:
    model = io.BytesIO()
    reading_errors = []

    def watched() -> Iterator[str]:
        # The library would report an error of the reader as one of its own, traceback and all.
        try:
            yield from texts
        except Exception as error:
            reading_errors.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=watched(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            # Control symbols fill the ids from 0; the unknown token, which byte fallback leaves
            # without use but the library insists on, comes after them.
            control_symbols=special_tokens,
            unk_id=len(special_tokens),
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            # Longer texts would be left out without a word.
            max_sentence_length=2**30,
            minloglevel=2,
        )
    except RuntimeError as error:
        if reading_errors:
            raise reading_errors[0] from None
        raise ValueError(_sentencepiece_remedy(str(error), vocab_size)) from None
    return SentencePieceTokenizer(model.getvalue())


def _sentencepiece_remedy(error: str, vocab_size: int) -> str:
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"vocab_size {vocab_size} is too small: special tokens, bytes and the characters of "
            f"these texts need at least {smallest[1]}"
        )
    if largest := re.search(r"set it to a value <= (\d+)", error):
        return _too_large(vocab_size, int(largest[1]))
    if "!sentences_.empty()" in error:
        return "there is no text to train on"
    return f"SentencePiece cannot train: {error}"


def _too_large(vocab_size: int, largest: int) -> str:
    return (
        f"vocab_size {vocab_size} is larger than these texts support; give at most {largest}, or "
        "more text"
    )
