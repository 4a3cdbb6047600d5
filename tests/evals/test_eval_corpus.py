import gzip
import json

import pytest

from starcoder_jax.data.store import TokenStore
from starcoder_jax.evals.corpus import held_out_lines, read_corpus


def test_a_folder_is_read_in_the_order_of_paths_as_training_would(tmp_path):
    files = {"b.py": "beta = 1\n", "a/z.md": "text\n", "c.bin": "\0x", ".d": "x\n"}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    corpus = read_corpus(tmp_path)
    assert [document.path for document in corpus.documents] == ["a/z.md", "b.py"]
    assert corpus.dropped == {"binary": 1}
    first = read_corpus(tmp_path, limit=1)
    assert first.documents == corpus.documents[:1] and first.sha256 != corpus.sha256
    assert read_corpus(tmp_path).sha256 == corpus.sha256


def test_files_are_read(tmp_path):
    (tmp_path / "one.py").write_text("alpha = 1\n")
    rows = b'{"text": "gamma = 2\\n"}\n{"text": ""}\n{"content": "delta = 3\\n"}\n'
    (tmp_path / "[rows].jsonl.gz").write_bytes(gzip.compress(rows))
    assert [d.text for d in read_corpus(tmp_path / "one.py").documents] == ["alpha = 1\n"]
    corpus = read_corpus(tmp_path / "[rows].jsonl.gz")
    assert [document.text for document in corpus.documents] == ["gamma = 2\n", "delta = 3\n"]
    assert corpus.dropped == {"empty": 1}


def test_a_token_store_gives_its_held_out_documents(micro_folder):
    split = TokenStore(micro_folder / "data").split("code", "validation")
    corpus = read_corpus(micro_folder / "data")
    assert len(corpus.documents) == split.num_documents > 3
    for index, document in enumerate(corpus.documents):
        info = split.document_info(index)
        assert document.id == info["id"] and document.path == info["path"]
        assert (micro_folder / "code" / document.path).read_text() == document.text


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "there is no such file"), ("empty", "no text .*empty"), ("bin", "1 binary")],
)
def test_nothing_to_read_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bin").write_bytes(b"\0x")
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path / name)


def test_lines_are_drawn_from_all_documents(micro_folder):
    documents = read_corpus(micro_folder / "data").documents
    texts = {document.path: document.text for document in documents}
    rows = held_out_lines(documents, len(documents) + 3, seed=1)
    assert len({row["task_id"] for row in rows}) == len(documents) + 3
    paths = [row["task_id"].split(":")[1] for row in rows]
    assert set(paths[: len(documents)]) == set(texts)
    for row, path in zip(rows, paths, strict=True):
        assert row["prefix"] + row["middle"] + row["suffix"] == texts[path]
        assert "\n" not in row["middle"] and row["middle"].strip()
        assert row["prefix"][-1:] in ("", "\n") and row["suffix"][:1] in ("", "\n")
    assert rows == held_out_lines(documents, len(documents) + 3, seed=1)
    other = held_out_lines(documents, len(documents) + 3, seed=2)
    assert [row["task_id"] for row in rows] != [row["task_id"] for row in other]
    json.dumps(rows)


def test_a_corpus_without_lines_to_fill_in_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("  \n" * 9 + "y" * 200)
    with pytest.raises(ValueError, match="no line of at most 120 characters"):
        held_out_lines(read_corpus(tmp_path).documents, 5, seed=0)
