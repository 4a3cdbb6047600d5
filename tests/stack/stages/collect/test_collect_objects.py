import gzip
import json
import pathlib
import time

import pytest

_DATA = pathlib.Path(__file__).parents[5] / "shared" / "data"


def _lines(values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


_ISSUE = {
    "action": "opened",
    "issue": {"number": 7, "title": "t"},
    "repository": {"full_name": "o/r"},
}
_ARCHIVED = {
    "type": "IssueCommentEvent",
    "repo": {"id": 1, "name": "o/r"},
    "payload": {"action": "created", "issue": {"number": 7}, "comment": {"body": "b"}},
    "created_at": "2023-01-01T00:00:00Z",
}


@pytest.mark.parametrize("name", ["2023-01-01-0.json.gz", "events.jsonl.gz", "events.json"])
def test_events_stand_one_a_line_whatever_the_file_is_called(tmp_path, collect, name):
    pull = {**_ISSUE, "issue": {"number": 8, "pull_request": {"url": "u"}}}
    review = {"pull_request": {"number": 9}, "repository": {"full_name": "p/q"}}
    push = {"ref": "refs/heads/main", "repository": {"full_name": "p/q"}}
    data = _lines([_ISSUE, _ARCHIVED, pull, review, push])
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    rows, drops = collect(f"events:{tmp_path}/*", shards=1)
    assert drops == [] and {row["kind"] for row in rows} == {"event"}
    assert [(row["repository"], row["path"]) for row in rows] == [
        *[("o/r", "issues/7")] * 2,
        ("o/r", "pull/8"),
        ("p/q", "event"),
        ("p/q", "pull/9"),
    ]
    assert sorted(rows[n]["content"] for n in (0, 1)) == sorted(
        _lines([_ISSUE, _ARCHIVED]).split(b"\n")[:2]
    )


def test_a_payload_may_take_several_lines(tmp_path, collect):
    (tmp_path / "one.json").write_bytes(json.dumps(_ISSUE, indent=2).encode())
    (tmp_path / "two.json").write_bytes(json.dumps([_ARCHIVED, {"no": "name"}], indent=2).encode())
    rows, (drop,) = collect(f"events:{tmp_path}/*")
    assert [json.loads(row["content"]) for row in rows if row["repository"] == "o/r"] in (
        [_ISSUE, _ARCHIVED],
        [_ARCHIVED, _ISSUE],
    )
    assert (drop["reason"], drop["kind"], drop["repository"]) == ("no repository", "event", "two/2")


def test_strange_events_are_dropped_or_plain(tmp_path, collect):
    values = [
        {"repository": "o/r", "issue": 5},
        {"repository": {"full_name": "o/r"}, "issue": {"number": "../../1"}},
        {"repo": {"name": "a\ud800"}, "payload": [1], "pull_request": {"number": True}},
    ]
    (tmp_path / "events").write_bytes(_lines(values) + b"{broken\n" + b'{"repo": {"name": ""}}\n')
    rows, drops = collect(f"events:{tmp_path}/events")
    assert sorted((row["repository"], row["path"]) for row in rows) == [
        ("a\\ud800", "event"),
        ("o/r", "event"),
    ]
    assert sorted((drop["repository"], drop["reason"]) for drop in drops) == [
        ("events/1", "no repository"),
        ("events/4", "not JSON"),
        ("events/5", "no repository"),
    ]


_POSTS = """\ufeff<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="4" PostTypeId="1" Score="3" Body="&lt;p&gt;Why?&#xA;é&lt;/p&gt;" AcceptedAnswerId="7" />
  <row Id="7" PostTypeId="2" ParentId="4" Body="Because." Score="5" />
  <row Id="8" PostTypeId="5" Body="wiki" />
  <row Id="9" PostTypeId="2" ParentId="../4" Body="x" />
  <row Id="10" PostTypeId="1" Body="&bomb;" />
  <!DOCTYPE row [<!ENTITY bomb "x">]>
  <row Id="11"
</posts>
"""


@pytest.mark.parametrize("name", ["Posts.xml", "ai.stackexchange.com-Posts.xml.gz"])
def test_questions_and_their_answers_find_together(tmp_path, collect, name):
    folder = tmp_path / "ai.stackexchange.com"
    folder.mkdir()
    data = _POSTS.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    rows, drops = collect(f"questions:{folder}/*")
    assert [(row["kind"], row["repository"], row["path"]) for row in rows] == [
        ("question_event", "stackexchange/ai/4", "questions/4"),
        ("question_event", "stackexchange/ai/4", "questions/4/answers/7"),
    ]
    assert json.loads(rows[0]["content"]) == {
        **{"Id": "4", "PostTypeId": "1", "Score": "3", "Body": "<p>Why?\né</p>"},
        **{"AcceptedAnswerId": "7", "site": "ai"},
    }
    found = sorted((drop["repository"], drop["reason"]) for drop in drops)
    assert found == [
        ("stackexchange/ai", "neither question nor answer"),
        ("stackexchange/ai", "no number"),
        ("stackexchange/ai/line 7", "not XML"),
        ("stackexchange/ai/line 8", "not JSON"),
        ("stackexchange/ai/line 9", "not XML"),
    ]


def test_questions_may_be_json_lines(tmp_path, collect):
    posts = [{"Id": 4, "PostTypeId": 1, "Body": "?"}, {"Id": 5, "PostTypeId": 2, "ParentId": 4}]
    (tmp_path / "stackoverflow.com-Posts.jsonl").write_bytes(_lines(posts))
    rows, drops = collect(f"questions:{tmp_path}/*")
    assert drops == [] and len(rows) == 2
    assert {row["repository"] for row in rows} == {"stackexchange/stackoverflow/4"}
    assert json.loads(rows[0]["content"]) == {**posts[0], "site": "stackoverflow"}


def test_entities_are_not_expanded(tmp_path, collect):
    """A billion laughs: as many letters as ten to the power of the number of entities."""
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    document = f'<!DOCTYPE posts [<!ENTITY e0 "ha">{entities}]>'
    row = '<row Id="1" PostTypeId="1" Body="&e11;" />'
    text = f"<?xml version='1.0'?>\n{document}\n<posts>\n{row}\n{document}{row}\n</posts>\n"
    (tmp_path / "Posts.xml").write_text(text)
    started = time.perf_counter()
    rows, drops = collect(f"questions:{tmp_path}/Posts.xml")
    assert rows == [] and time.perf_counter() - started < 2
    assert sorted(drop["reason"] for drop in drops) == ["not JSON", "not JSON", "not XML"]


def test_notebooks_of_kaggle_and_pairs_of_code_and_ir(tmp_path, collect):
    values = [{"code": "x", "title": "t"}, {"code": "y", "repository": "ada/notebook", "path": "n"}]
    (tmp_path / "data.jsonl").write_bytes(_lines(values) + b"[]\n")
    for scheme in ("kaggle", "ir"):
        rows, (drop,) = collect(f"{scheme}:{tmp_path}/data.jsonl")
        assert {(row["repository"], row["path"]) for row in rows} == {
            ("data/1", scheme),
            ("ada/notebook", "n"),
        }
        assert {row["kind"] for row in rows} == {drop["kind"]} == {f"{scheme}_event"}
        assert {row["content"] for row in rows} == set(_lines(values).splitlines())
        assert (drop["reason"], drop["repository"]) == ("no object", "data/3")


def test_large_objects_and_damaged_files_are_dropped(tmp_path, collect):
    (tmp_path / "a.jsonl").write_bytes(_lines([{"ir": "x" * 1000}, {"ir": "fits"}]))
    rows, (drop,) = collect(f"ir:{tmp_path}/a.jsonl", max_file_bytes=500)
    assert len(rows) == 1 and (drop["reason"], drop["bytes"]) == ("too large", 1010)
    for scheme in ("ir", "events", "questions"):
        (tmp_path / "b.gz").write_bytes(gzip.compress(_lines([{"a": 1}] * 9999))[:-20])
        rows, drops = collect(f"{scheme}:{tmp_path}/b.gz")
        assert "damaged table" in {drop["reason"] for drop in drops}


# Other people's data is not committed; the tests above have payloads of our own.
@pytest.mark.skipif(not _DATA.is_dir(), reason="the benchmarks' data is not beside the repository")
def test_published_payloads_and_notebooks_are_read_without_drops(collect):
    rows, drops = collect(f"events:{_DATA}/github-events/*.json")
    assert drops == [] and len(rows) == 12
    assert {row["repository"] for row in rows} >= {"Codertocat/Hello-World"}
    paths = [row["path"] for row in rows]
    assert "issues/1" in paths and "pull/2" in paths
    for row in rows:
        assert json.loads(row["content"])["repository"]["full_name"] == row["repository"]
    rows, drops = collect(f"folder:{_DATA}/notebooks")
    assert drops == []
    notebooks = [row for row in rows if row["path"].endswith(".ipynb")]
    assert len(notebooks) == 6
    assert all(json.loads(row["content"])["cells"] for row in notebooks)
