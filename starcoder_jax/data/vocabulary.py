"""A seqio vocabulary over any tokenizer. Importing this module imports TensorFlow."""

import numpy as np
import seqio
import tensorflow as tf

from starcoder_jax.data.tokenizer import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
    """Lets seqio tasks tokenize with a `Tokenizer`. Equal if the fingerprints are.

    End of sequence is `<|endoftext|>`. There is no unknown token and no beginning of sequence.

    Padding: seqio pads with id 0 whatever a vocabulary says, and its feature converters give
    targets of id 0 no loss. In the StarCoder family id 0 is `<|endoftext|>`, so a model trained
    through those converters never learns to stop. Tasks that use this vocabulary therefore end at
    tokenized documents; packing is the token store's and the loader's, which pad nothing with 0.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self._eos_id = tokenizer.end_of_text_id

    @property
    def bos_id(self) -> None:
        """None: nothing is put in front of a document."""
        return None

    @property
    def eos_id(self) -> int:
        """The id of `<|endoftext|>`."""
        return self._eos_id

    @property
    def unk_id(self) -> None:
        """None: every text can be spelled."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s).tolist()

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """Encodes a scalar string; bytes that are not valid UTF-8 become U+FFFD."""
        s = tf.convert_to_tensor(s)
        if s.shape.rank != 0:
            raise ValueError(f"encode_tf takes one string at a time, not the shape {s.shape}")
        ids = tf.numpy_function(self._encode_bytes, [s], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Decodes int32 [..., n] to strings [...], each up to its first end of sequence."""
        text = tf.numpy_function(self._decode_rows, [ids], tf.string, stateful=False)
        return tf.ensure_shape(text, ids.shape[:-1])

    def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
        # TensorFlow hands over bytes inside a graph, and an array of shape () outside of one.
        text = np.asarray(text, dtype=object).item()
        return self.tokenizer.encode(text.decode("utf-8", errors="replace"))

    def _decode_rows(self, ids: np.ndarray) -> np.ndarray:
        texts = np.empty(ids.shape[:-1], dtype=object)
        for index in np.ndindex(texts.shape):
            row = ids[index]
            # seqio has put padding, here more ends of sequence, behind the first one.
            ends = np.flatnonzero(row == self._eos_id)
            texts[index] = self.tokenizer.decode_bytes(row[: ends[0] + 1] if ends.size else row)
        return texts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizerVocabulary):
            return NotImplemented
        return self.tokenizer.fingerprint == other.tokenizer.fingerprint

    def __hash__(self) -> int:
        return hash(self.tokenizer.fingerprint)

    def __str__(self) -> str:
        return f"TokenizerVocabulary({self.tokenizer.fingerprint})"
