import pathlib

import pyarrow as pa
import pytest

from starcoder_jax.data import published
from starcoder_jax.data.documents import document_id
from starcoder_jax.stack.record import DOCUMENT, Output, stable_hash
from starcoder_jax.stack.runner.run import RunnerConfig, run
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.stages.publish import PUBLISHED, PublishConfig, steps, write


def document(number: int, language: str | None = "Python", kind: str = "file") -> dict:
    content = f"x = {number}\n".encode()
    name = f"o/{stable_hash(content) % 5}"
    file = {"swhid": f"swh:1:cnt:{number:040d}", "repository": name, "path": f"{number}.py"}
    return {
        "kind": kind,
        "content": content,
        "marks": [{"offset": 0, "token": "<file_sep>"}] if number % 2 else [],
        "repository": name,
        "language": language,
        "licenses": ["MIT"],
        "license_type": "permissive",
        "files": [file | {"start": 0, "stop": len(content)}],
    }


DOCUMENTS = [
    *(document(number) for number in range(30)),
    *(document(number, "C++") for number in range(30, 40)),
    *(document(number, None, "issue") for number in range(40, 45)),
]


def tables(documents, shards):
    parts = [documents[shard::shards] for shard in range(shards)]
    return [pa.Table.from_pylist(part, schema=DOCUMENT) for part in parts]


def test_every_document_once_in_order_however_they_were_spread(run_steps):
    again = [DOCUMENTS[3] | {"repository": "z/z"}, DOCUMENTS[3] | {"repository": "a/a"}]
    plan = steps(PublishConfig(3), "format")
    outputs = run_steps(plan, format=tables([*DOCUMENTS, *again], 2))["publish"]
    rows = pa.concat_tables([output.table for output in outputs]).to_pylist()
    assert outputs[0].table.schema == PUBLISHED
    assert {row["id"] for row in rows} == {
        document_id(row["content"], row["marks"]) for row in DOCUMENTS
    }
    assert len(rows) == len(DOCUMENTS)
    for name in ("python", "cpp", "issue"):
        ids = [row["id"] for row in rows if row["component"] == name]
        assert ids == sorted(ids) and ids
    drops = pa.concat_tables([output.drops for output in outputs]).to_pylist()
    assert [(row["reason"], row["repository"]) for row in drops] == [
        ("duplicate document", DOCUMENTS[3]["repository"]),
        ("duplicate document", "z/z"),
    ]
    assert drops[0]["path"] == "3.py" and drops[0]["bytes"] == len(DOCUMENTS[3]["content"])
    other = run_steps(plan, format=tables([*again, *DOCUMENTS[::-1]], 7))["publish"]
    assert [output.table for output in other] == [output.table for output in outputs]


@pytest.fixture
def publish(tmp_path):
    def publish(documents) -> dict[str, published.Component]:
        store = Store(str(tmp_path / "steps"))
        store.begin("format")
        for index, table in enumerate(tables(documents, 2)):
            store.write("format", index, 2, Output(table), str(len(documents)), None)
        store.finish("format", store.shards("format", 2))
        plan = steps(PublishConfig(3), "format")
        results = run(plan, tmp_path / "steps", RunnerConfig(workers=1))
        arguments = results["publish"], results["publish.components"]
        write(*arguments, tmp_path / "published", workers=2)
        return published.components(tmp_path / "published")

    return publish


def files(directory: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_what_is_published_is_read_back(publish, tmp_path):
    components = publish(DOCUMENTS)
    assert {name: part.documents for name, part in components.items()} == {
        "python": 30,
        "cpp": 10,
        "issue": 5,
    }
    texts = set()
    for name, part in components.items():
        documents = list(published.read_component(tmp_path / "published", name))
        assert sum(document.num_bytes for document in documents) == part.bytes
        texts |= {document.text for document in documents}
    assert texts == {row["content"].decode() for row in DOCUMENTS}


def test_only_components_that_changed_are_written_again(publish, tmp_path):
    publish(DOCUMENTS)
    before = files(tmp_path / "published")
    fewer = [row for row in DOCUMENTS if row["kind"] == "file" and row["content"] != b"x = 7\n"]
    assert set(publish(fewer)) == {"python", "cpp"}
    after = files(tmp_path / "published")
    same = {path for path in before if before[path] == after.get(path)}
    assert {pathlib.Path(path).parts[-3] for path in same} == {"cpp"}
    assert not [path for path in after if "issue" in path]
    left = {
        document.text for document in published.read_component(tmp_path / "published", "python")
    }
    assert len(left) == 29 and "x = 7\n" not in left


def test_bad_settings():
    with pytest.raises(ValueError, match=r"publish\.shards is 0: it must be positive"):
        PublishConfig(0)
