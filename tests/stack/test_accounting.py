import json

import pyarrow as pa
import pytest

from starcoder_jax.stack import accounting, record
from starcoder_jax.stack.accounting import account
from starcoder_jax.stack.record import DOCUMENT, DROP, Output
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.stages.optout import Entry


def row(content=b"12345", **changes):
    start = {"kind": "file", "repository": "a/b", "path": "c.py", "language": "Python"}
    return {**start, "license_type": "permissive", "content": content, **changes}


def document(parts, content=b"12345", **changes):
    file = {"swhid": None, "repository": "a/b", "path": "c.py", "start": 0, "stop": 5}
    file |= {"revision": None, "license": "MIT"}
    start = {"kind": "file", "content": content, "marks": [], "language": "Python"}
    start |= {"repository": "a/b", "licenses": ["MIT"], "license_type": "permissive"}
    return {**start, "files": [file] * parts, **changes}


def drop(reason, **changes):
    start = {"kind": "file", "repository": "a/b", "path": "c.py", "language": "Python", "bytes": 5}
    return {**start, "license_type": "permissive", "reason": reason, "sample": "12345", **changes}


def put(store, name, shards):
    """Writes shards, each rows and drops (or None), and their summaries."""
    notes = {name: [], f"accounting.{name}": []}
    for index, (rows, drops, *counts) in enumerate(shards):
        schema = DOCUMENT if name in ("format", "publish") else record.RECORD
        table = pa.Table.from_pylist([{"marks": [], **one} for one in rows], schema=schema)
        dropped = None if drops is None else pa.Table.from_pylist(drops, schema=DROP)
        output = Output(table, dropped, *counts)
        for step, made in ((name, output), (f"accounting.{name}", accounting.summary(table))):
            store.write(step, index, len(shards), made, "key", None)
            notes[step].append(store.shard(step, index, len(shards)))
    for step, found in notes.items():
        store.finish(step, found)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "pipeline"))


def test_a_pipeline_from_end_to_end(store):
    c = {"language": "C", "license_type": None}
    notebook = {"language": "Jupyter Notebook"}
    files = [row(), row(**c), row(), row(b"123", **notebook)]
    events = [row(kind="event", language=None)] * 3
    put(store, "collect", [(files, [drop("binary", **c)]), (events, [])])
    put(store, "dedup.exact", [([row()], None, {"buckets": 2})])
    rendered = [row(kind="notebook_script"), row(kind="notebook_structured"), row(kind="issue")]
    put(store, "render", [(files[:3], []), (rendered, [drop("bot", kind="event")])])
    kept = [files[0], rendered[0], rendered[2]]
    reasons = [drop("near duplicate"), drop("near duplicate", bytes=7, **c)]
    reasons.append(drop("exact", kind="notebook_structured"))
    put(store, "dedup", [(kept, reasons[:2], {"pairs": 3}), ([], reasons[2:], {"pairs": 4})])
    put(store, "format", [([document(2, b"1234567890"), document(1, kind="issue")], [])])
    names = ["collect", "render", "dedup.exact", "dedup", "format", "accounting.collect"]
    with pytest.raises(ValueError, match="stage format do not balance: 1 rows of kind 'file' came"):
        account(store, names)
    documents = [document(1), document(1, kind="notebook_script"), document(1, kind="issue")]
    documents[1]["licenses"] = ["Apache-2.0", "MIT"]
    documents[2]["licenses"] = []
    put(store, "format", [(documents[:1], None), (documents[1:], [])])
    report = account(store, names, configuration="a = 1")
    assert json.loads(json.dumps(report)) == report
    assert report["format_version"] == 1 and report["configuration"] == "a = 1"
    assert report["licenses"] == {
        "Apache-2.0": {"rows": 1, "bytes": 5},
        "MIT": {"rows": 2, "bytes": 10},
    }
    collect, render, dedup, form = report["stages"]
    assert [stage["name"] for stage in report["stages"]] == ["collect", "render", "dedup", "format"]
    assert (collect["in"], collect["out"]) == ({"rows": 8, "bytes": 38}, {"rows": 7, "bytes": 33})
    assert collect["dropped"] == {"rows": 1, "bytes": 5}
    assert collect["by"]["language"]["C"] == {
        "in": {"rows": 2, "bytes": 10},
        "out": {"rows": 1, "bytes": 5},
        "dropped": {"rows": 1, "bytes": 5},
    }
    assert collect["by"]["language"][""]["out"] == {"rows": 3, "bytes": 15}
    assert set(collect["by"]["kind"]) == {"event", "file"}
    assert set(collect["by"]["license_type"]) == {"", "permissive"}
    assert (render["in"], render["out"]["rows"]) == (collect["out"], 6)
    assert (render["made"], render["joined"], render["dropped"]["rows"]) == (3, 3, 1)
    assert (dedup["made"], dedup["joined"], dedup["changed_bytes"]) == (0, 0, 2)
    assert dedup["counts"] == {"buckets": 2, "pairs": 7}
    assert dedup["reasons"]["near duplicate"] == {
        "dropped": {"rows": 2, "bytes": 12},
        "by": {"C": {"rows": 1, "bytes": 7}, "Python": {"rows": 1, "bytes": 5}},
    }
    assert list(dedup["reasons"]) == ["exact", "near duplicate"]
    (sample,) = dedup["samples"]["exact"]
    assert list(sample) == sorted(DROP.names) and sample["sample"] == "12345"
    assert (form["parts"], dedup["parts"]) == (3, None)
    assert form["out"] == {"rows": 3, "bytes": 15}


def test_published_documents_are_counted_as_they_are(store):
    put(store, "format", [([document(2), document(3)], None)])
    put(store, "publish", [([document(2)], [drop("duplicate document")])])
    publish = account(store, ["format", "publish"])["stages"][1]
    assert (publish["in"]["rows"], publish["out"]["rows"], publish["parts"]) == (2, 1, 2)


@pytest.mark.parametrize(
    ("stage", "before", "after", "drops", "message"),
    [
        (
            "filter",
            [row(), row()],
            [row()],
            [],
            "filter do not balance: 1 rows of kind 'file' went",
        ),
        ("filter", [row()], [row(), row()], [], "came from nowhere"),
        ("filter", [row()], [row()], [drop("x")], "came from nowhere"),
        ("filter", [row()], [row(kind="issue")], [], "'file' went nowhere"),
        ("filter", [row(kind="event")], [], [], "'event' went nowhere"),
        ("render", [row(), row()], [row()], [], "'file' went nowhere"),
        ("render", [row()], [row(), row()], [], "'file' came from nowhere"),
        ("render", [], [row(kind="event")], [], "'event' came from nowhere"),
        ("render", [row(kind="issue")], [], [], "'issue' went nowhere"),
        ("format", [row(), row()], [document(1)], None, "'file' went nowhere"),
        ("format", [row(kind="issue")], [document(1)], None, "nowhere"),
    ],
)
def test_books_that_do_not_balance(store, stage, before, after, drops, message):
    put(store, "identify", [(before, None)])
    put(store, stage, [(after, drops)])
    with pytest.raises(ValueError, match=message) as error:
        account(store, ["identify", stage])
    assert "\n" not in str(error.value)


def test_summaries_must_be_there_and_new(store):
    put(store, "filter", [([row()], [])])
    with pytest.raises(ValueError, match="no stage to account for"):
        account(store, ["other"])
    with pytest.raises(ValueError, match=r"step accounting\.dedup is not complete"):
        account(store, ["filter", "dedup"])
    table = record.records([row(), row()])
    store.write("filter", 0, 1, Output(table, DROP.empty_table()), "new", None)
    store.finish("filter", [store.shard("filter", 0, 1)])
    with pytest.raises(ValueError, match=r"accounting\.filter is older than step filter"):
        account(store, ["filter"])


def test_samples_are_few_and_do_not_depend_on_shards(store):
    drops = [drop("long", path=str(n), sample=None if n % 2 else f"s{n}") for n in range(40)]
    put(store, "filter", [([], drops[:15]), ([], drops[15:])])
    first = account(store, ["filter"])["stages"][0]
    put(store, "filter", [([], drops[::-1])])
    assert account(store, ["filter"])["stages"][0] == first
    samples = first["samples"]["long"]
    assert len(samples) == 5 == len({sample["path"] for sample in samples})
    assert all(sample["sample"] == f"s{sample['path']}" for sample in samples)


def test_the_same_row_dropped_often_is_no_trouble(store):
    put(store, "filter", [([], [drop("again")] * 20)])
    assert len(account(store, ["filter"])["stages"][0]["samples"]["again"]) == 5


def test_samples_are_redacted(store):
    key = "AKIA" + "Z7QX2M4K9P3T5W8R"
    text = f"mail jane.roe@company.io or b@c.de # {key}\nhost = 8.8.123.7\n"
    put(store, "filter", [([], [drop("long", sample=text)])])
    (stage,) = account(store, ["filter"])["stages"]
    (sample,) = stage["samples"]["long"]
    expected = "mail <EMAIL> or <EMAIL> # <KEY>\nhost = <IP_ADDRESS>\n"
    assert sample["sample"] == expected


def test_contents_that_were_opted_out_are_not_shown(store):
    drops = [
        drop("long", sample="of one who opted out", repository="Me/x"),
        drop("long", sample="of nobody"),
        drop("bot", sample="may be theirs", kind="event", repository="you/y"),
        drop("bot", sample=None, kind="event", repository="me/y"),
    ]
    put(store, "filter", [([], drops)])
    (stage,) = account(store, ["filter"], opted_out=[Entry("owner", "me")])["stages"]
    assert [sample["sample"] for sample in stage["samples"]["long"]] == ["of nobody"]
    assert "bot" not in stage["samples"] and stage["withheld"] == 2
    assert stage["reasons"]["bot"]["dropped"]["rows"] == 2
    (stage,) = account(store, ["filter"], opted_out=[Entry("repository", "me/x")])["stages"]
    assert stage["withheld"] == 1 and len(stage["samples"]["bot"]) == 1


def test_summaries_of_slices_nothing_and_nulls():
    everything = record.records([row(), row(b"1", language=None), row(None), row(b"99")])
    found = accounting.summary(everything.slice(1)).table.to_pylist()
    same = {"kind": "file", "license_type": "permissive", "license": None}
    assert found == [
        {**same, "language": "Python", "rows": 2, "parts": 2, "bytes": 2},
        {**same, "language": None, "rows": 1, "parts": 1, "bytes": 1},
    ]
    for schema in (record.RECORD, DOCUMENT):
        empty = accounting.summary(schema.empty_table()).table
        assert len(empty) == 0 and empty.schema == accounting.SUMMARY


def test_steps_sum_up_in_the_runner(run_steps):
    shards = [record.records([row()]), record.records([row()] * 2)]
    outputs = run_steps(accounting.steps(["filter"]), filter=shards)["accounting.filter"]
    assert [output.table["rows"].to_pylist() for output in outputs] == [[1], [2]]
    assert outputs[0].drops is None
