"""The corpus as seqio tasks and a mixture.

    corpus = gather(data, folder)
    mixture = register(corpus, load_tokenizer(path), data.rates)
    dataset = seqio.get_mixture_or_task(mixture).get_dataset(
        {"targets": 4096}, split="train", shuffle=False, passthrough_features=["id"]
    )

gives a `tf.data.Dataset` that any seqio-based trainer takes. An example of a task holds `targets`,
int32 [n + 1], a document's ids with <|endoftext|> at the end, beside the document's `id`, `path`,
`repository`, `license` (strings) and `bytes` (int64); a mixture passes those on that are asked for.
The token store is written from these tasks.

This module imports TensorFlow.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from starcoder_jax.data.corpus import SPLITS, Corpus
from starcoder_jax.data.documents import Document
from starcoder_jax.data.marks import encode_marked
from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.data.vocabulary import TokenizerVocabulary

MIXTURE = "starcoder_jax"

_FIELDS = ("id", "path", "repository", "license")
_DOCUMENTS_PER_CALL = 64


def task_name(task: str) -> str:
    """Returns the name under which seqio knows a task."""
    return f"{MIXTURE}.{task}"


def register(corpus: Corpus, tokenizer: Tokenizer, rates: Mapping[str, float]) -> str:
    """Registers a task for each source of the corpus, and a mixture of them at the given rates.

    They replace what was registered before under their names, `starcoder_jax.TASK` and
    `starcoder_jax`, and can be used for as long as the corpus lies on disk.

    Args:
        corpus: The documents.
        tokenizer: Makes the tokens.
        rates: Task name to its rate in the mixture, here counted in documents.

    Returns:
        The name of the mixture.
    """
    for task in corpus.counts:
        add_task(task_name(task), functools.partial(corpus.documents, task), SPLITS, tokenizer)
    add_mixture(MIXTURE, {task_name(task): rate for task, rate in rates.items()})
    return MIXTURE


def add_task(
    name: str,
    documents: Callable[[str], Iterable[Document]],
    splits: Sequence[str],
    tokenizer: Tokenizer,
) -> None:
    """Registers a task, in place of one of that name.

    Args:
        name: of the task.
        documents: gives the documents of a split.
        splits: there are.
        tokenizer: Makes the tokens.
    """
    feature = seqio.Feature(TokenizerVocabulary(tokenizer), add_eos=True, dtype=tf.int32)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(_dataset, documents), splits=splits),
        preprocessors=[_tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": feature},
    )


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
    """Registers a mixture of tasks at these rates, in place of one of that name."""
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, list(rates.items()))


def leave_accelerators_alone() -> None:
    """Keeps TensorFlow from taking all memory of GPUs that JAX is to use.

    Without effect in a process where TensorFlow has taken it already.
    """
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def tokenized_documents(task: str, split: str) -> Iterator[tuple[dict, np.ndarray]]:
    """Yields a registered task's documents in order, as `StoreWriter.write_split` takes them."""
    dataset = seqio.get_mixture_or_task(task_name(task)).get_dataset(split=split, shuffle=False)
    for example in dataset.as_numpy_iterator():
        info = {name: example[name].decode() for name in _FIELDS}
        yield {**info, "bytes": int(example["bytes"])}, example["targets"]


def _dataset(
    documents: Callable[[str], Iterable[Document]],
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
) -> tf.data.Dataset:
    # Documents lie in the order of their hashes, which is random already.
    del shuffle_files, seed

    def examples() -> Iterator[dict]:
        for document in documents(split):
            fields = {name: getattr(document, name) for name in _FIELDS}
            yield {
                "targets": document.text,
                "mark_offsets": [mark["offset"] for mark in document.marks],
                "mark_tokens": [mark["token"] for mark in document.marks],
                "bytes": document.num_bytes,
                **fields,
            }

    signature = {name: tf.TensorSpec((), tf.string) for name in ("targets", *_FIELDS)}
    signature["mark_offsets"] = tf.TensorSpec((None,), tf.int64)
    signature["mark_tokens"] = tf.TensorSpec((None,), tf.string)
    signature["bytes"] = tf.TensorSpec((), tf.int64)
    return tf.data.Dataset.from_generator(examples, output_signature=signature)


def _tokenize(dataset: tf.data.Dataset, output_features: seqio.preprocessors.OutputFeaturesType):
    """Replaces the text in `targets` and its marks by ids, int32 [n]."""
    tokenizer = output_features["targets"].vocabulary.tokenizer

    def encode(
        texts: np.ndarray, offsets: np.ndarray, tokens: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        every = [
            {"offset": int(offset), "token": token.decode()}
            for offset, token in zip(offsets, tokens, strict=True)
        ]
        ends = np.cumsum(counts)
        marks = [every[end - count : end] for count, end in zip(counts, ends, strict=True)]
        ids = encode_marked(tokenizer, [text.decode() for text in texts], marks)
        return np.concatenate(ids), np.array([len(row) for row in ids], np.int64)

    def encode_batch(batch: dict) -> dict:
        offsets, tokens = batch.pop("mark_offsets"), batch.pop("mark_tokens")
        arguments = [batch["targets"], offsets.values, tokens.values, offsets.row_lengths()]
        ids, lengths = tf.numpy_function(encode, arguments, (tf.int32, tf.int64))
        ids, lengths = tf.ensure_shape(ids, [None]), tf.ensure_shape(lengths, [None])
        return {**batch, "targets": tf.RaggedTensor.from_row_lengths(ids, lengths)}

    def dense(example: dict) -> dict:
        return {**example, "targets": tf.ensure_shape(tf.identity(example["targets"]), [None])}

    # A call per document would leave the tokenizer's threads idle.
    return dataset.ragged_batch(_DOCUMENTS_PER_CALL).map(encode_batch).unbatch().map(dense)
