import json
import pickle
import time

import pyarrow as pa
import pytest

from starcoder_jax.stack import record
from starcoder_jax.stack.stages import optout
from starcoder_jax.stack.stages.optout import Entry, Matcher, OptoutConfig

SWHID = "swh:1:cnt:" + "1a" * 20
OTHER = "swh:1:cnt:" + "2b" * 20


def rows(*changes):
    start = {"kind": "file", "content": b"text", "repository": "a/b", "path": "c.py"}
    return record.records([{**start, "swhid": OTHER, **change} for change in changes])


def ledger(tmp_path, *entries):
    file = tmp_path / "ledger.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "\n")
    return OptoutConfig(ledgers=[str(file)])


def run(run_steps, config, table):
    (output,) = run_steps(optout.steps(config, "redact"), redact=[table])["optout"]
    return output


@pytest.mark.parametrize(
    ("kind", "value", "change", "near_miss"),
    [
        ("owner", "Octocat", {"repository": "octoCAT/x"}, {"repository": "octocats/x"}),
        ("owner", "numpy", {"repository": "numpy"}, {"repository": "numpy 2"}),
        ("owner", "o", {"kind": "issue", "repository": "O/x"}, {"repository": "x/o"}),
        ("owner", "me", {"details": '{"author": "Me"}'}, {"details": '{"author": "you"}'}),
        ("owner", "me", {"details": '{"authors": ["x", "ME"]}'}, {"details": '{"by": "me"}'}),
        ("author", "me", {"details": '{"author": "Me"}'}, {"repository": "me/x"}),
        ("repository", "A/X", {"repository": "a/x"}, {"repository": "a/xy"}),
        ("repository", "a/x", {"kind": "commit", "repository": "A/x"}, {"repository": "a"}),
        ("content", SWHID, {"swhid": SWHID, "repository": "q/q"}, {"swhid": None}),
        ("path", "A/x:d/e.py", {"repository": "a/X", "path": "d/e.py"}, {"path": "d/e.py"}),
        ("path", "a/x:e.py", {"repository": "a/x", "path": "e.py"}, {"repository": "a/x"}),
        ("path", "a/x:e.py", {"repository": "a/x", "path": "e.py"}, {"path": "E.py"}),
        ("path", "a/x:b:c", {"repository": "a/x", "path": "b:c"}, {"path": None}),
    ],
)
def test_each_kind(run_steps, tmp_path, kind, value, change, near_miss):
    config = ledger(tmp_path, {"kind": kind, "value": value, "reference": "issue 7"})
    table = rows({}, change, near_miss)
    output = run(run_steps, config, table)
    assert output.table.equals(table.take([0, 2]))
    (drop,) = output.drops.to_pylist()
    assert output.drops.schema == record.DROP
    assert (drop["reason"], drop["detail"]) == ("opt-out", "issue 7")
    assert drop["repository"] == table["repository"][1].as_py() and drop["bytes"] == 4
    assert drop["sample"] is None
    assert output.counts == {f"rows opted out by {kind}": 1}


def test_the_most_specific_entry_is_named(run_steps, tmp_path):
    entries = [
        {"kind": "owner", "value": "o"},
        {"kind": "author", "value": "me", "date": "2026-01-31"},
        {"kind": "repository", "value": "o/r"},
        {"kind": "path", "value": "o/r:p"},
        {"kind": "content", "value": SWHID},
    ]
    me = {"details": '{"author": "me"}'}
    table = rows(
        {**me},
        {**me, "repository": "o/q"},
        {**me, "repository": "o/r"},
        {**me, "repository": "o/r", "path": "p"},
        {**me, "repository": "o/r", "path": "p", "swhid": SWHID},
    )
    output = run(run_steps, ledger(tmp_path, *entries), table)
    assert len(output.table) == 0
    expected = ["author me", "owner o", "repository o/r", "path o/r:p", f"content {SWHID}"]
    assert output.drops["detail"].to_pylist() == expected


def test_nothing_to_leave_out(run_steps, tmp_path):
    odd = rows({}, {"repository": None, "path": None, "swhid": None}, {"details": '{"author'})
    for config in (OptoutConfig(), ledger(tmp_path, {"kind": "owner", "value": "zz"})):
        for table in (odd, odd.slice(0, 0), record.RECORD.empty_table()):
            output = run(run_steps, config, table)
            assert output.table.equals(table) and len(output.drops) == 0
            assert output.drops.schema == record.DROP and output.counts == {}


def test_documents_are_told_by_their_files():
    matcher = Matcher([Entry("content", SWHID), Entry("repository", "x/y")])

    def file(**changes):
        whose = {"swhid": OTHER, "repository": "a/b", "path": "p"}
        return {**whose, "revision": None, "license": None, "start": 0, "stop": 1, **changes}

    files = [
        [file(), file(swhid=SWHID)],
        [],
        [file()],
        None,
        [file(repository="X/Y"), file()],
    ]
    lists = pa.array(files, record.DOCUMENT.field("files").type)
    table = pa.table({"repository": ["a/b", "a/b", "a/b", "x/Y", "a/b"], "files": lists})
    found = matcher.match(table)
    kinds = [None if entry is None else entry.kind for entry in found]
    assert kinds == ["content", None, None, "repository", "repository"]
    later = [None if entry is None else entry.kind for entry in matcher.match(table.slice(2))]
    assert later == [None, "repository", "repository"]


def test_order_and_repeats_in_the_ledger_change_nothing(tmp_path):
    first = {"kind": "owner", "value": "O", "date": "2026-01-31", "reference": "x"}
    second = {"kind": "repository", "value": "a/b"}
    steps = []
    for number, entries in enumerate([(first, second), (second, first, second)]):
        (tmp_path / str(number)).mkdir()
        steps += optout.steps(ledger(tmp_path / str(number), *entries), "redact")
    assert steps[0].function.args == steps[1].function.args
    again = pickle.loads(pickle.dumps(steps[0])).function(rows({"repository": "o/x"}))
    assert len(again.drops) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "user", "value": "x"}', "kind 'user' is unknown"),
        ('{"kind": "owner", "value": "a/b"}', "must be a name without '/'"),
        ('{"kind": "owner", "value": ""}', "must be a name"),
        ('{"kind": "owner", "value": 3}', "must be a name"),
        ('{"kind": "content", "value": "swh:1:cnt:12"}', "must be swh:1:cnt: and 40"),
        ('{"kind": "path", "value": "a/b/c.py"}', "must be owner/name:path"),
        ('{"kind": "owner", "value": "a", "date": "May"}', "line 2"),
        ('{"kind": "owner", "value": "a", "reference": 3}', "reference 3 must be a text"),
        ('{"kind": "owner", "name": "a"}', "line 2"),
        ("[1]", "line 2"),
        ("owner: x", "line 2"),
    ],
)
def test_bad_ledgers(tmp_path, line, message):
    file = tmp_path / "ledger.jsonl"
    file.write_text('{"kind": "owner", "value": "x"}\n' + line)
    with pytest.raises(ValueError, match=message) as error:
        optout.steps(OptoutConfig([str(file)]), "redact")
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_missing_ledgers(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        optout.steps(OptoutConfig([str(tmp_path / "none")]), "redact")
    with pytest.raises(ValueError, match="give a list"):
        OptoutConfig("ledger.jsonl")


def test_a_large_ledger_and_a_large_shard_are_quick():
    entries = [Entry("owner", f"owner{n}") for n in range(20_000)]
    entries += [Entry("path", f"o/r:{n}") for n in range(20_000)]
    matcher = Matcher(entries)
    table = pa.table(
        {
            "repository": [f"some{n % 5000}/r" for n in range(200_000)],
            "path": ["p"] * 200_000,
            "swhid": [SWHID] * 200_000,
            "details": ['{"authors": 1}'] * 200_000,
        }
    )
    started = time.perf_counter()
    assert not any(matcher.match(table))
    assert time.perf_counter() - started < 5
