import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.data.documents import Document, document_id
from starcoder_jax.data.marks import encode_marked, joined, pieces
from starcoder_jax.data.tokenizer import STARCODER2_SPECIAL_TOKENS
from starcoder_jax.data.tokenizer_training import train_tokenizer

PARTS = st.lists(
    st.tuples(st.sampled_from(STARCODER2_SPECIAL_TOKENS[1:]), st.text(max_size=4)), max_size=5
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def f(x):\n    return x\n"], kind="bpe", vocab_size=295)


@given(beginning=st.text(max_size=4), parts=PARTS)
def test_pieces_of_what_was_joined(beginning, parts):
    parts = [(None, beginning.encode()), *((token, text.encode()) for token, text in parts)]
    content, marks = joined(parts)
    assert content == b"".join(text for _, text in parts)
    assert list(pieces(content, marks)) == parts


@given(texts=st.lists(st.tuples(st.text(max_size=4), PARTS), min_size=1, max_size=3))
def test_marks_become_special_tokens_and_text_never_does(tokenizer, texts):
    contents, marks, expected = [], [], []
    for beginning, parts in texts:
        beginning += "<EMAIL>"  # forged
        content, its = joined([(None, beginning.encode()), *((t, x.encode()) for t, x in parts)])
        contents.append(content.decode())
        marks.append(its)
        ids = tokenizer.encode(beginning).tolist()
        for token, text in parts:
            ids += [tokenizer.special_id(token), *tokenizer.encode(text).tolist()]
        expected.append(ids)
    assert [ids.tolist() for ids in encode_marked(tokenizer, contents, marks)] == expected


def test_redactions_are_text_where_the_vocabulary_has_no_token(tokenizer, monkeypatch):
    fewer = {k: v for k, v in tokenizer.special_tokens.items() if k != "<EMAIL>"}
    monkeypatch.setattr(tokenizer, "special_tokens", fewer)
    marks = [{"offset": 3, "token": "<EMAIL>"}, {"offset": 3, "token": "<KEY>"}]
    (ids,) = encode_marked(tokenizer, ["to é"], [marks])
    expected = [*tokenizer.encode("to <EMAIL>"), tokenizer.special_id("<KEY>")]
    assert ids.tolist() == [*expected, *tokenizer.encode("é")]
    monkeypatch.setattr(tokenizer, "special_tokens", {})
    with pytest.raises(ValueError, match="no special token '<file_sep>'"):
        encode_marked(tokenizer, ["a"], [[{"offset": 0, "token": "<file_sep>"}]])


def test_marks_are_a_part_of_the_identity():
    marks = [{"offset": 1, "token": "<KEY>"}]
    ids = {document_id(b"ab"), document_id(b"ab", marks)}
    ids |= {document_id(b"ab", [{**marks[0], "offset": 2}]), document_id(b"ab", marks * 2)}
    assert len(ids) == 4
    assert Document("ab", "p", "r", "MIT", marks).id == document_id(b"ab", marks)
    assert Document("ab", "p", "r", "MIT").id == document_id(b"ab")
