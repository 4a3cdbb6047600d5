import json
import os
import pathlib

import pytest

from starcoder_jax.data import tokenizer as tokenizer_module
from starcoder_jax.data.tokenizer import BpeTokenizer, load_tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.hf.tokenizer_files import COMPANIONS, copy_companions, write_tokenizer

CORPUS = [
    pathlib.Path(tokenizer_module.__file__).read_text(encoding="utf-8"),
    "# naïve café 中文 😀\nfor i in range(2024):\n        print(i)\n" * 20,
]
TEXTS = [
    "",
    " ",
    "x = [\n    20245,\n   17] # a digit behind spaces\t\t\r\n",
    "<fim_prefix>def f():\n    <fim_suffix>\n    return 1 . , ' s<fim_middle>",
    "  <|endoftext|> <repo_name>a/b <file_sep>\n<NAME> ",
    "don't ' s !\nnaïve e\u0301 中文 ▁ \ufeff 😀 \u3000 \0",
    CORPUS[0],
]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CORPUS, kind="bpe", vocab_size=600)


def altered(tokenizer, tmp_path, alter):
    """The tokenizer whose tokenizer.json was altered."""
    tokenizer.save(tmp_path / "before")
    spec = json.loads((tmp_path / "before" / "tokenizer.json").read_bytes())
    alter(spec)
    return BpeTokenizer(json.dumps(spec).encode())


def check_transformers_agrees(tokenizer, directory, texts, architectures=(None, "starcoder2")):
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tokenizer, directory)
    for model_type in architectures:
        if model_type is not None:  # It has a say in which class opens the tokenizer.
            vocabulary = {"vocab_size": tokenizer.vocab_size, "eos_token_id": 0, "bos_token_id": 0}
            values = {"model_type": model_type, **vocabulary}
            (directory / "config.json").write_text(json.dumps(values))
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        for text in texts:
            expected = tokenizer.encode_prompt(text).tolist()
            assert theirs(text)["input_ids"] == expected
            assert theirs.decode(expected) == text
        assert len(theirs) == tokenizer.vocab_size
        assert set(theirs.all_special_tokens) == set(tokenizer.special_tokens)
        special = list(tokenizer.special_tokens.values())
        assert special and theirs.decode(special, skip_special_tokens=True) == ""
    return theirs


@pytest.mark.parametrize("model_type", [None, "gpt_bigcode", "starcoder2", "bloom"])
def test_transformers_opens_what_was_written(trained, tmp_path, model_type):
    theirs = check_transformers_agrees(trained, tmp_path, TEXTS, [model_type])
    roles = (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id)
    assert roles == (0, 0, 0, None)
    assert theirs.model_max_length > 10**6


@pytest.mark.parametrize("name", ["starcoder1", "starcoder2"])
def test_published_vocabularies(name, published_vocabulary, tmp_path):
    real = published_vocabulary(name)
    tokenizer = load_tokenizer(real)
    texts = (real / "golden.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    assert len(texts) == 47
    theirs = check_transformers_agrees(tokenizer, tmp_path, [*texts, *TEXTS])
    lines = (real / "golden.out").read_text().split("\n")[: len(texts)]
    golden = [[int(index) for index in line.split()] for line in lines]
    assert theirs(texts)["input_ids"] == golden
    assert (tmp_path / "tokenizer.json").read_bytes() == (real / "tokenizer.json").read_bytes()


def test_special_tokens_that_the_vocabulary_does_not_mark(trained, tmp_path):
    def unmark(spec):
        for token in spec["added_tokens"]:
            token["special"] = False

    tokenizer = altered(trained, tmp_path, unmark)
    assert len(tokenizer.special_tokens) == 38
    check_transformers_agrees(tokenizer, tmp_path / "hf", TEXTS)


def test_special_tokens_behind_the_vocabulary(trained, tmp_path):
    names = ["<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"]

    def like_santacoder(spec):
        del spec["model"]["vocab"]["<|endoftext|>"]
        spec["model"]["vocab"]["<unused>"] = 0
        token = spec["added_tokens"][0]
        spec["added_tokens"] = [
            {**token, "id": 600 + i, "content": name} for i, name in enumerate(names)
        ]

    tokenizer = altered(trained, tmp_path, like_santacoder)
    texts = ["a<fim-prefix>b  <fim-suffix>\n1<fim-middle>", CORPUS[1]]
    theirs = check_transformers_agrees(tokenizer, tmp_path / "hf", texts)
    assert theirs.eos_token_id == 600


def test_vocabulary_without_end_of_text(trained, tmp_path):
    def like_bloom(spec):
        del spec["model"]["vocab"]["<|endoftext|>"]
        spec["model"]["vocab"]["</s>"] = 0
        spec["added_tokens"] = [{**spec["added_tokens"][0], "content": "</s>"}]

    tokenizer = altered(trained, tmp_path, like_bloom)
    theirs = check_transformers_agrees(tokenizer, tmp_path / "hf", ["a </s>\n  17", CORPUS[1]])
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == (None, None, None)
    assert theirs.all_special_tokens == ["</s>"]


def test_what_was_written_loads_again(trained, tmp_path):
    write_tokenizer(trained, tmp_path / "new")
    assert load_tokenizer(tmp_path / "new").fingerprint == trained.fingerprint
    written = {file.name for file in (tmp_path / "new").iterdir()}
    assert written == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    special = json.loads((tmp_path / "new" / "special_tokens_map.json").read_bytes())
    config = json.loads((tmp_path / "new" / "tokenizer_config.json").read_bytes())
    assert special.items() <= config.items()
    assert {special[f"{role}_token"] for role in ("bos", "eos", "unk")} == {"<|endoftext|>"}
    assert len(special["additional_special_tokens"]) == 37
    assert "model_max_length" not in config


def test_sentencepiece_is_written_alone(tmp_path):
    tokenizer = train_tokenizer(CORPUS, kind="sentencepiece", vocab_size=400)
    write_tokenizer(tokenizer, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_companions_are_copied_as_they_are(tmp_path):
    source, target, cache = tmp_path / "source", tmp_path / "target", tmp_path / "cache"
    for directory in (source, target, cache):
        directory.mkdir()
    for name in COMPANIONS[1:]:
        (source / name).write_bytes(f"of {name}\r\n\xff".encode("latin-1"))
    (cache / "blob").write_bytes(b"linked")
    (source / COMPANIONS[0]).symlink_to(os.path.join("..", "cache", "blob"))
    (source / "model.safetensors").write_bytes(b"not a companion")
    (target / COMPANIONS[1]).write_bytes(b"replaced")
    copy_companions(source, str(target))
    assert {file.name for file in target.iterdir()} == set(COMPANIONS)
    assert len(COMPANIONS) == 7
    for name in COMPANIONS:
        assert (target / name).read_bytes() == (source / name).read_bytes()
        assert not (target / name).is_symlink()


def test_companions_that_do_not_exist_are_no_matter(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "vocab.json").symlink_to("nowhere")
    (source / "merges.txt").mkdir()
    copy_companions(source, target)
    assert list(target.iterdir()) == []
