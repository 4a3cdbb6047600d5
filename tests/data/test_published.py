import csv
import pathlib

import numpy as np
import pytest

from starcoder_jax.data import published
from starcoder_jax.data.config import DataConfig, TokenizerConfig
from starcoder_jax.data.documents import document_id
from starcoder_jax.data.prepare import prepare
from starcoder_jax.data.published import Component, component_name, read_component
from starcoder_jax.data.sources import read_source

LABELS = pathlib.Path(__file__).parents[3] / "shared/data/the-stack-v2/language_labels.csv"
MARKS = [{"offset": 0, "token": "<file_sep>"}, {"offset": 7, "token": "<EMAIL>"}]


def rows(count):
    for number in range(count):
        content = f"x = {number} # é\n".encode() * 3
        yield {
            "id": document_id(content, MARKS),
            "content": content,
            "marks": MARKS,
            "kind": "file",
            "language": "C++",
            "repository": "a/b",
            "licenses": ["Apache-2.0", "MIT"],
            "license_type": "permissive",
            "files": [
                {
                    "swhid": f"swh:1:cnt:{number}",
                    "repository": "a/b",
                    "path": f"{number}.cc",
                    "revision": None,
                    "license": "MIT",
                    "start": 0,
                    "stop": len(content),
                }
            ],
        }


def component(name, documents=0):
    return Component(name, "C++", "file", documents, 0, "digest")


def write(directory, component, documents):
    with published.ComponentWriter(directory, component) as writer:
        for document in documents:
            writer.write(document)
        writer.finish()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_FILE_BYTES", 1000)
    write(tmp_path, component("cpp"), rows(60))
    write(tmp_path, component("issue"), rows(1))
    published.write_manifest(tmp_path, [component("cpp", 60), component("issue", 1)])
    return tmp_path


def test_documents_come_back(corpus):
    documents = list(read_component(corpus, "cpp"))
    for document, row in zip(documents, rows(60), strict=True):
        assert document.id == row["id"] and document.text.encode() == row["content"]
        assert document.path == row["files"][0]["path"] and document.repository == "a/b"
        assert document.license == "Apache-2.0 AND MIT"
    assert len(list(read_component(corpus, "issue"))) == 1
    assert published.components(corpus)["cpp"] == component("cpp", 60)


def test_tfds_opens_it_by_name(corpus):
    import tensorflow_datasets as tfds

    builder = tfds.builder("stack/cpp", data_dir=corpus)
    assert builder.info.splits["train"].num_examples == 60
    assert builder.info.splits["train"].num_shards > 1
    example = builder.as_data_source(split="train")[59]
    assert example["files"]["stop"] == [len(example["text"])]


def test_a_new_version_of_a_component_replaces_the_old_one(corpus):
    write(corpus, component("cpp"), rows(1))
    published.write_manifest(corpus, [component("cpp", 1)])
    assert len(list(read_component(corpus, "cpp"))) == 1
    assert [path.name for path in (corpus / published.DATASET).iterdir()] == ["cpp"]


def test_a_recipe_reads_some_components_or_all(corpus, tmp_path):
    assert len(list(read_source(f"stack:{corpus}", ()))) == 61
    assert len(list(read_source(f"stack:{corpus}?issue", ()))) == 1
    with pytest.raises(ValueError, match="no component 'rust'; it has cpp, issue"):
        list(read_source(f"stack:{corpus}?issue,rust", ()))
    with pytest.raises(ValueError, match=r"no published corpus: its corpus\.json cannot be read"):
        list(read_source(f"stack:{tmp_path / 'nothing'}", ()))


def test_marks_become_tokens_of_the_store(corpus, tmp_path):
    data = DataConfig({"all": f"stack:{corpus}"}, {"all": 1.0}, heldout_fraction=0.0)
    store = prepare(data, TokenizerConfig(vocab_size=296, train_bytes=1000), tmp_path / "store")
    split = store.split("all", "train")
    tokens = split.tokens(0, split.num_tokens)
    special = store.tokenizer.special_tokens
    assert np.count_nonzero(tokens == special["<file_sep>"]) == 60
    assert np.count_nonzero(tokens == special["<EMAIL>"]) == 60
    assert tokens[0] == special["<file_sep>"]


def test_damage_is_found(corpus, monkeypatch):
    monkeypatch.setattr(published, "document_id", lambda content, marks: "0" * 64)
    with pytest.raises(ValueError, match=r"document 0 of .* is damaged: publish the corpus again"):
        list(read_component(corpus, "cpp"))


def test_names_of_components():
    assert [component_name("file", name) for name in ("C", "C++", "C#", "F*", "Objective-C++")] == [
        "c",
        "cpp",
        "csharp",
        "fstar",
        "objective_cpp",
    ]
    assert component_name("issue", "C") == "issue" and component_name("file", None) == "unknown"


# Other people's table is not committed; the test above has names of our own.
@pytest.mark.skipif(not LABELS.exists(), reason="the published languages lie beside the repository")
def test_no_two_languages_share_a_name():
    with LABELS.open(encoding="utf-8") as file:
        languages = [row[0] for row in csv.reader(file)][1:]
    assert len(languages) > 600
    assert len({component_name("file", name) for name in languages}) == len(set(languages))
