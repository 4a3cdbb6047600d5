import bz2
import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starcoder_jax.stack.record import records
from starcoder_jax.stack.stages.collect import CollectConfig, steps, tables
from starcoder_jax.stack.stages.collect.rows import git_hash

_HASH = "89abcdef0123456789abcdef0123456789abcdef"
_V1 = {
    "hexsha": _HASH,
    "size": 6,
    "ext": "py",
    "lang": "Python",
    "max_stars_repo_path": "src/a.py",
    "max_stars_repo_name": "ada/engine",
    "max_stars_repo_head_hexsha": "1" * 40,
    "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
    "max_stars_count": 12.0,
    "max_stars_repo_stars_event_min_datetime": "2015-01-01T00:00:00.000Z",
    "max_issues_count": None,
    "max_forks_repo_name": "eve/engine",
    "max_forks_count": None,
    "content": "x = 1\n",
    "avg_line_length": 5.0,
    "alphanum_fraction": 0.4,
}
_V2 = {
    "blob_id": _HASH,
    "directory_id": "2" * 40,
    "path": "/src/a.py",
    "content_id": "3" * 40,
    "detected_licenses": ["MIT"],
    "license_type": "permissive",
    "repo_name": "ada/engine",
    "snapshot_id": "4" * 40,
    "revision_id": "5" * 40,
    "branch_name": "refs/heads/main",
    "visit_date": datetime.datetime(2023, 9, 6, 1, 2, 3, 456789),
    "revision_date": datetime.datetime(2020, 1, 1),
    "committer_date": datetime.datetime(2020, 1, 2),
    "github_id": 1234,
    "star_events_count": 3,
    "fork_events_count": 1,
    "gha_license_id": "MIT",
    "gha_language": "Python",
    "src_encoding": "UTF-8",
    "language": "Python",
    "is_vendor": False,
    "is_generated": True,
    "length_bytes": 6,
    "extension": "py",
    "content": "x = 1\n",
}


def _jsonl(path, rows, compress=bytes):
    path.write_bytes(compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
    return f"jsonl:{path}"


def _parquet(path, rows, **settings):
    pq.write_table(pa.Table.from_pylist(rows), path, **settings)
    return f"parquet:{path}"


@pytest.mark.parametrize("write", [_jsonl, _parquet])
def test_rows_of_the_stack_v1(tmp_path, collect, write):
    (row,), drops = collect(write(tmp_path / "data", [_V1]))
    assert drops == []
    assert row == {
        "kind": "file",
        "content": b"x = 1\n",
        "marks": [],
        "repository": "ada/engine",
        "path": "src/a.py",
        "revision": "swh:1:rev:" + "1" * 40,
        "directory": None,
        "swhid": f"swh:1:cnt:{_HASH}",
        "timestamp": None,
        "stars": 12,
        "forks": None,
        "language": "Python",
        "declared_licenses": ["MIT", "Apache-2.0"],
        "detected_licenses": None,
        "license_type": None,
        "details": None,
    }


@pytest.mark.parametrize("write", [_jsonl, _parquet])
def test_rows_of_the_stack_v2(tmp_path, collect, write):
    source = _V2
    if write is _jsonl:
        dates = ("visit_date", "revision_date", "committer_date")
        source = _V2 | {name: _V2[name].isoformat() for name in dates}
    (row,), drops = collect(write(tmp_path / "data", [source]))
    assert drops == []
    details = json.loads(row.pop("details"))
    assert row == {
        "kind": "file",
        "content": b"x = 1\n",
        "marks": [],
        "repository": "ada/engine",
        "path": "src/a.py",
        "revision": "swh:1:rev:" + "5" * 40,
        "directory": "swh:1:dir:" + "2" * 40,
        "swhid": f"swh:1:cnt:{_HASH}",
        "timestamp": 1577923200,
        "stars": 3,
        "forks": 1,
        "language": "Python",
        "declared_licenses": ["MIT"],
        "detected_licenses": ["MIT"],
        "license_type": "permissive",
    }
    visited = _V2["visit_date"].isoformat() if write is _jsonl else 1693962123
    assert details == {
        "branch_name": "refs/heads/main",
        "snapshot_id": "4" * 40,
        "content_id": "3" * 40,
        "visit_date": visited,
        "is_vendor": False,
        "is_generated": True,
        "src_encoding": "UTF-8",
    }


def test_rows_of_our_own_come_back(tmp_path, collect):
    table = records(
        [
            {
                **{"kind": "page", "content": b"caf\xe9", "repository": "o/r", "path": "a.html"},
                **{"revision": "swh:1:rev:" + "1" * 40, "directory": "swh:1:dir:" + "2" * 40},
                **{"swhid": "swh:1:cnt:" + git_hash(b"caf\xe9"), "timestamp": 5, "stars": 1},
                **{"forks": 2, "language": "HTML", "declared_licenses": ["MIT"]},
                **{"detected_licenses": ["0BSD"], "license_type": "permissive"},
                "details": '{"a": 1}',
            },
            {"kind": "event", "content": b"{}", "repository": "o/r", "path": "issues/1"},
        ]
    )
    pq.write_table(table, tmp_path / "shard.parquet")
    rows, drops = collect(f"parquet:{tmp_path}/shard.parquet", shards=1)
    assert (rows, drops) == (table.to_pylist(), [])


def test_rendered_rows_and_marks_are_not_read_again(tmp_path, collect, reasons):
    mark = [{"offset": 0, "token": "<fim_prefix>"}]
    uri = _jsonl(
        tmp_path / "data",
        [
            {"kind": "issue", "content": "x", "repo": "r", "path": "1"},
            {"kind": "file", "content": "x", "repo": "r", "path": "2", "marks": mark},
            {"kind": "file", "content": "x", "repo": "r", "path": "3", "marks": []},
        ],
    )
    rows, drops = collect(uri)
    assert [row["path"] for row in rows] == ["3"]
    assert reasons(drops) == {"1": "rendered before", "2": "has marks"}


def test_plain_rows_that_name_nothing_are_repositories_of_their_own(tmp_path, collect):
    rows, _ = collect(_jsonl(tmp_path / "notes.v1.jsonl", [{"text": "a"}, {"code": "b"}]))
    assert sorted((row["repository"], row["content"]) for row in rows) == [
        ("notes/1", b"a"),
        ("notes/2", b"b"),
    ]
    rows, _ = collect(_jsonl(tmp_path / "x", [{"content": "", "repo": "r", "file_path": "p"}]))
    assert [(row["repository"], row["path"], row["content"]) for row in rows] == [("r", "p", b"")]


def test_files_within_a_row_belong_to_its_repository(tmp_path, collect, contents):
    row = {
        **{"repo_name": "ada/engine", "star_events_count": 7, "num_files": 2},
        "files": [{"path": "/a.py", "content": "1"}, {"path": "/b.py", "content": "2"}],
    }
    for write in (_jsonl, _parquet):
        rows, drops = collect(write(tmp_path / "data", [row]))
        assert contents(rows) == {("ada/engine", "a.py"): b"1", ("ada/engine", "b.py"): b"2"}
        assert drops == [] and {row["stars"] for row in rows} == {7}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_bad_lines_are_dropped_and_good_ones_kept(tmp_path, collect, compress):
    lines = [
        b'{"content": "good", "repo": "r", "path": "1"}',
        b"",
        b"no json",
        b"[1]",
        b'{"content": "\xff"}',
        b"[" * 10**5,
        b'{"content": 5}',
        b'{"content": "\\ud800"}',
        b'{"content": "' + b"x" * 1100 + b'"}',
        b'{"content": "x\\u0000"}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b'{"content": "last", "repo": "r", "path": "2"}',
    ]
    (tmp_path / "data").write_bytes(compress(b"\n".join(lines)))
    rows, drops = collect(f"jsonl:{tmp_path}/data", max_file_bytes=1000)
    assert [row["content"] for row in rows] == [b"good", b"last"]
    assert {drop["repository"]: drop["reason"] for drop in drops} == {
        "data/3": "not JSON",
        "data/4": "no object",
        "data/5": "not UTF-8",
        "data/6": "not JSON",
        "data/7": "no content",
        "data/8": "not UTF-8",
        "data/9": "too large",
        "data/10": "binary",
        "data/11": "not JSON",
    }


def test_a_line_that_is_too_long_is_skipped(tmp_path, collect, monkeypatch):
    monkeypatch.setattr(tables, "_JSON_MORE", 0)
    lines = [b'{"content": "' + b"x" * 400 + b'"}', b'{"content": "fits"}']
    (tmp_path / "data").write_bytes(b"\n".join(lines))
    rows, (drop,) = collect(f"jsonl:{tmp_path}/data", max_file_bytes=100)
    assert [row["content"] for row in rows] == [b"fits"]
    assert (drop["reason"], drop["repository"]) == ("line too long", "data/1")


def test_an_escaped_content_of_the_greatest_length_fits(tmp_path, collect):
    content = "é" * 5000 + "字" * 5000
    uri = _jsonl(tmp_path / "data", [{"content": content}])
    assert (tmp_path / "data").stat().st_size > 2 * len(content.encode())
    rows, drops = collect(uri, max_file_bytes=len(content.encode()))
    assert ([row["content"] for row in rows], drops) == ([content.encode()], [])


def test_strange_values_are_no_values(tmp_path, collect):
    row = {
        **{"content": "x", "repo_name": 5, "path": ["a"], "stars": -1, "forks": True},
        **{
            "language": {"a": 1},
            "revision_id": "not a hash",
            "directory_id": 7,
            "blob_id": "A" * 40,
        },
        **{"license": [1, "MIT", None], "timestamp": 10**15, "details": "[1]", "marks": None},
        "license_type": None,
    }
    (found,), drops = collect(_jsonl(tmp_path / "data", [row]))
    assert drops == [] and found["repository"] == "data/1"
    assert found["declared_licenses"] == ["MIT"]
    names = ("stars", "forks", "language", "revision", "directory", "timestamp", "details")
    assert [found[name] for name in names] == [None] * 7
    assert found["swhid"] == "swh:1:cnt:" + git_hash(b"x")
    lone = json.loads('{"content": "x", "repo": "a\\ud800", "path": "/../b"}')
    (found,), _ = collect(_jsonl(tmp_path / "data", [lone]))
    assert (found["repository"], found["path"]) == ("a\\ud800", "../b")


@pytest.mark.parametrize("part", ["beginning", "end"])
def test_a_damaged_file_is_reported(tmp_path, collect, part):
    rows = [{"content": f"{number} " * 50} for number in range(20_000)]
    _jsonl(tmp_path / "data", rows, gzip.compress)
    data = (tmp_path / "data").read_bytes()
    (tmp_path / "data").write_bytes(
        data[: len(data) // 2] if part == "end" else data[:10] + b"\xff" * 9 + data[19:]
    )
    rows, (drop,) = collect(f"jsonl:{tmp_path}/data")
    assert len(rows) < 20_000 and (part == "beginning" or rows)
    assert (drop["reason"], drop["repository"]) == ("damaged table", "data")


def test_parquet_is_read_in_parts(tmp_path, collect, monkeypatch):
    rows = [{"content": f"text {number}", "repo": "r"} for number in range(100)]
    uri = _parquet(tmp_path / "data", rows, row_group_size=10)
    assert len(steps(CollectConfig(sources=(uri,)))[0].items) == 1
    whole = collect(uri)
    monkeypatch.setattr(tables, "_ITEM_BYTES", 300)
    (step,) = steps(CollectConfig(sources=(uri,)))
    assert 1 < len(step.items) <= 10
    assert len({item.fingerprint for item in step.items}) == len(step.items)
    assert collect(uri) == whole and len(whole[0]) == 100
    assert {row["path"] for row in whole[0]} == {f"{number}.1" for number in range(1, 101)}


def test_text_columns_of_parquet_may_be_anything(tmp_path, collect):
    bad = pa.array([b"caf\xe9", b"good"]).view(pa.string())
    pq.write_table(pa.table({"content": bad, "path": ["a", "b"]}), tmp_path / "data")
    rows, drops = collect(f"parquet:{tmp_path}/data")
    assert ({row["content"] for row in rows}, drops) == ({b"caf\xe9", b"good"}, [])
    pq.write_table(pa.table({"content": [b"x"], "path": bad[:1]}), tmp_path / "data")
    rows, (drop,) = collect(f"parquet:{tmp_path}/data")
    assert rows == [] and drop["reason"] == "damaged table"


def test_parquet_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "data").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="cannot read"):
        steps(CollectConfig(sources=(f"parquet:{tmp_path}/data",)))
    ids = _parquet(tmp_path / "ids", [{"blob_id": _HASH, "path": "a"}])
    with pytest.raises(ValueError, match=r"no column content or .*swh:TABLE"):
        steps(CollectConfig(sources=(ids,)))
    with pytest.raises(ValueError, match="matches no file"):
        steps(CollectConfig(sources=(f"jsonl:{tmp_path}",)))


def test_links_to_tables_are_followed(tmp_path, collect):
    """Caches of data sets are made of them, and whoever names the files means them."""
    _jsonl(tmp_path / "blob", [{"content": "x"}])
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "blob")
    assert len(collect(f"jsonl:{tmp_path}/*.jsonl")[0]) == 1


def test_repeats_of_a_table_are_dropped(tmp_path, collect):
    _jsonl(tmp_path / "one", [_V1, _V1 | {"max_stars_count": 13}])
    rows, drops = collect(_jsonl(tmp_path / "two", [_V1]), f"jsonl:{tmp_path}/one")
    assert [row["stars"] for row in rows] == [13]
    assert [drop["reason"] for drop in drops] == ["repeat"] * 2
