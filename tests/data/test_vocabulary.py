import pickle

import numpy as np
import pytest

from starcoder_jax.data.tokenizer_training import train_tokenizer

CORPUS = [
    "def add(left, right):\n    return left + right\n" * 20,
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n" * 20,
]


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def tokenizer(request):
    return train_tokenizer(CORPUS, kind=request.param, vocab_size=335)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    from starcoder_jax.data.vocabulary import TokenizerVocabulary

    return TokenizerVocabulary(tokenizer)


def test_ids(vocabulary, tokenizer):
    assert vocabulary.vocab_size == tokenizer.vocab_size == 335
    assert vocabulary.eos_id == tokenizer.end_of_text_id == 0
    assert (vocabulary.bos_id, vocabulary.unk_id, vocabulary.pad_id) == (None, None, 0)


def test_python_and_tensorflow_agree(vocabulary, tokenizer):
    text = "def café(x):\n\treturn '中' <|endoftext|>\n"
    expected = tokenizer.encode(text)
    assert vocabulary.encode(text) == expected.tolist()
    encoded = vocabulary.encode_tf(text)
    np.testing.assert_array_equal(encoded, expected)
    assert vocabulary.decode(encoded) == text
    assert vocabulary.decode_tf(encoded).numpy().decode() == text


def test_decoding_stops_behind_the_first_end(vocabulary, tokenizer):
    rows = [tokenizer.encode("def add"), tokenizer.encode("left")]
    width = max(map(len, rows)) + 3
    batch = np.zeros((2, width), np.int32)
    for target, row in zip(batch, rows, strict=True):
        target[: len(row)] = row
    expected = [b"def add<|endoftext|>", b"left<|endoftext|>"]
    assert vocabulary.decode_tf(batch).numpy().tolist() == expected
    assert vocabulary.decode(batch[0].tolist()) == expected[0].decode()


def test_invalid_utf8_and_batches(vocabulary):
    import tensorflow as tf

    ids = vocabulary.encode_tf(tf.constant(b"x\xff"))
    assert vocabulary.decode(ids) == "x\ufffd"
    with pytest.raises(ValueError, match="one string at a time"):
        vocabulary.encode_tf(tf.constant([b"x", b"y"]))


def test_tokenizes_in_a_seqio_pipeline(vocabulary, tokenizer):
    import seqio
    import tensorflow as tf

    texts = ["def add(left", "", "return 12"]
    features = {"targets": seqio.Feature(vocabulary, add_eos=True)}
    dataset = tf.data.Dataset.from_tensor_slices({"targets": texts})
    dataset = seqio.preprocessors.tokenize(dataset, features, copy_pretokenized=False)
    dataset = seqio.preprocessors.append_eos(dataset, features)
    assert dataset.element_spec["targets"] == tf.TensorSpec([None], tf.int32)
    rows = [row["targets"].tolist() for row in dataset.as_numpy_iterator()]
    assert rows == [[*tokenizer.encode(text), 0] for text in texts]


def test_equality_is_of_the_vocabulary(vocabulary, tokenizer):
    from starcoder_jax.data.vocabulary import TokenizerVocabulary

    same = TokenizerVocabulary(pickle.loads(pickle.dumps(tokenizer)))
    assert vocabulary == same == pickle.loads(pickle.dumps(vocabulary))
    assert hash(vocabulary) == hash(same) and str(vocabulary) == str(same)
    other = train_tokenizer(CORPUS, kind="bpe", vocab_size=334)
    assert vocabulary != TokenizerVocabulary(other)
    assert vocabulary != tokenizer
