import collections
import contextlib
import dataclasses
import hashlib
import itertools
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import grain
import numpy as np
import pytest

from starcoder_jax.data.fim import FillInTheMiddle, FimConfig
from starcoder_jax.data.loader import Loader, fingerprint, format_fingerprint, num_windows
from starcoder_jax.data.store import StoreWriter, TokenStore
from starcoder_jax.data.tokenizer_training import train_tokenizer

LENGTH = 32
RATES = {"code": 3, "prose": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of two tasks, of about 120 and 20 windows of `LENGTH`, and one far too small."""
    with open(textwrap.__file__) as file:
        source = file.read()
    vocabulary = train_tokenizer([source], kind="bpe", vocab_size=500)
    texts = {
        "code": [source[start : start + 500] for start in range(0, 12_000, 500)],
        "prose": [f"Sentence {number} of the prose. " * number for number in range(1, 12)],
        "tiny": ["x = y + 1"],
    }
    directory = tmp_path_factory.mktemp("loader") / "store"
    with StoreWriter(directory, vocabulary) as writer:
        for task, split in itertools.product(texts, ("train", "validation")):
            writer.write_split(task, split, encoded(vocabulary, texts[task]))
        writer.finish({})
    return TokenStore(directory)


def encoded(vocabulary, texts):
    for number, text in enumerate(texts):
        data = text.encode()
        fields = {"path": f"{number}.py", "repository": "test 1", "license": "MIT"}
        ids = np.append(vocabulary.encode(text), vocabulary.end_of_text_id)
        yield {"id": hashlib.sha256(data).hexdigest(), "bytes": len(data), **fields}, ids


def make_loader(store, **changes):
    arguments = {
        "rates": RATES,
        "batch_size": 8,
        "sequence_length": LENGTH,
        "seed": 1,
        "fim": FimConfig(),
    }
    return Loader(store, **(arguments | changes))


@pytest.mark.parametrize(
    "parts", [(range(8),), (range(4), range(4, 8)), ((0, 1, 4), (7, 2, 3, 6, 5))]
)
def test_rows_do_not_depend_on_who_reads_them(store, parts):
    whole = make_loader(store)
    loaders = [make_loader(store, rows=rows) for rows in parts]
    for step in (0, 1, 77):
        expected = whole.batch(step)
        assert expected.dtype == np.int32 and expected.shape == (8, LENGTH + 1)
        assert len({row.tobytes() for row in expected}) == 8
        sums = 0
        for rows, loader in zip(parts, loaders, strict=True):
            part = loader.batch(step)
            np.testing.assert_array_equal(part, expected[list(rows)])
            sums += fingerprint(part, rows)
        assert sums % 2**64 == fingerprint(expected)


@pytest.mark.parametrize("start", [0, 5, 1234])
def test_batches_equal_batch(store, start):
    loader = make_loader(store, rows=(1, 4, 5))
    with contextlib.closing(loader.batches(start)) as batches:
        for step in range(start, start + 12):
            np.testing.assert_array_equal(next(batches), loader.batch(step))


def test_batches_of_worker_processes_equal_batch(store):
    loader = make_loader(store, rows=(1, 4, 5), read_workers=2)
    with contextlib.closing(loader.batches(101)) as batches:
        for step in range(101, 108):
            np.testing.assert_array_equal(next(batches), loader.batch(step))


def test_worker_processes_do_not_outlive_one_that_is_killed(store):
    code = f"""
import multiprocessing, os, signal
from starcoder_jax.data.loader import Loader
from starcoder_jax.data.store import TokenStore

store = TokenStore({str(store.directory)!r})
loader = Loader(
    store, rates={RATES}, batch_size=8, sequence_length=32, seed=1, fim=None, read_workers=2
)
batches = loader.batches(0)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The workers inherit stdout: it ends when the last one does.
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 2


def test_steps_far_away_are_as_quick_as_the_first(store):
    loader = make_loader(store)
    loader.batch(0)
    started = time.perf_counter()
    far = loader.batch(10**9)
    with contextlib.closing(loader.batches(10**9)) as batches:
        np.testing.assert_array_equal(next(batches), far)
    assert loader.trace(10**9, 7).epoch > 10**6
    assert time.perf_counter() - started < 5


def test_each_epoch_visits_every_window_once_in_another_order(store):
    loader = make_loader(store, rates={"code": 1}, batch_size=1)
    windows = loader.tokens_per_epoch["code"] // LENGTH
    assert windows > 100
    orders = []
    for epoch in range(3):
        traces = [loader.trace(epoch * windows + i, 0) for i in range(windows)]
        assert {trace.epoch for trace in traces} == {epoch}
        orders.append([trace.window for trace in traces])
        assert sorted(orders[-1]) == list(range(windows))
    assert len({tuple(order) for order in orders}) == 3
    assert list(range(windows)) not in orders


def test_a_split_of_one_window_repeats_it(store):
    length = store.split("prose", "train").num_tokens - 1
    loader = make_loader(store, rates={"prose": 1}, sequence_length=length, fim=None)
    assert loader.tokens_per_epoch == {"prose": length}
    rows = loader.batch(3)
    expected = store.split("prose", "train").tokens(0, length + 1)
    np.testing.assert_array_equal(rows, np.broadcast_to(expected, (8, length + 1)))


@pytest.mark.parametrize(
    "rates", [{"code": 3, "prose": 1}, {"code": 0.7, "prose": 0.3}, {"code": 1, "prose": 0.001}]
)
def test_rates_hold_at_every_point(store, rates):
    loader = make_loader(store, rates=rates)
    counts = collections.Counter()
    share = rates["code"] / sum(rates.values())
    for row in range(3000):
        counts[loader.trace(row // 8, row % 8).task] += 1
        assert abs(counts["code"] - share * (row + 1)) < 1
    assert min(counts.values()) > 0


def test_rates_of_many_tasks_are_exact_far_away(store):
    loader = make_loader(store, rates={"code": 0.7, "prose": 0.2, "tiny": 0.1}, sequence_length=2)
    first = 10**12
    tasks = collections.Counter(loader.trace(first + i // 8, i % 8).task for i in range(1000))
    assert tasks == {"code": 700, "prose": 200, "tiny": 100}
    # The windows taken of each task before a row tell how many rows it had: 8e12 * rate.
    for row in range(40):
        trace = loader.trace(first, row % 8)
        windows = loader.tokens_per_epoch[trace.task] // 2
        rate = {"code": 0.7, "prose": 0.2, "tiny": 0.1}[trace.task]
        assert trace.epoch == pytest.approx(8 * first * rate / windows, abs=2, rel=0)


def test_only_ratios_of_rates_matter(store):
    first = make_loader(store, rates={"code": 0.7, "prose": 0.3})
    second = make_loader(store, rates={"prose": 30, "code": 70})
    for step in (0, 3, 10**6):
        np.testing.assert_array_equal(first.batch(step), second.batch(step))


def test_trace_agrees_with_the_tokens(store):
    loader = make_loader(store, fim=None)
    seen = collections.Counter()
    for step in range(6):
        for row, tokens in enumerate(loader.batch(step)):
            trace = loader.trace(step, row)
            seen[trace.task] += 1
            split = store.split(trace.task, "train")
            start = trace.window * LENGTH
            np.testing.assert_array_equal(tokens, split.tokens(start, start + LENGTH + 1))
            assert [span.stop for span in trace.spans[:-1]] == [s.start for s in trace.spans[1:]]
            assert (trace.spans[0].start, trace.spans[-1].stop) == (0, LENGTH + 1)
            for span in trace.spans:
                info = split.document_info(span.index)
                assert info["id"] == span.id
                text = store.tokenizer.decode(split.document_tokens(span.index))
                assert hashlib.sha256(text.encode()).hexdigest() == span.id
                piece = tokens[span.start : span.stop].tolist()
                if piece[-1] == store.tokenizer.end_of_text_id:
                    assert text.endswith(store.tokenizer.decode(piece[:-1]))
                else:
                    assert store.tokenizer.decode(piece) in text
    assert min(seen[task] for task in RATES) > 5


def test_fim_applies_to_the_traced_window_and_depends_on_the_row_number(store):
    plain, permuted = make_loader(store, fim=None), make_loader(store, fim=FimConfig(rate=1))
    transform = FillInTheMiddle(FimConfig(rate=1), store.tokenizer)
    markers = [store.tokenizer.special_id(f"<fim_{n}>") for n in ("prefix", "suffix", "middle")]
    end_of_text = store.tokenizer.end_of_text_id
    for step in range(4):
        for before, after in zip(plain.batch(step), permuted.batch(step), strict=True):
            # Another generator gives other cuts, and the same documents in the same order.
            other = transform(before, np.random.default_rng(step))
            assert not np.array_equal(after, other)
            assert after[0] == markers[0]
            assert np.isin(before, markers).sum() == 0
            assert (after == end_of_text).sum() <= (before == end_of_text).sum()
    # The same window in another epoch is cut elsewhere.
    single = make_loader(store, rates={"prose": 1}, batch_size=1, fim=FimConfig(rate=1))
    windows = single.tokens_per_epoch["prose"] // LENGTH
    wanted = single.trace(0, 0).window
    again = next(s for s in range(windows, 2 * windows) if single.trace(s, 0).window == wanted)
    assert not np.array_equal(single.batch(0), single.batch(again))


def test_fim_of_rate_zero_needs_no_special_tokens(store):
    config = FimConfig(rate=0, prefix_token="<none>")
    np.testing.assert_array_equal(
        make_loader(store, fim=config).batch(3), make_loader(store, fim=None).batch(3)
    )


def test_seed_changes_order_and_fim(store):
    # Where there is one window only, nothing but the cuts can differ.
    length = store.split("prose", "train").num_tokens - 1
    single = {"rates": {"prose": 1}, "sequence_length": length, "fim": FimConfig(rate=1)}
    first, second = (make_loader(store, seed=seed, **single).batch(0) for seed in (1, 2))
    assert not np.array_equal(first, second)
    # The shuffle of an epoch must not be that of another seed's next one.
    windows = make_loader(store, rates={"code": 1}).tokens_per_epoch["code"] // LENGTH
    orders = {
        tuple(loader.trace(epoch * windows + i, 0).window for i in range(windows))
        for seed, epoch in itertools.product((1, 2, 2**40), (0, 1))
        for loader in [make_loader(store, rates={"code": 1}, batch_size=1, seed=seed)]
    }
    assert len(orders) == 6


def test_data_order_is_the_one_that_earlier_runs_had(tmp_path, store):
    # A run resumed with another version of the loader or of Grain must go on with the same data.
    ids = np.append(np.full(20 * LENGTH, 100), store.tokenizer.end_of_text_id)
    fields = {"path": "", "repository": "", "license": "", "bytes": 1, "id": "0" * 64}
    with StoreWriter(tmp_path / "store", store.tokenizer) as writer:
        for task in ("a", "b"):
            writer.write_split(task, "train", [(fields, ids)])
        writer.finish({})
    loader = make_loader(
        TokenStore(tmp_path / "store"), rates={"a": 2, "b": 1}, batch_size=1, seed=5
    )
    traces = [loader.trace(step, 0) for step in (0, 1, 2, 3, 4, 5, 59, 60, 61)]
    order = ", ".join(f"{trace.task} {trace.epoch} {trace.window}" for trace in traces)
    assert order == "b 0 18, a 0 18, a 0 16, b 0 7, a 0 11, a 0 12, a 1 0, b 1 0, a 2 15"
    coins = grain.MapDataset.range(8).random_map(lambda _, rng: rng.integers(2**32), seed=1)
    assert coins[7] == 1281801149


def test_splits_are_read_apart(store):
    loader = make_loader(store, split="validation", fim=None)
    trace = loader.trace(0, 0)
    expected = store.split(trace.task, "validation").tokens(
        trace.window * LENGTH, trace.window * LENGTH + LENGTH + 1
    )
    np.testing.assert_array_equal(loader.batch(0)[0], expected)


def test_loader_can_be_pickled(store):
    loader = make_loader(store)
    copy = pickle.loads(pickle.dumps(loader))
    np.testing.assert_array_equal(copy.batch(9), loader.batch(9))
    assert dataclasses.asdict(copy.trace(9, 1)) == dataclasses.asdict(loader.trace(9, 1))


def test_fingerprint_tells_rows_and_their_order():
    rows = np.arange(12, dtype=np.int32).reshape(3, 4)
    value = fingerprint(rows)
    assert value == fingerprint(rows.copy(order="F")) == fingerprint(rows.astype(np.int64))
    assert value == (fingerprint(rows[[2, 0]], (2, 0)) + fingerprint(rows[1:2], [1])) % 2**64
    assert len({value, fingerprint(rows, range(1, 4)), fingerprint(rows[::-1])}) == 3
    digest = hashlib.blake2b(bytes(8) + rows[0].tobytes(), digest_size=8).digest()
    assert fingerprint(rows[:1]) == int.from_bytes(digest, "little")
    assert format_fingerprint(10) == "000000000000000a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rows": ()}, r"rows are \[\]: .* the 8 of a batch"),
        ({"rows": (0, 8)}, r"rows are \[0, 8\]"),
        ({"rows": (-1, 0)}, r"rows are \[-1, 0\]"),
        ({"sequence_length": 1}, "sequence_length is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"read_workers": -1}, "read_workers is -1"),
        ({"rates": {}}, "rates is empty"),
        ({"rates": {"cod": 1}}, "unknown task 'cod'.*code, prose, tiny"),
        ({"rates": {"code": 0}}, "rate of task 'code' is 0"),
        ({"rates": {"code": -1}}, "rate of task 'code' is -1"),
        ({"rates": {"code": float("nan")}}, "rate of task 'code' is nan"),
        ({"rates": {"code": 1, "tiny": 1}}, "train split of task 'tiny'.* 33 tokens"),
        ({"split": "test"}, "no split 'test'"),
        ({"fim": FimConfig(middle_token="<fim_mid>")}, "'<fim_mid>'.*'<fim_middle>'"),
    ],
)
def test_bad_arguments(store, changes, message):
    with pytest.raises(ValueError, match=message):
        make_loader(store, **changes)


def test_bad_steps_and_rows(store):
    loader = make_loader(store)
    for call in (lambda: loader.batch(-1), lambda: loader.batches(-1), lambda: loader.trace(-1, 0)):
        with pytest.raises(ValueError, match="step -1"):
            call()
    for row in (-1, 8):
        with pytest.raises(ValueError, match=f"row {row}"):
            loader.trace(0, row)


@pytest.mark.parametrize("count", [65_535, 65_536, 65_537, 65_538])
def test_an_epoch_has_every_window_once_however_many_there_are(count):
    windows = num_windows(count * 8 + 1, 8)
    assert windows == (65_536 if count == 65_537 else count)
    shuffled = grain.MapDataset.range(windows).shuffle(seed=3)
    assert len({shuffled[position] for position in range(windows)}) == windows
    assert [num_windows(n + 1, 1) for n in (1, 2, 5, 1025, 262_144, 262_145, 2**17 + 1)] == [
        *(1, 2, 5, 1025, 262_144, 262_144, 2**17 + 1)
    ]
