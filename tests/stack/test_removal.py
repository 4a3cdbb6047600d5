import pathlib

import numpy as np
import pyarrow as pa
import pytest

from starcoder_jax.data import published
from starcoder_jax.data.published import Component
from starcoder_jax.data.store import StoreWriter
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.stack import accounting, lookup, record
from starcoder_jax.stack.record import DROP, Output
from starcoder_jax.stack.removal import verify_removed
from starcoder_jax.stack.report import write_report
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.stages import optout
from starcoder_jax.stack.stages.optout import Entry, OptoutConfig
from starcoder_jax.stack.stages.publish import PUBLISHED

SWHID = "swh:1:cnt:" + "1a" * 20
ENTRIES = [Entry("owner", "me", reference="issue 7"), Entry("content", SWHID)]


def row(**changes):
    return {"kind": "file", "repository": "you/a", "path": "c.py", "content": b"text"} | changes


def document(number, **changes):
    file = {"swhid": None, "repository": "you/a", "path": "c.py", "start": 0, "stop": 4}
    file = file | {"revision": None, "license": "MIT"} | changes
    start = {"component": "python", "id": f"{number:064x}", "bytes": 4, "kind": "file"}
    start |= {"content": b"text", "marks": [], "repository": file["repository"], "files": [file]}
    return start | {"language": "Python", "licenses": ["MIT"], "license_type": "permissive"}


def put(store, name, table, drops=None):
    store.write(name, 0, 1, Output(table, drops), "key", None)
    store.finish(name, [store.shard(name, 0, 1)])


def drops(*rows):
    start = {"reason": "long lines", "kind": "file", "repository": "you/a", "bytes": 4}
    return pa.Table.from_pylist([start | row for row in rows], schema=DROP)


@pytest.fixture
def pipeline(tmp_path):
    """The folder of a pipeline that has run with `ENTRIES`, all of it clean."""
    store = Store(str(tmp_path / "pipeline"))
    put(store, "redact", record.records([row()]), drops({"repository": "me/x"}))
    found = optout.steps(OptoutConfig(), "redact")[0].function(record.records([row()]))
    put(store, "optout", found.table, found.drops)
    put(store, "publish", pa.Table.from_pylist([document(1), document(2)], schema=PUBLISHED))
    return store


def places(remnants, folder):
    found = []
    for remnant in remnants:
        place = remnant.place.removeprefix(str(folder)).strip("/")
        found.append((place, remnant.what, remnant.name, remnant.count, remnant.is_raw))
    return found


def test_nothing_is_left(pipeline):
    assert verify_removed(ENTRIES, pipeline.folder) == []


def test_rows_are_found_wherever_they_are(pipeline, run_steps):
    raw = [row(), row(repository="Me/b"), row(details='{"author": "ME"}'), row(swhid=SWHID)]
    put(pipeline, "collect", record.records(raw))
    put(pipeline, "dedup.exact", pa.table({"repository": ["me/b"], "hash": [1]}))
    put(pipeline, "dedup.counts", pa.table({"hash": [1]}))
    published = pa.Table.from_pylist([document(1), document(2, swhid=SWHID)], schema=PUBLISHED)
    put(pipeline, "publish", published)
    index = run_steps(lookup.index_steps("publish", 1), publish=[published])["lookup"]
    put(pipeline, "lookup", index[0].table)
    found = verify_removed(ENTRIES, pipeline.folder)
    content = f"content {SWHID}"
    assert places(found, pipeline.folder) == [
        ("collect/shard-00000-of-00001.parquet", "rows", content, 1, True),
        ("collect/shard-00000-of-00001.parquet", "rows", "issue 7", 2, True),
        ("dedup.exact/shard-00000-of-00001.parquet", "rows", "issue 7", 1, True),
        ("lookup/shard-00000-of-00001.parquet", "rows", content, 3, False),
        ("publish/shard-00000-of-00001.parquet", "rows", content, 1, False),
    ]


def test_samples_and_reports_are_searched(pipeline):
    shown = drops(
        {"repository": "me/x", "sample": "secret"},
        {"repository": "you/x", "sample": "fine"},
        {"kind": "event", "sample": "whose?"},
        {"kind": "event"},
    )
    put(pipeline, "filter", record.records([row()]), shown)
    put(pipeline, "accounting.filter", accounting.summary(record.records([row()])).table)
    path = "filter/shard-00000-of-00001.drops.parquet"
    of_stage = [(path, "samples", "", 1, True), (path, "samples", "issue 7", 1, True)]
    folder = pipeline.folder
    assert places(verify_removed(ENTRIES, folder), folder) == of_stage
    reports = [accounting.account(pipeline, ["filter"], opted_out=some) for some in ([], ENTRIES)]
    for report, expected in zip(reports, (2, 0), strict=True):
        write_report(report, pathlib.Path(folder), "x")
        found = [one for one in verify_removed(ENTRIES, folder) if "report.json" in one.place]
        assert sum(remnant.count for remnant in found) == expected
        assert not any(remnant.is_raw for remnant in found)


def test_what_killed_processes_left_is_named(pipeline, tmp_path):
    folder = pathlib.Path(pipeline.folder)
    (folder / "publish" / "shard-00000-of-00001.parquet.0123").write_bytes(b"PAR1")
    (folder / "format" / "spill").mkdir(parents=True)
    (folder / "format" / "spill" / "00000.arrow").write_bytes(b"ARROW1")
    with pa.ipc.new_file(folder / "format" / "spill" / "00001.arrow", record.RECORD) as writer:
        writer.write_table(record.records([row(repository="me/x")]))
    found = places(verify_removed(ENTRIES, folder), folder)
    assert found == [
        ("format/spill/00000.arrow", "unfinished", "", 1, False),
        ("format/spill/00001.arrow", "rows", "issue 7", 1, False),
        ("publish/shard-00000-of-00001.parquet.0123", "unfinished", "", 1, False),
    ]


def test_token_stores_hold_published_documents_only(pipeline, tmp_path):
    vocabulary = train_tokenizer(["x = 1\n" * 9], kind="bpe", vocab_size=295)
    ids = {"stack": [1, 3], "own": [1, 4]}
    with StoreWriter(tmp_path / "store", vocabulary) as writer:
        for task, numbers in ids.items():
            info = {"path": "c.py", "license": "MIT", "bytes": 1}
            rows = [
                info | {"id": f"{number:064x}", "repository": "Me/x" if number == 4 else "you/a"}
                for number in numbers
            ]
            tokens = np.array([vocabulary.end_of_text_id])
            writer.write_split(task, "train", [(about, tokens) for about in rows])
        sources = {"stack": "stack:/corpus?python", "own": "folder:/code"}
        writer.finish({"config": {"sources": sources}})
    (tmp_path / "store.corpus").mkdir()
    found = verify_removed(ENTRIES, pipeline.folder, stores=[tmp_path / "store"])
    assert places(found, tmp_path) == [
        ("store.corpus", "unfinished", "", 1, False),
        ("store/own/train.documents.jsonl", "rows", "issue 7", 1, False),
        ("store/stack/train.documents.jsonl", "documents", "", 1, False),
    ]
    with pytest.raises(ValueError, match="no token store"):
        verify_removed(ENTRIES, pipeline.folder, stores=[tmp_path / "none"])


def test_published_corpora_are_read(pipeline, tmp_path):
    corpus = tmp_path / "corpus"
    entry = Component("python", "Python", "file", 3, 12, "digest")
    documents = [document(1), document(2, swhid=SWHID), document(3, repository="me/x")]
    with published.ComponentWriter(corpus, entry) as writer:
        for one in documents:
            writer.write(one)
        writer.finish()
    published.write_manifest(corpus, [entry])
    (corpus / "stack" / "python" / "1.0.0.partial").mkdir()
    found = verify_removed(ENTRIES, pipeline.folder, corpora=[corpus])
    assert places(found, corpus) == [
        ("stack/python/1.0.0", "documents", "", 1, False),
        ("stack/python/1.0.0", "rows", f"content {SWHID}", 1, False),
        ("stack/python/1.0.0", "rows", "issue 7", 1, False),
        ("stack/python/1.0.0.partial", "unfinished", "", 1, False),
    ]
    with pytest.raises(ValueError, match="no published corpus"):
        verify_removed(ENTRIES, pipeline.folder, corpora=[tmp_path])


def test_stores_need_to_be_compared_with_something(tmp_path):
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(ValueError, match="has no step publish"):
        verify_removed(ENTRIES, tmp_path / "pipeline", stores=[tmp_path])
