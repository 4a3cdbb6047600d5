import json

import pytest

from starcoder_jax.data.config import DataConfig
from starcoder_jax.data.corpus import SPLITS, gather
from starcoder_jax.data.documents import is_heldout


def text(number):
    return f"def function_{number}(argument):\n    return argument + {number}\n"


def config(tmp_path, sources, **options):
    """Writes a jsonl file per source, of (number, path) pairs."""
    uris = {}
    for task, rows in sources.items():
        path = tmp_path / f"{task}.jsonl"
        lines = [json.dumps({"text": text(number), "path": path}) for number, path in rows]
        path.write_text("\n".join(lines))
        uris[task] = f"jsonl:{path}"
    return DataConfig(uris, dict.fromkeys(uris, 1.0), **options)


def gathered(tmp_path, data):
    folder = tmp_path / "corpus"
    folder.mkdir()
    corpus = gather(data, folder)
    documents = {
        (task, split): list(corpus.documents(task, split))
        for task in data.sources
        for split in SPLITS
    }
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return documents, corpus.counts


def test_documents_come_in_hash_order_whatever_the_order_of_the_source(tmp_path):
    rows = [(number, f"{number}.py") for number in range(300)]
    first, counts = gathered(tmp_path, config(tmp_path, {"a": rows}, heldout_fraction=0.2))
    second, _ = gathered(tmp_path, config(tmp_path, {"a": rows[::-1]}, heldout_fraction=0.2))
    assert first == second
    seen = []
    for split in SPLITS:
        ids = [document.id for document in first["a", split]]
        assert ids == sorted(ids)
        assert {is_heldout(id_, 0.2) for id_ in ids} == {split == "validation"}
        seen += [document.text for document in first["a", split]]
    assert sorted(seen) == sorted(text(number) for number in range(300))
    assert counts["a"].read == counts["a"].documents == 300
    assert counts["a"].splits == {split: len(first["a", split]) for split in SPLITS}
    assert counts["a"].licenses == {"unknown": 300}


def test_of_equal_texts_the_smallest_task_and_path_stays(tmp_path):
    rows = {"b": [(1, "a.py"), (2, "z.py"), (3, "b.py")], "a": [(1, "z.py"), (1, "y.py"), (2, "c")]}
    for sources in (rows, dict(reversed(rows.items()))):
        data = config(tmp_path, sources, heldout_fraction=0)
        documents, counts = gathered(tmp_path, data)
        kept = {task: {d.path for d in documents[task, "train"]} for task in "ab"}
        assert kept == {"a": {"y.py", "c"}, "b": {"b.py"}}
        assert (counts["a"].dropped, counts["b"].dropped) == ({"duplicate": 1}, {"duplicate": 2})


def test_a_document_stays_in_its_split_beside_other_documents(tmp_path):
    few = [(number, "p") for number in range(40)]
    many = [(number, "p") for number in range(400)]
    small, _ = gathered(tmp_path, config(tmp_path, {"a": few}, heldout_fraction=0.3))
    large, _ = gathered(tmp_path, config(tmp_path, {"b": many}, heldout_fraction=0.3))
    for split in SPLITS:
        assert small["a", split]
        assert {d.id for d in small["a", split]} <= {d.id for d in large["b", split]}


def test_max_source_bytes_keeps_the_first_documents_in_hash_order(tmp_path):
    rows = {"a": [(n, "p") for n in range(200)], "b": [(n, "p") for n in range(200, 205)]}
    everything, _ = gathered(tmp_path, config(tmp_path, rows, heldout_fraction=0))
    data = config(tmp_path, rows, heldout_fraction=0, max_source_bytes=2000)
    some, counts = gathered(tmp_path, data)
    kept = some["a", "train"]
    assert kept == everything["a", "train"][: len(kept)]
    assert 2000 <= sum(document.num_bytes for document in kept) == counts["a"].bytes < 2100
    assert counts["a"].dropped == {"beyond max_source_bytes": 200 - len(kept)}
    assert len(some["b", "train"]) == 5


def test_a_source_without_training_documents_is_refused_with_the_reasons(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\n{"x": 1}\n')
    data = DataConfig({"empty": f"jsonl:{path}"}, {"empty": 1.0})
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ValueError, match=r"'empty' .*: 3 texts read, 3 dropped \(2 empty, 1 no te"):
        gather(data, tmp_path / "corpus")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": {}, "rates": {}}, "sources is empty"),
        ({"sources": {"a/b": "environment:"}}, "source name 'a/b'"),
        ({"sources": {"..": "environment:"}}, r"source name '\.\.'"),
        ({"sources": {"a": "/some/folder"}}, "must start with one of environment:, folder:"),
        ({"sources": {"a": "folder:"}}, "a path must follow 'folder:'"),
        ({"sources": {"a": "environment:x"}}, "nothing may follow"),
        ({"rates": {}}, "rates is empty"),
        ({"rates": {"b": 1.0}}, "unknown source 'b': there are a"),
        ({"rates": {"a": 0.0}}, "must be positive"),
        ({"rates": {"a": float("nan")}}, "must be positive"),
        ({"extensions": ("py",)}, "must start with a dot"),
        ({"max_source_bytes": 0}, "max_source_bytes is 0"),
        ({"heldout_fraction": 1.0}, "heldout_fraction is 1.0"),
        ({"read_workers": -1}, "read_workers is -1"),
    ],
)
def test_wrong_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"sources": {"a": "environment:"}, "rates": {"a": 1.0}} | options)
