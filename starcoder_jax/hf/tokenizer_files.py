"""Tokenizer files of Hugging Face checkpoints."""

import json
import os
import pathlib
import shutil
from typing import Any

from starcoder_jax.data.tokenizer import END_OF_TEXT, BpeTokenizer, Tokenizer

# Files beside the vocabulary that a checkpoint's tokenizer, and its use, may depend on.
COMPANIONS: tuple[str, ...] = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def write_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Writes a vocabulary and the files with which transformers opens it.

    A BPE vocabulary gives the same ids there as `encode_prompt` gives here, and decodes to the same
    text. If it has `<|endoftext|>`, that is the bos, eos and unknown token; texts get none of them.
    There are two exceptions. If the vocabulary's file asks for tokens around texts, which the
    family's do not, transformers adds them. And bytes without a token, which occur in U+40000 to
    U+7FFFF alone, all unassigned, transformers drops or makes unknown, while here the whole
    character becomes U+FFFD.

    A SentencePiece vocabulary is written alone: transformers has no tokenizer that leaves spaces
    and special tokens' names in texts as they are.

    Args:
        tokenizer: to write.
        directory: made if absent.

    Raises:
        OSError: a file cannot be written.
    """
    directory = pathlib.Path(directory)
    tokenizer.save(directory)
    if not isinstance(tokenizer, BpeTokenizer):
        return
    names = list(tokenizer.special_tokens)
    special: dict[str, Any] = {}
    if END_OF_TEXT in names:
        names.remove(END_OF_TEXT)
        special = {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "unk")}
    special["additional_special_tokens"] = names
    config = special | {
        # Not GPT2Tokenizer, which the published configs name: from transformers 5 on it puts
        # GPT-2's splitting of text in place of that in tokenizer.json, and gives other ids where a
        # digit follows spaces. This class takes the file as it is, in older versions too.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Some vocabularies do not mark their special tokens as such.
        "added_tokens_decoder": {
            str(index): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for name, index in tokenizer.special_tokens.items()
        },
        "clean_up_tokenization_spaces": False,
    }
    _write_json(directory / "special_tokens_map.json", special)
    _write_json(directory / "tokenizer_config.json", config)


def copy_companions(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies those of `COMPANIONS` that exist, byte for byte.

    Args:
        source: directory of a checkpoint. Links to files are followed.
        target: another directory, which exists.

    Raises:
        OSError: a file cannot be read or written.
    """
    for name in COMPANIONS:
        file = pathlib.Path(source) / name
        if file.is_file():
            shutil.copyfile(file, pathlib.Path(target) / name)


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
