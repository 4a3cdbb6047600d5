import json

import numpy as np
import pytest
import seqio

from starcoder_jax.data import tasks
from starcoder_jax.data.config import DataConfig
from starcoder_jax.data.corpus import gather
from starcoder_jax.data.tokenizer_training import train_tokenizer

TEXTS = [f"def f_{number}(x):\n    return '{'é' * (number % 5)}' * x\n" for number in range(150)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for task, texts in (("one", TEXTS[:100]), ("two", TEXTS[100:])):
        rows = [{"text": text, "path": "é/\x00.py", "license": "ISC"} for text in texts]
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {task: f"jsonl:{folder}/{task}.jsonl" for task in ("one", "two")}
    data = DataConfig(sources, {"one": 3.0, "two": 1.0}, heldout_fraction=0.1)
    (folder / "spill").mkdir()
    return gather(data, folder / "spill")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, kind="bpe", vocab_size=310)


@pytest.mark.parametrize(("task", "split"), [("one", "train"), ("two", "validation")])
def test_a_task_gives_the_documents_tokens_in_order(corpus, tokenizer, task, split):
    tasks.register(corpus, tokenizer, {"one": 1.0})
    documents = list(corpus.documents(task, split))
    produced = list(tasks.tokenized_documents(task, split))
    assert len(produced) == len(documents) > 0
    for (info, tokens), document in zip(produced, documents, strict=True):
        assert tokens.dtype == np.int32
        assert tokens[-1] == tokenizer.end_of_text_id
        np.testing.assert_array_equal(tokens[:-1], tokenizer.encode(document.text))
        assert info == {
            "id": document.id,
            "path": document.path,
            "repository": document.repository,
            "license": "ISC",
            "bytes": len(document.text.encode()),
        }


def test_the_mixture_holds_the_rates_and_works_as_seqio_users_take_it(corpus, tokenizer):
    name = tasks.register(corpus, tokenizer, {"one": 3.0, "two": 1.0})
    mixture = seqio.get_mixture_or_task(name)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {tasks.task_name("one"): 3.0, tasks.task_name("two"): 1.0}
    dataset = mixture.get_dataset(
        {"targets": 8},
        split="train",
        shuffle=False,
        num_epochs=None,
        passthrough_features=["id"],
    )
    examples = list(dataset.take(40).as_numpy_iterator())
    texts = {document.id: document.text for document in corpus.documents("one", "train")}
    from_one = 0
    for example in examples:
        assert example["targets"].shape[0] <= 8
        text = texts.get(example["id"].decode())
        from_one += text is not None
        if text is not None:
            np.testing.assert_array_equal(example["targets"], tokenizer.encode(text)[:8])
    assert 20 <= from_one <= 38  # 30 expected


def test_registering_again_replaces(corpus, tokenizer):
    other = train_tokenizer(TEXTS[:30], kind="bpe", vocab_size=300)
    for chosen in (tokenizer, other, tokenizer):
        tasks.register(corpus, chosen, {"one": 1.0})
        task = seqio.get_mixture_or_task(tasks.task_name("one"))
        assert task.output_features["targets"].vocabulary.tokenizer is chosen
