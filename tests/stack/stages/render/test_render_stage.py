import dataclasses
import json
import pickle
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.data.tokenizer import STARCODER2_SPECIAL_TOKENS
from starcoder_jax.stack import record
from starcoder_jax.stack.stages.render import RenderConfig, steps

KINDS = ("event", "commit_event", "question_event", "kaggle_event", "ir_event", "page")
STARCODER_TOKENS = (
    *("<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"),
    *("<jupyter_code>", "<jupyter_output>", "<empty_output>", "<commit_before>", "<commit_msg>"),
    "<commit_after>",
)


def test_other_rows_stay_as_they_are_in_their_order(gharchive):
    def row(path, kind="file", **more):
        return {"kind": kind, "repository": "owner/name", "path": path, "content": b"x", **more}

    marked = row("b", "issue", marks=[{"offset": 1, "token": "<EMAIL>"}])
    rows = [
        row("a", language="Python"),
        marked,
        {**gharchive("IssuesEvent", "opened", "ann", 1, 0), **{"repository": "owner/name"}},
        row("z", language=None),
    ]
    table = record.records([rows[0], rows[1], {"path": "e", **rows[2]}, rows[3]])
    (step,) = steps(RenderConfig(min_issue_characters=0), "source")
    output = step.function(table)
    assert output.table.schema == record.RECORD
    assert output.table["path"].to_pylist() == ["a", "b", "issues/1", "z"]
    kept = output.table.filter(pa.array([True, True, False, True]))
    assert kept.equals(table.filter(pa.array([True, True, False, True])))
    assert output.counts == {"texts of kind issue": 1, "rows rendered": 1}
    made = output.table.slice(2, 1).to_pylist()[0]
    assert json.loads(made["details"]) == {"authors": ["ann"]}
    assert made["swhid"] is None


def test_a_text_can_imitate_no_special_token(gharchive):
    body = "<issue_closed><|endoftext|><issue_comment>username_9: x"
    row = gharchive("IssuesEvent", "opened", "ann", 1, 0, subject={"body": body})
    (step,) = steps(RenderConfig(min_issue_characters=0), "source")
    table = record.records([{"repository": "r", "path": "p", **row}])
    (made,) = step.function(table).table.to_pylist()
    assert made["marks"] == [{"offset": 0, "token": "<issue_start>"}]
    assert made["content"].decode().endswith(f"username_0: {body}")


def test_nothing_to_render():
    (step,) = steps(RenderConfig(), "source")
    for rows in ([], [{"kind": "file", "content": b"x", "repository": "r", "path": "p"}]):
        table = record.records(rows)
        output = step.function(table)
        assert output.table.equals(table)
        assert len(output.drops) == 0 and output.drops.schema == record.DROP


def test_the_step_can_be_sent_to_other_processes():
    (step,) = pickle.loads(pickle.dumps(steps(RenderConfig(seed=3), "identify")))
    assert (step.name, step.inputs) == ("render", ("identify",))
    assert len(step.function(record.records([])).table) == 0


def test_every_row_is_accounted_for(gharchive):
    rows = [gharchive("IssuesEvent", "opened", "ann", n, 0) for n in range(5)]
    rows += [gharchive("IssuesEvent", "closed", "ann", n, 1) for n in range(5)]
    rows += [{"kind": kind, "content": b"{}"} for kind in KINDS]
    table = record.records(
        [{"repository": "r", "path": str(n), **row} for n, row in enumerate(rows)]
    )
    for lowest in (0, 200):
        (step,) = steps(RenderConfig(min_issue_characters=lowest), "source")
        output = step.function(table)
        assert len(output.drops) + output.counts["rows rendered"] == len(table)
        assert output.counts["rows rendered"] == (11 if lowest == 0 else 1)


NAMES = (
    *("action", "number", "title", "body", "user", "login", "issue", "comment", "pull_request"),
    *("review", "id", "state", "type", "payload", "created_at", "base", "head", "sha", "files"),
    *("path", "old", "new", "subject", "code", "ir", "notebook", "cells", "cell_type", "source"),
    *("outputs", "worksheets", "PostTypeId", "Id", "Body", "merged"),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from(["opened", "closed", "1", "2", "", "\ud800", "<pr>", "a\r\nb", "x" * 300]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=8)
    ),
    max_leaves=10,
)
SUBJECT = st.fixed_dictionaries({"number": st.integers(1, 2)}, optional={"body": VALUES})
TEXTS = st.sampled_from(["\ud800", "a text that is long enough", "a text\r\nof bob", "/call"])
ITEM = st.fixed_dictionaries(
    {"body": TEXTS | VALUES, "user": st.fixed_dictionaries({"login": TEXTS | VALUES})},
    optional={"id": VALUES, "state": VALUES, "path": VALUES, "diff_hunk": VALUES},
)
PULL_REQUEST = st.fixed_dictionaries(
    {"number": st.integers(1, 2), "title": TEXTS, "body": TEXTS},
    optional={"merged": VALUES, "base": VALUES, "head": VALUES, "created_at": VALUES},
)
EVENT = st.fixed_dictionaries(
    {"action": st.sampled_from(["opened", "created", "closed", "edited", "deleted"])},
    optional={"review": ITEM, "comment": ITEM, "sender": VALUES, "files": st.lists(VALUES)},
)
EVENT = st.builds(dict, EVENT, issue=SUBJECT) | st.builds(dict, EVENT, pull_request=PULL_REQUEST)


def _check(values, style):
    rows = [
        {
            "kind": kind,
            "language": "Jupyter Notebook",
            "repository": "r",
            "path": "p",
            "content": json.dumps(value).encode(),
        }
        for kind, value in values
    ]
    lenient = {"require_approval": False, "require_diff": False, "min_issue_characters": 0}
    lenient |= {"min_pull_request_characters": 0, "sample_pull_requests": False}
    (step,) = steps(RenderConfig(style=style, **lenient), "source")
    output = step.function(record.records(rows))
    assert len(output.drops) + output.counts.get("rows rendered", 0) == len(rows)
    tokens = STARCODER2_SPECIAL_TOKENS if style == "starcoder2" else STARCODER_TOKENS
    for row in output.table.to_pylist():
        text = row["content"].decode()
        offsets = [mark["offset"] for mark in row["marks"]]
        assert offsets == sorted(offsets) and all(0 <= at <= len(row["content"]) for at in offsets)
        assert {mark["token"] for mark in row["marks"]} <= set(tokens)
        assert text or row["marks"]
    return output.table["kind"].to_pylist()


@settings(max_examples=60, deadline=2000)
@given(
    st.lists(st.tuples(st.sampled_from((*KINDS, "file")), VALUES), max_size=6),
    st.sampled_from(["starcoder", "starcoder2"]),
)
def test_whatever_the_json_says_it_is_rendered_or_dropped(values, style):
    _check(values, style)


def test_whatever_events_say_they_are_rendered_or_dropped():
    made = set()

    @settings(max_examples=80, deadline=2000, derandomize=True)
    @given(st.lists(EVENT, min_size=1, max_size=5))
    def check(values):
        made.update(_check([("event", value) for value in values], "starcoder2"))

    check()
    assert made == {"issue", "pull_request"}


@pytest.mark.parametrize("kind", KINDS)
def test_time_for_hostile_contents_is_bounded(kind):
    contents = [
        b"[" * 10**6,
        b'{"a":' * 200_000,
        json.dumps({"cells": [{"cell_type": "code", "source": "<" * 10**6}]}).encode(),
        json.dumps(
            {"issue": {"number": 1, "body": "> a\n" * 10**5, "title": "_" * 10**6}}
        ).encode(),
        json.dumps(
            {
                "action": "opened",
                "pull_request": {"number": 2, "title": "x" * 10**6, "body": "<!--" * 10**5},
                "files": [{"path": "a", "base": "a\nb\n" * 10**5, "head": "b\na\nc\n" * 10**5}],
            }
        ).encode(),
        json.dumps(
            {"old": "a\n" * 49_000, "new": "b\n" * 10**5, "subject": "x y " * 10**5}
        ).encode(),
        b"\xff\x00" * 10**5,
    ]
    rows = [
        {"kind": kind, "repository": "r", "path": str(n), "content": content}
        for n, content in enumerate(contents)
    ]
    start = time.monotonic()
    for style in ("starcoder", "starcoder2"):
        (step,) = steps(RenderConfig(style=style, require_approval=False), "source")
        step.function(record.records(rows))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "codegen"}, "render.style is 'codegen': it must be starcoder or starcoder2"),
        ({"whole_file_rate": 1.5}, "render.whole_file_rate is 1.5: it must be from 0 to 1"),
        ({"seed": -1}, "render.seed is -1: it must not be negative"),
        ({"max_text_lines": 20}, "render.max_text_lines is 20: it must be above 20"),
        ({"max_extra_lines": 0}, "render.max_extra_lines is 0: it must be positive"),
        ({"min_diff_context": 10}, "it must not exceed max_diff_context, 9"),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises(ValueError, match="render") as error:
        RenderConfig(**fields)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert set(fields) <= {field.name for field in dataclasses.fields(RenderConfig)}
