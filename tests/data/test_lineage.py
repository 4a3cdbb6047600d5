import collections
import hashlib
import time

import numpy as np
import pytest
from grain.experimental import index_shuffle

from starcoder_jax.data import lineage
from starcoder_jax.data.lineage import shuffled_positions, steps_that_saw
from starcoder_jax.data.loader import Interleaving, Loader
from starcoder_jax.data.store import StoreWriter, TokenStore
from starcoder_jax.data.tokenizer_training import train_tokenizer

RUN = {"rates": {"code": 3, "prose": 1}, "batch_size": 4, "sequence_length": 16, "seed": 1}
STEPS = 150


def name(text):
    return hashlib.sha256(text.encode()).hexdigest()


# Windows within a document, documents within a window, and a text that both tasks have.
TEXTS = {
    "code": [f"x{n} = {n}\n" * (1 + n * n % 23) for n in range(30)] + ["both = 1\n"],
    "prose": ["both = 1\n", *(f"Sentence {n}. " * (1 + n % 7) for n in range(20))],
    "unused": ["y = 2\n" * 9],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    vocabulary = train_tokenizer(
        ["".join(TEXTS["code"] + TEXTS["prose"])], kind="bpe", vocab_size=300
    )
    directory = tmp_path_factory.mktemp("lineage") / "store"
    with StoreWriter(directory, vocabulary) as writer:
        for task, texts in TEXTS.items():
            writer.write_split(task, "train", (encoded(vocabulary, text) for text in texts))
        writer.finish({})
    return TokenStore(directory)


def encoded(vocabulary, text):
    about = {"id": name(text), "bytes": len(text), "path": "", "repository": "", "license": ""}
    return about, np.append(vocabulary.encode(text), vocabulary.end_of_text_id)


def test_it_is_the_inverse_of_trace(store):
    loader = Loader(store, fim=None, **RUN)
    expected = collections.defaultdict(list)
    epochs = set()
    for step in range(STEPS):
        for row in range(RUN["batch_size"]):
            trace = loader.trace(step, row)
            epochs.add((trace.task, trace.epoch))
            for document in {span.id for span in trace.spans}:
                expected[document].append([step, row])
    assert len(epochs) > 4
    everything = {name(text) for task in ("code", "prose") for text in TEXTS[task]}
    seen = steps_that_saw(store, everything | {name("not there")}, steps=STEPS, **RUN)
    assert list(seen) == sorted(everything)
    assert sum(map(len, seen.values())) > 500
    for document, rows in seen.items():
        assert rows.dtype == np.int64 and rows.shape[1:] == (2,)
        assert rows.tolist() == expected[document]
    one = name("both = 1\n")
    alone = steps_that_saw(store, [one], steps=STEPS, **RUN)
    assert list(alone) == [one] and alone[one].tolist() == expected[one]


def test_a_run_that_did_nothing_and_a_task_that_is_not_in_the_mixture(store):
    both, unused = name("both = 1\n"), name(TEXTS["unused"][0])
    assert steps_that_saw(store, [both], steps=0, **RUN)[both].shape == (0, 2)
    assert steps_that_saw(store, [unused], steps=STEPS, **RUN) == {}


@pytest.mark.parametrize("bad", ["", "abc", "g" * 64, "a" * 63])
def test_bad_ids(store, bad):
    with pytest.raises(ValueError, match="not a SHA-256 in hex"):
        steps_that_saw(store, [bad], steps=1, **RUN)


@pytest.mark.parametrize("length", [1, 2, 300, 16_384, 20_001, 65_536, 65_537])
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_positions_are_those_of_grain(length, seed):
    order = [index_shuffle(p, max_index=length - 1, seed=seed, rounds=4) for p in range(length)]
    values = np.unique(np.linspace(0, length - 1, 200).astype(np.int64))
    found = sorted(zip(*shuffled_positions(values, length, seed), strict=True))
    wanted = set(values.tolist())
    expected = sorted((value, p) for p, value in enumerate(order) if value in wanted)
    assert found == expected


def test_another_permutation_is_searched(monkeypatch):
    monkeypatch.setattr(
        lineage, "index_shuffle", lambda index, max_index, seed, rounds: max_index - index
    )
    values, positions = shuffled_positions(np.array([0, 7]), 20_000, 0)
    assert sorted(zip(values, positions, strict=True)) == [(0, 19_999), (7, 19_992)]


def test_a_large_task_is_searched_at_once():
    values = np.arange(0, 10**9, 10**6)
    started = time.perf_counter()
    found, positions = shuffled_positions(values, 10**9, 3)
    assert time.perf_counter() - started < 5
    np.testing.assert_array_equal(found, values)
    shuffled = [index_shuffle(int(p), max_index=10**9 - 1, seed=3, rounds=4) for p in positions]
    assert shuffled == values.tolist()


@pytest.mark.parametrize("rates", [[1], [3, 1], [1, 1000], ["0.7", 0.3], [5, 2, 9, 1]])
def test_interleaving_runs_backwards(rates):
    interleaving = Interleaving(rates)
    counts = [0] * len(rates)
    for index in range(5000):
        assert [interleaving.count(d, index) for d in range(len(rates))] == counts
        dataset, position = interleaving[index]
        assert interleaving.index(dataset, position) == index
        counts[dataset] += 1
    assert min(counts) > 0
