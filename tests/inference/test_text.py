import itertools
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from starcoder_jax.data import tokenizer as tokenizer_module
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.inference.text import TextStream

CORPUS = [
    pathlib.Path(tokenizer_module.__file__).read_text(encoding="utf-8"),
    "# naïve café 中文 ▁ 😀\nfor i in range(2024):\n        print(i)\n" * 20,
]
KINDS = ("bpe", "sentencepiece")
# Whole characters, their halves, and strings that begin or contain one another.
ODD = ["é", "中", "😀", "👩‍💻", "e\u0301", "\r\n", "\n", "a", "ab", "aab", "ba", "▁", "\ufffd"]


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer(CORPUS, kind=kind, vocab_size=460) for kind in KINDS}


def whole(tokenizer, ids, stop):
    """What the text is, by its definition."""
    text = tokenizer.decode(ids)
    places = [text.find(string) for string in stop if string in text]
    return text[: min(places, default=len(text))], bool(places)


def byte_ids(tokenizer, content):
    """A token for each byte: the splitting that cuts every character."""
    ids = {tokenizer.decode_bytes([index]): index for index in range(tokenizer.vocab_size)}
    return [ids[bytes([byte])] for byte in content]


def streamed(tokenizer, ids, stop):
    """Text after each token, the last one after the end; and whether it stopped."""
    stream = TextStream(tokenizer, stop)
    texts = []
    for index in ids:
        stream.feed(index)
        texts.append(stream.text)
    stream.finish()
    return [*texts, stream.text], stream.stopped


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(data=st.data())
def test_is_what_decoding_at_once_and_cutting_gives(kind, tokenizers, data):
    tokenizer = tokenizers[kind]
    piece = st.one_of(st.sampled_from(ODD), st.text("ab", max_size=4), st.text(max_size=2))
    text = st.lists(piece, max_size=8).map("".join)
    # Each stretch is split as the vocabulary does, byte by byte, or is no text at all.
    stretch = st.one_of(
        text.map(lambda t: tokenizer.encode(t).tolist()),
        text.map(lambda t: byte_ids(tokenizer, t.encode())),
        st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4),
    )
    ids = list(itertools.chain(*data.draw(st.lists(stretch, max_size=6))))
    stop = data.draw(st.lists(text.filter(bool), max_size=3))
    decoded = tokenizer.decode(ids)
    if decoded and data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(decoded) - 1))
        stop.append(decoded[start : start + data.draw(st.integers(1, 5))])

    texts, stopped = streamed(tokenizer, ids, stop)
    assert (texts[-1], stopped) == whole(tokenizer, ids, stop)
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(text=st.lists(st.sampled_from(ODD), max_size=8).map("".join), data=st.data())
def test_holds_back_no_more_than_it_must(kind, tokenizers, text, data):
    tokenizer = tokenizers[kind]
    stop = data.draw(st.lists(st.sampled_from(ODD), max_size=3))
    ids = byte_ids(tokenizer, text.encode())
    texts, _ = streamed(tokenizer, ids, stop)
    for count, certain in enumerate(texts[:-1], start=1):
        # What was whole characters then, without the longest end that begins a stop string.
        seen = tokenizer.decode_bytes(ids[:count]).decode("utf-8", "ignore")
        end = min((seen.find(string) for string in stop if string in seen), default=len(seen))
        possible = [n for n in range(end) if any(s.startswith(seen[n:]) for s in stop)]
        assert certain == seen[: min(possible, default=end)]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def test_half_a_character_waits_and_becomes_the_replacement_character(tokenizer):
    ids = byte_ids(tokenizer, "a😀b".encode())
    assert streamed(tokenizer, ids, ())[0] == ["a", "a", "a", "a", "a😀", "a😀b", "a😀b"]
    assert streamed(tokenizer, ids[:3], ())[0] == ["a", "a", "a", "a\ufffd"]


def test_what_may_become_a_stop_string_waits(tokenizer):
    ids = byte_ids(tokenizer, b"a\ndefine\ndef f")
    texts, stopped = streamed(tokenizer, ids, ["\ndef "])
    assert texts[:6] == ["a"] * 5 + ["a\ndefi"] and stopped
    assert texts[-1] == "a\ndefine"
    assert texts[8] == "a\ndefine" and set(texts[8:]) == {"a\ndefine"}


def test_a_stop_string_inside_a_token_ends_the_text(tokenizer):
    ids = tokenizer.encode("        return")
    assert len(ids) < 8
    texts, stopped = streamed(tokenizer, ids, ["re"])
    assert stopped and texts[-1] == "        "


@pytest.mark.parametrize(("text", "expected"), [("xabcdy", "x"), ("xabcy", "xa"), ("xabc", "xa")])
def test_an_earlier_stop_string_may_still_come_about(tokenizer, text, expected):
    texts, stopped = streamed(tokenizer, byte_ids(tokenizer, text.encode()), ["bc", "abcd"])
    assert texts[:4] == ["x"] * 4
    assert (texts[-1], stopped) == (expected, True)


def test_what_follows_a_stop_string_changes_nothing(tokenizer):
    stream = TextStream(tokenizer, [";"])
    for index in byte_ids(tokenizer, "a;b;\xe9".encode()):
        stream.feed(index)
    stream.finish()
    assert (stream.text, stream.stopped) == ("a", True)


def test_an_id_outside_of_the_vocabulary_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="token id 460 is outside"):
        TextStream(tokenizer).feed(460)
