import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.data import shards
from starcoder_jax.data.store import MANIFEST, StoreWriter, TokenStore
from starcoder_jax.data.tokenizer_training import train_tokenizer

END = 0


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["to be or not to be " * 4], kind="bpe", vocab_size=300)


def document(tokens, number):
    id_ = hashlib.sha256(f"{number}".encode()).hexdigest()
    info = {"id": id_, "path": f"{number}\n.py", "repository": "r", "license": "MIT", "bytes": 7}
    return info, np.append(np.asarray(tokens, np.int32), END)


def random_documents(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [document(rng.integers(38, 300, n), number) for number, n in enumerate(lengths)]


def write(directory, tokenizer, documents, validation=()):
    with StoreWriter(directory, tokenizer) as writer:
        writer.write_split("python", "train", documents)
        writer.write_split("python", "validation", validation)
        writer.finish({"config": {"a": 1}})
    return TokenStore(directory)


def test_what_is_written_is_read(tmp_path, tokenizer):
    documents = random_documents([5, 1, 700, 33])
    store = write(tmp_path / "data", tokenizer, documents, random_documents([3], seed=1))
    assert store.tasks == ("python",)
    assert store.tokenizer.fingerprint == tokenizer.fingerprint
    assert store.manifest["config"] == {"a": 1}
    assert store.manifest["vocab_size"] == 300
    split = store.split("python", "train")
    assert (split.num_documents, split.num_tokens) == (4, 743)
    assert store.split("python", "validation").num_tokens == 4
    for index, (info, tokens) in enumerate(documents):
        assert split.document_info(index) == {**info, "tokens": len(tokens) - 1}
        np.testing.assert_array_equal(split.document_tokens(index), tokens[:-1])
    stream = split.tokens(0, 743)
    assert stream.dtype == np.int32
    np.testing.assert_array_equal(stream, np.concatenate([tokens for _, tokens in documents]))
    summary = store.manifest["tasks"]["python"]["train"]
    assert (summary["documents"], summary["tokens"], summary["bytes"]) == (4, 743, 28)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_window_is_a_slice_of_the_stream_and_covered_by_spans(tmp_path_factory, data):
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=20))
    documents = random_documents(lengths)
    tokenizer = train_tokenizer(["to be or not to be " * 4], kind="bpe", vocab_size=296)
    documents = [(info, np.minimum(tokens, 295)) for info, tokens in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "RECORD_TOKENS", data.draw(st.integers(1, 40)))
        patch.setattr(shards, "SHARD_TOKENS", data.draw(st.integers(1, 200)))
        directory = tmp_path_factory.mktemp("store") / "data"
        split = write(directory, tokenizer, documents).split("python", "train")
    whole = np.concatenate([tokens for _, tokens in documents])
    assert split.num_tokens == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    window = split.tokens(start, stop)
    np.testing.assert_array_equal(window, whole[start:stop])
    spans = split.documents(start, stop)
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])][: len(spans)]
    assert (spans[-1].stop if spans else 0) == stop - start
    for span in spans:
        assert span.stop > span.start
        info, tokens = documents[span.index]
        assert span.id == info["id"]
        before = sum(len(tokens) for _, tokens in documents[: span.index])
        offset = start + span.start - before
        piece = tokens[offset : offset + span.stop - span.start]
        np.testing.assert_array_equal(window[span.start : span.stop], piece)


def test_long_documents_are_cut_and_many_tokens_make_many_shards(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100_000)
    documents = random_documents([250_000, 10, 90_000])
    split = write(tmp_path / "data", tokenizer, documents).split("python", "train")
    names = sorted(path.name for path in (tmp_path / "data" / "python").glob("train-*"))
    count = len(names)
    assert count > 2
    assert names == [f"train-{n:05d}-of-{count:05d}.array_record" for n in range(count)]
    for index, (_, tokens) in enumerate(documents):
        np.testing.assert_array_equal(split.document_tokens(index), tokens[:-1])
    with np.load(tmp_path / "data" / "python" / "train.index.npz") as index:
        assert np.diff(index["record_starts"]).max() == shards.RECORD_TOKENS == 16384


def test_large_vocabularies_take_four_bytes(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocab_size", 2**16 + 1)
    store = write(tmp_path / "data", tokenizer, [document([2**16, 5], 0)])
    assert store.manifest["token_dtype"] == "uint32"
    assert store.split("python", "train").tokens(0, 3).tolist() == [2**16, 5, END]


def test_an_empty_split(tmp_path, tokenizer):
    store = write(tmp_path / "data", tokenizer, random_documents([4]))
    split = store.split("python", "validation")
    assert (split.num_documents, split.num_tokens) == (0, 0)
    assert split.tokens(0, 0).shape == (0,) and split.documents(0, 0) == []


def test_ranges_outside_the_stream_are_refused(tmp_path, tokenizer):
    split = write(tmp_path / "data", tokenizer, random_documents([4])).split("python", "train")
    for start, stop in ((-1, 2), (0, 6), (3, 2), (6, 6)):
        with pytest.raises(ValueError, match="not among the 5"):
            split.tokens(start, stop)
        with pytest.raises(ValueError, match="not among the 5"):
            split.documents(start, stop)
    for index in (-1, 1):
        with pytest.raises(ValueError, match="not among the 1"):
            split.document_info(index)
        with pytest.raises(ValueError, match="not among the 1"):
            split.document_tokens(index)


def test_documents_that_are_wrong_are_refused(tmp_path, tokenizer):
    info, tokens = document([50, 60], 0)
    for wrong, message in (
        (tokens[:-1], "does not end with"),
        (tokens[:0], "does not end with"),
        (np.append(300, tokens), "outside the vocabulary"),
        (np.append(-1, tokens), "outside the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "data", tokenizer, [(info, wrong)])
        assert not any(tmp_path.iterdir())


def test_unknown_tasks_and_splits_are_named(tmp_path, tokenizer):
    store = write(tmp_path / "data", tokenizer, random_documents([4]))
    with pytest.raises(ValueError, match=r"no task 'rust' .* it holds python"):
        store.split("rust", "train")
    with pytest.raises(ValueError, match=r"no split 'test': it has train, validation"):
        store.split("python", "test")


def read_slice(split, start, stop):
    return split.tokens(start, stop)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_splits_can_be_used_in_other_processes_and_threads(tmp_path, tokenizer, method):
    store = write(tmp_path / "data", tokenizer, random_documents([4000] * 5))
    split = store.split("python", "train")
    expected = split.tokens(0, 20_000)  # opens files here first
    copy = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(copy.tokens(100, 9000), expected[100:9000])
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.split("python", "train").tokens(7, 99), expected[7:99])
    with multiprocessing.get_context(method).Pool(1) as pool:
        there = pool.apply_async(read_slice, (split, 100, 9000)).get(timeout=60)
    np.testing.assert_array_equal(there, expected[100:9000])
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        fresh = store.split("python", "train")
        for start, got in zip(
            range(0, 10_000, 50),
            threads.map(lambda start: fresh.tokens(start, start + 999), range(0, 10_000, 50)),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected[start : start + 999])


def test_a_failed_writer_leaves_nothing_and_what_was_there(tmp_path, tokenizer):
    store = write(tmp_path / "data", tokenizer, random_documents([4]))
    before = store.split("python", "train").tokens(0, 5)

    def failing():
        yield from random_documents([9, 9])
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write(tmp_path / "other", tokenizer, failing())
    with pytest.raises(ValueError, match=r"cannot put the token store at .*data.*remove what is"):
        write(tmp_path / "data", tokenizer, random_documents([8]))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    np.testing.assert_array_equal(
        TokenStore(tmp_path / "data").split("python", "train").tokens(0, 5), before
    )


WRITER = """
import itertools, resource, signal, sys
import numpy as np
from starcoder_jax.data.store import StoreWriter
from starcoder_jax.data.tokenizer_training import train_tokenizer
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
tokenizer = train_tokenizer(["to be or not to be " * 4], kind="bpe", vocab_size=300)
rng = np.random.default_rng(0)
def documents():
    for number in itertools.count() if sys.argv[2] == "forever" else range(100):
        if number == 50: print("writing", flush=True)
        info = dict(id=f"{number:064x}", path="p", repository="r", license="MIT", bytes=1)
        yield info, np.append(rng.integers(38, 300, 20000), 0)
with StoreWriter(sys.argv[1], tokenizer) as writer:
    writer.write_split("python", "train", documents())
    writer.finish({})
"""


def test_a_killed_writer_leaves_no_store_and_the_next_one_cleans_up(tmp_path, tokenizer):
    directory = tmp_path / "data"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, directory, "forever"], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["data.partial"]
    with pytest.raises(ValueError, match="no token store at"):
        TokenStore(directory)
    split = write(directory, tokenizer, random_documents([4])).split("python", "train")
    assert split.num_tokens == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_full_disk_leaves_no_store(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path / "data", "full"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "OSError" in process.stderr and "File too large" in process.stderr
    assert not any(tmp_path.iterdir())


def test_a_second_writer_waits_for_the_first(tmp_path, tokenizer):
    directory = tmp_path / "data"
    order = []

    def second():
        with StoreWriter(directory, tokenizer):
            order.append("second has it")

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        with StoreWriter(directory, tokenizer) as writer:
            waiting = thread.submit(second)
            time.sleep(0.2)
            writer.write_split("python", "train", random_documents([4]))
            writer.finish({})
            time.sleep(0.1)
            order.append("first is done")
        waiting.result(timeout=30)
    assert order == ["first is done", "second has it"]
    assert TokenStore(directory).split("python", "train").num_tokens == 5
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_damaged_stores_are_refused(tmp_path, tokenizer):
    directory = tmp_path / "data"
    with pytest.raises(ValueError, match="no token store at"):
        TokenStore(directory)
    write(directory, tokenizer, random_documents([4000]))
    shard = directory / "python" / "train-00000-of-00001.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"train-00000.* instead of .*: prepare the data again"):
        TokenStore(directory).split("python", "train")
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        TokenStore(directory).split("python", "train")

    manifest = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(ValueError, match="has format version 99, this is version 1"):
        TokenStore(directory)
    for text in ("[]", "{", "\ud800".encode("utf-8", "surrogatepass")):
        (directory / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match="prepare the data again"):
            TokenStore(directory)


def test_another_tokenizer_is_refused(tmp_path, tokenizer):
    write(tmp_path / "data", tokenizer, random_documents([4]))
    other = train_tokenizer(["whether it is nobler " * 4], kind="bpe", vocab_size=300)
    os.unlink(tmp_path / "data" / "tokenizer.json")
    other.save(tmp_path / "data")
    with pytest.raises(ValueError, match=r"tokenizer in .* is not the one that made its tokens"):
        TokenStore(tmp_path / "data")
