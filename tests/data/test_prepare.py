import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from starcoder_jax.data.config import DataConfig, TokenizerConfig
from starcoder_jax.data.prepare import prepare
from starcoder_jax.data.store import TokenStore
from starcoder_jax.data.tokenizer_training import train_tokenizer

TOKENIZER = TokenizerConfig(vocab_size=300, train_bytes=5000)


def text(number):
    return f"def function_{number}(argument):\n    return argument * {number}\n"


@pytest.fixture
def data(tmp_path):
    for task, numbers in (("mine", range(80)), ("other", range(60, 120))):
        (tmp_path / task).mkdir()
        for number in numbers:
            (tmp_path / task / f"{number}.py").write_text(text(number))
    (tmp_path / "other" / "bad.py").write_bytes(b"\0")
    sources = {task: f"folder:{tmp_path / task}" for task in ("mine", "other")}
    return DataConfig(sources, {"mine": 1.0}, heldout_fraction=0.2)


def contents(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_corpus_becomes_a_store(tmp_path, data, capfd):
    store = prepare(data, TOKENIZER, tmp_path / "data")
    assert store.directory == tmp_path / "data"
    assert store.tasks == ("mine", "other")
    assert store.tokenizer.vocab_size == 300
    seen = {}
    for task in store.tasks:
        for name in ("train", "validation"):
            split = store.split(task, name)
            assert split.num_documents == store.manifest["sources"][task]["splits"][name]
            for index in range(split.num_documents):
                info, tokens = split.document_info(index), split.document_tokens(index)
                decoded = store.tokenizer.decode(tokens)
                np.testing.assert_array_equal(tokens, store.tokenizer.encode(decoded))
                assert info["tokens"] == len(tokens) and info["bytes"] == len(decoded)
                assert info["repository"] == task and info["license"] == "unknown"
                assert decoded not in seen
                seen[decoded] = (task, info["path"])
    expected = {n: ("mine" if n < 80 else "other", f"{n}.py") for n in range(120)}
    assert seen == {text(number): place for number, place in expected.items()}
    sources = store.manifest["sources"]
    assert sources["other"]["dropped"] == {"binary": 1, "duplicate": 20}
    assert sources["mine"]["licenses"] == {"unknown": 80}
    assert sources["other"]["read"] == 61
    assert not (tmp_path / "data.corpus").exists()
    output = capfd.readouterr()
    assert output.out == ""
    assert "other: 40 of 61 texts kept" in output.err
    assert any(line.split() == ["dropped", "20", "duplicate"] for line in output.err.splitlines())


def test_the_store_is_the_same_each_time_and_rates_do_not_shape_it(tmp_path, data):
    prepare(data, TOKENIZER, tmp_path / "first")
    data = dataclasses.replace(data, rates={"other": 0.5, "mine": 2.0}, read_workers=3)
    prepare(data, TOKENIZER, tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


AGAIN = """
import json, sys
from starcoder_jax.data.config import DataConfig, TokenizerConfig
from starcoder_jax.data.prepare import prepare
data, tokenizer, directory = json.loads(sys.argv[1])
store = prepare(DataConfig(**data), TokenizerConfig(**tokenizer), directory)
loaded = {name.partition(".")[0] for name in sys.modules} & {"tensorflow", "seqio", "jax"}
print(store.split("mine", "train").num_documents, sorted(loaded))
"""


def start(data, directory):
    fields = dataclasses.asdict(data), dataclasses.asdict(TOKENIZER), str(directory)
    return subprocess.Popen(
        [sys.executable, "-c", AGAIN, json.dumps(fields)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_prepared_store_is_opened_without_sources_or_tensorflow(tmp_path, data):
    store = prepare(data, TOKENIZER, tmp_path / "data")
    before = contents(tmp_path / "data")
    for task in ("mine", "other"):
        os.rename(tmp_path / task, tmp_path / f"{task}.away")
    output, errors = start(data, tmp_path / "data").communicate()
    assert output == f"{store.split('mine', 'train').num_documents} []\n", errors
    assert contents(tmp_path / "data") == before


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path, data):
    processes = [start(data, tmp_path / "data") for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    documents = TokenStore(tmp_path / "data").split("mine", "train").num_documents
    for output, errors in outputs:
        assert output.startswith(f"{documents} ["), errors
    assert sum("training a bpe" in errors for _, errors in outputs) == 1


def test_a_store_made_otherwise_is_refused_and_stays(tmp_path, data):
    prepare(data, TOKENIZER, tmp_path / "data")
    before = contents(tmp_path / "data")
    changes = {"max_source_bytes": 10**6, "heldout_fraction": 0.1, "extensions": (".py", ".pyi")}
    with pytest.raises(
        ValueError,
        match=r"other values of extensions, heldout_fraction, max_source_bytes: restore them",
    ):
        prepare(dataclasses.replace(data, **changes), TOKENIZER, tmp_path / "data")
    sources = {"mine": data.sources["mine"]}
    with pytest.raises(ValueError, match="other values of sources:"):
        prepare(dataclasses.replace(data, sources=sources), TOKENIZER, tmp_path / "data")
    other = dataclasses.replace(TOKENIZER, vocab_size=310, kind="sentencepiece")
    with pytest.raises(ValueError, match=r"values of tokenizer\.kind, tokenizer\.vocab_size:"):
        prepare(data, other, tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_a_given_tokenizer_is_compared_by_what_it_is(tmp_path, data):
    tokenizers = {}
    for name, words in (("a", "to be or not to be "), ("b", "whether it is nobler ")):
        (tmp_path / name).mkdir()
        tokenizers[name] = train_tokenizer([words * 4], kind="bpe", vocab_size=299)
        tokenizers[name].save(tmp_path / name)
    store = prepare(data, TokenizerConfig(path=str(tmp_path / "a")), tmp_path / "data")
    assert store.tokenizer.fingerprint == tokenizers["a"].fingerprint
    os.rename(tmp_path / "a", tmp_path / "moved")
    prepare(data, TokenizerConfig(path=str(tmp_path / "moved"), vocab_size=7), tmp_path / "data")
    with pytest.raises(ValueError, match=r"other values of tokenizer\.fingerprint:"):
        prepare(data, TokenizerConfig(path=str(tmp_path / "b")), tmp_path / "data")
    with pytest.raises(ValueError, match="other values of tokenizer:"):
        prepare(data, TOKENIZER, tmp_path / "data")
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        prepare(data, TokenizerConfig(path=str(tmp_path / "a")), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_left_of_a_preparation_that_fails(tmp_path, data):
    missing = dataclasses.replace(data, sources={"mine": f"folder:{tmp_path}/missing"})
    with pytest.raises(ValueError, match="there is no such folder"):
        prepare(missing, TOKENIZER, tmp_path / "data")
    with pytest.raises(ValueError, match="vocab_size 9999999 is larger"):
        prepare(data, dataclasses.replace(TOKENIZER, vocab_size=9999999), tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]


def test_a_folder_with_something_else_is_not_touched(tmp_path, data):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="is in the way: it is no token store"):
        prepare(data, TOKENIZER, tmp_path / "data")
    assert contents(tmp_path / "data")
    (tmp_path / "data" / "thesis.txt").unlink()
    prepare(data, TOKENIZER, tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    prepare(data, TOKENIZER, tmp_path / "link")
    assert (tmp_path / "elsewhere" / "store.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "wordpiece"}, "kind 'wordpiece' is unknown: use bpe or sentencepiece"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"train_bytes": -1}, "train_bytes is -1"),
    ],
)
def test_wrong_tokenizer_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**options)
