import json
import pathlib
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from starcoder_jax.data import tokenizer as tokenizer_module
from starcoder_jax.data.tokenizer import (
    STARCODER2_SPECIAL_TOKENS,
    BpeTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)
from starcoder_jax.data.tokenizer_training import train_tokenizer

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
CORPUS = [
    pathlib.Path(tokenizer_module.__file__).read_text(encoding="utf-8"),
    "int main(void) {\n\tif (argc > 12345) {\n\t\treturn 1;\n\t}\n}\n" * 20,
    "# naïve café 中文 ▁ 😀\nfor i in range(2024):\n        print(i)\n" * 20,
]
KINDS = ("bpe", "sentencepiece")


def real_path(name):
    if not (REAL / name).is_dir():
        # Its licence is its owners': no copy is committed, and our own vocabularies stand beside.
        pytest.skip("the published vocabularies are not on this machine (../shared/data)")
    return REAL / name


@pytest.fixture(scope="module")
def tokenizers():
    found = {kind: train_tokenizer(CORPUS, kind=kind, vocab_size=600) for kind in KINDS}
    for name in ("starcoder1", "starcoder2"):
        if (REAL / name).is_dir():
            found[name] = load_tokenizer(REAL / name)
    return found


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tokenizers):
    return tokenizers[request.param]


@pytest.fixture(scope="module")
def bpe_spec(tokenizers, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpe")
    tokenizers["bpe"].save(directory)
    return json.loads((directory / "tokenizer.json").read_bytes())


def bpe_from(spec, **changes):
    return BpeTokenizer(json.dumps({**spec, **changes}).encode())


@pytest.mark.parametrize("name", ["starcoder1", "starcoder2"])
def test_published_vocabulary_gives_the_golden_ids(name):
    path = real_path(name)
    texts = (path / "golden.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [
        [int(index) for index in line.split()]
        for line in (path / "golden.out").read_text().split("\n")[: len(texts)]
    ]
    tokenizer = load_tokenizer(path)
    assert len(texts) == len(expected) == 47
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    assert [tokenizer.encode(text).tolist() for text in texts] == expected
    assert [tokenizer.decode(ids) for ids in expected] == texts


def test_published_special_tokens():
    first, second = load_tokenizer(real_path("starcoder1")), load_tokenizer(real_path("starcoder2"))
    assert second.special_tokens == {name: i for i, name in enumerate(STARCODER2_SPECIAL_TOKENS)}
    assert len(STARCODER2_SPECIAL_TOKENS) == 38
    expected = {"<repo_name>": 5, "<file_sep>": 6, "<pr>": 18, "<NAME>": 34, "<PASSWORD>": 37}
    assert {name: second.special_id(name) for name in expected} == expected
    expected = {"<|endoftext|>": 0, "<fim_pad>": 4, "<filename>": 5, "<reponame>": 18}
    assert {name: first.special_id(name) for name in expected} == expected
    assert (len(first.special_tokens), first.end_of_text_id, second.end_of_text_id) == (19, 0, 0)
    assert first.vocab_size == second.vocab_size == 49152
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("name", ["starcoder1", "starcoder2"])
def test_character_without_a_byte_becomes_the_replacement_character(name):
    tokenizer = load_tokenizer(real_path(name))
    for missing in ("\U00040000", "\U0007ffff"):
        ids = tokenizer.encode(f"a = '{missing}'")
        assert tokenizer.decode(ids) == "a = '\ufffd'"
        assert tokenizer.end_of_text_id not in ids
    kept = "\U0003ffff\U00080000\U0010ffff"
    assert tokenizer.decode_bytes(tokenizer.encode(kept)) == kept.encode()


def test_lone_surrogate_becomes_the_replacement_character(trained):
    assert trained.decode(trained.encode("x\udc80é")) == "x\ufffdé"
    assert trained.decode(trained.encode_batch(["x\udc80é"])[0]) == "x\ufffdé"


def test_special_names_in_text_are_text_and_in_prompts_tokens(tokenizers):
    for tokenizer in tokenizers.values():
        special = set(tokenizer.special_tokens.values())
        for name, index in tokenizer.special_tokens.items():
            text = f"x{name}\n{name}"
            assert special.isdisjoint(tokenizer.encode(text).tolist())
            assert special.isdisjoint(tokenizer.encode_batch([text])[0].tolist())
            prompt = tokenizer.encode_prompt(text)
            assert prompt.dtype == np.int32
            expected = [*tokenizer.encode("x"), index, *tokenizer.encode("\n"), index]
            assert prompt.tolist() == expected
            assert tokenizer.decode(prompt) == text


def test_encode_types_and_empty_text(trained):
    for ids in (trained.encode(""), trained.encode_prompt(""), *trained.encode_batch([""])):
        assert (ids.dtype, ids.shape) == (np.int32, (0,))
    assert trained.encode_batch([]) == []
    assert trained.decode([]) == "" and trained.decode_bytes(np.zeros(0, np.int32)) == b""


@pytest.mark.parametrize("kind", [*KINDS, "starcoder1", "starcoder2"])
@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_text_survives(kind, tokenizers, data):
    if kind not in tokenizers:  # as above
        pytest.skip("the published vocabularies are not on this machine (../shared/data)")
    tokenizer = tokenizers[kind]
    # The published vocabularies cannot spell U+40000 to U+7FFFF; the other test is about those.
    characters = st.characters(codec="utf-8").filter(
        lambda c: kind in KINDS or not 0x40000 <= ord(c) <= 0x7FFFF
    )
    code = st.sampled_from(
        ["\n", "\r\n", "\t", " " * 8, "▁", "<fim_prefix>", "\0", "\ufeff", "e\u0301", "if x:", "19"]
    )
    text = "".join(data.draw(st.lists(st.one_of(characters, code), max_size=40)))
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert set(tokenizer.special_tokens.values()).isdisjoint(ids.tolist())
    np.testing.assert_array_equal(tokenizer.encode_batch([text, "x"])[0], ids)


def test_part_of_a_character_decodes(trained):
    character = trained.encode("\U00012345")
    assert len(character) == 4
    assert trained.decode_bytes(character[1:]) == b"\x92\x8d\x85"
    assert trained.decode(character[:-1]) == "\ufffd"


def test_digits_are_split_singly(trained):
    ids = trained.encode("x = 2024 + 12345")
    tokens = [trained.decode([index]) for index in ids]
    assert [token.strip() for token in tokens if any(map(str.isdigit, token))] == list("202412345")


def test_indentation_and_tabs_have_tokens_of_their_own(trained):
    indented = "\n        print"
    assert len(trained.encode(indented)) < len(indented) - 6
    assert len(trained.encode("\n\t\treturn")) < len("\n\t\treturn") - 1


def test_training_gives_the_layout_promised(trained):
    assert trained.vocab_size == 600
    assert trained.special_tokens == {name: i for i, name in enumerate(STARCODER2_SPECIAL_TOKENS)}
    assert trained.end_of_text_id == 0
    every_byte = {trained.decode_bytes([i]) for i in range(38, 600)}
    assert {bytes([byte]) for byte in range(256)} <= every_byte


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind, tokenizers):
    again = train_tokenizer(reversed(CORPUS), kind=kind, vocab_size=600)
    assert again.fingerprint == tokenizers[kind].fingerprint
    other = train_tokenizer(CORPUS, kind=kind, vocab_size=599)
    assert other.fingerprint != again.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_training_refuses_sizes_the_corpus_cannot_give(kind, capfd):
    with pytest.raises(ValueError, match="vocab_size 294 is too small"):
        train_tokenizer(CORPUS, kind=kind, vocab_size=294)
    with pytest.raises(ValueError, match=r"larger than these texts support; give at most \d+"):
        train_tokenizer(CORPUS, kind=kind, vocab_size=100_000)
    with pytest.raises(ValueError, match="text"):
        train_tokenizer([], kind=kind, vocab_size=400)
    assert capfd.readouterr() == ("", "")


def test_training_refuses_bad_arguments():
    with pytest.raises(ValueError, match="at least 3"):
        train_tokenizer(CORPUS, kind="sentencepiece", vocab_size=295)
    with pytest.raises(ValueError, match="'bpe' or 'sentencepiece', not 'unigram'"):
        train_tokenizer(CORPUS, kind="unigram", vocab_size=600)
    with pytest.raises(ValueError, match="distinct"):
        train_tokenizer(CORPUS, kind="bpe", vocab_size=600, special_tokens=["<a>", "<a>"])
    with pytest.raises(ValueError, match="endoftext"):
        train_tokenizer(CORPUS, kind="bpe", vocab_size=600, special_tokens=["<a>"])


def test_long_texts_are_trained_on():
    # SentencePiece leaves texts above 4,192 bytes out unless told otherwise.
    text = "value = compute(value)\n" * 1000
    tokenizer = train_tokenizer([text], kind="sentencepiece", vocab_size=320)
    assert tokenizer.encode(" compute").size < len(" compute")


def test_saving_and_pickling_keep_everything(trained, tmp_path):
    trained.save(tmp_path / "deep" / "down")
    (file,) = (tmp_path / "deep" / "down").iterdir()
    text = CORPUS[0] + "<|endoftext|>"
    copies = [load_tokenizer(file), load_tokenizer(str(file.parent))]
    for copy in [*copies, pickle.loads(pickle.dumps(trained))]:
        assert copy.fingerprint == trained.fingerprint
        assert copy.special_tokens == trained.special_tokens
        np.testing.assert_array_equal(copy.encode(text), trained.encode(text))


def test_unknown_special_token_names_the_nearest(trained):
    with pytest.raises(ValueError, match=r"no special token '<fim-prefix>'.*'<fim_prefix>'"):
        trained.special_id("<fim-prefix>")


def test_ids_outside_the_vocabulary_are_refused(trained):
    for wrong in (-1, 600):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside"):
            trained.decode([5, wrong])


def test_fingerprint_is_of_the_meaning(tokenizers, bpe_spec):
    expected = tokenizers["bpe"].fingerprint
    assert BpeTokenizer(json.dumps(bpe_spec, indent=2).encode()).fingerprint == expected
    model = bpe_spec["model"]
    joined = {**model, "merges": [" ".join(pair) for pair in model["merges"]]}
    assert bpe_from(bpe_spec, model=joined).fingerprint == expected
    vocabulary = dict(reversed(model["vocab"].items()))
    assert bpe_from(bpe_spec, model={**model, "vocab": vocabulary}).fingerprint == expected
    fewer = {**model, "merges": model["merges"][:-1]}
    assert bpe_from(bpe_spec, model=fewer).fingerprint != expected
    undivided = bpe_spec["pre_tokenizer"]["pretokenizers"][1]
    assert bpe_from(bpe_spec, pre_tokenizer=undivided).fingerprint != expected


def test_what_a_file_adds_around_text_is_set_aside(tokenizers, bpe_spec):
    add_ends = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 4096},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    unmarked = [{**token, "special": False} for token in bpe_spec["added_tokens"]]
    model = {**bpe_spec["model"], "unk_token": "<|endoftext|>", "dropout": 0.5}
    wild = bpe_from(
        bpe_spec,
        post_processor=add_ends,
        truncation=truncation,
        padding=padding,
        added_tokens=unmarked,
        model=model,
    )
    text = CORPUS[1] + "<fim_prefix>"
    np.testing.assert_array_equal(wild.encode(text), tokenizers["bpe"].encode(text))
    np.testing.assert_array_equal(wild.encode_batch([text])[0], tokenizers["bpe"].encode(text))
    assert wild.special_tokens == tokenizers["bpe"].special_tokens
    assert wild.fingerprint == tokenizers["bpe"].fingerprint


def test_hyphenated_names_behind_the_vocabulary(bpe_spec):
    names = ["<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"]
    added = [
        {**bpe_spec["added_tokens"][0], "id": 600 + i, "content": name}
        for i, name in enumerate(names)
    ]
    model = bpe_spec["model"]
    vocabulary = {token: i for token, i in model["vocab"].items() if token != "<|endoftext|>"}
    santa = bpe_from(bpe_spec, added_tokens=added, model={**model, "vocab": vocabulary})
    assert santa.special_tokens == {name: 600 + i for i, name in enumerate(names)}
    assert (santa.vocab_size, santa.end_of_text_id) == (605, 600)
    assert santa.encode_prompt("<fim-suffix>").tolist() == [603]
    assert santa.decode([0]) == "\ufffd"  # An id without a token.


def test_vocabulary_that_changes_text_is_refused(bpe_spec):
    for changes in (
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "NFC"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": False,
            },
            "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        },
    ):
        with pytest.raises(ValueError, match="changes the text"):
            bpe_from(bpe_spec, **changes)
    vocabulary = {t: i for t, i in bpe_spec["model"]["vocab"].items() if t != "x"}
    with pytest.raises(ValueError, match="not a byte-level BPE"):
        bpe_from(bpe_spec, model={**bpe_spec["model"], "vocab": vocabulary, "merges": []})


def altered_sentencepiece(tokenizer, alter):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(pickle_content(tokenizer))
    alter(model)
    return SentencePieceTokenizer(model.SerializeToString())


def pickle_content(tokenizer):
    return tokenizer.__reduce__()[1][0]


def test_sentencepiece_models_in_the_wild(tokenizers):
    def user_defined(model):
        for piece in model.pieces:
            piece.type = 4 if piece.type == 3 else piece.type

    wild = altered_sentencepiece(tokenizers["sentencepiece"], user_defined)
    assert wild.special_tokens == tokenizers["sentencepiece"].special_tokens
    assert wild.fingerprint == tokenizers["sentencepiece"].fingerprint
    assert wild.end_of_text_id not in wild.encode("<|endoftext|>")

    def trained_elsewhere(model):
        model.trainer_spec.model_prefix = "/somewhere/else"

    moved = altered_sentencepiece(tokenizers["sentencepiece"], trained_elsewhere)
    assert moved.fingerprint == tokenizers["sentencepiece"].fingerprint

    def dummy_prefix(model):
        model.normalizer_spec.add_dummy_prefix = True

    with pytest.raises(ValueError, match="changes the text"):
        altered_sentencepiece(tokenizers["sentencepiece"], dummy_prefix)

    def no_fallback(model):
        model.trainer_spec.byte_fallback = False

    with pytest.raises(ValueError, match="no byte fallback"):
        altered_sentencepiece(tokenizers["sentencepiece"], no_fallback)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"not json", "not a tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer.json"),
        ("tokenizer.json", b"[]", "not a tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "not a tokenizer.json"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}}, "added_tokens": []}', "byte-level"),
        ("some.model", b"nonsense", "not a SentencePiece model"),
        ("some.model", b"", "not a SentencePiece model"),
        ("vocab.txt", b"x", "a tokenizer is a tokenizer.json"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_missing_and_ambiguous_paths_are_refused(tmp_path, tokenizers):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="holds neither"):
        load_tokenizer(tmp_path)
    for kind in KINDS:
        tokenizers[kind].save(tmp_path)
    with pytest.raises(ValueError, match=r"holds tokenizer\.json and tokenizer\.model"):
        load_tokenizer(tmp_path)
