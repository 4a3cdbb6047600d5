"""Rows of events, and texts with their special tokens written out."""

import json

import pytest

from starcoder_jax.data.marks import pieces
from starcoder_jax.stack import record
from starcoder_jax.stack.stages.render import RenderConfig, steps

# Nothing is dropped for its length or by chance.
LENIENT = {
    "min_issue_characters": 0,
    "min_pull_request_characters": 0,
    "sample_pull_requests": False,
    "require_approval": False,
    "require_diff": False,
    "small_commit_rate": 1.0,
    "large_commit_rate": 1.0,
    "short_subject_rate": 1.0,
    "data_commit_rate": 1.0,
    "min_answers": 0,
}


@pytest.fixture
def render():
    """A function of rows, and fields of the configuration; returns texts and drops.

    Texts are pairs of kind and content by path, the special tokens written out; drops are reasons
    by row's path, or row's number where it has none.
    """

    def run(rows, lenient=True, **fields):
        rows = [{"repository": "owner/name", "path": str(n), **row} for n, row in enumerate(rows)]
        config = RenderConfig(**{**(LENIENT if lenient else {}), **fields})
        (step,) = steps(config, "source")
        output = step.function(record.records(rows))
        texts = {}
        for row in output.table.to_pylist():
            parts = pieces(row["content"], row["marks"])
            text = "".join((token or "") + content.decode() for token, content in parts)
            assert (row["kind"], row["path"]) not in texts
            texts[row["kind"], row["path"]] = text
        drops = {row["path"]: row["reason"] for row in output.drops.to_pylist()}
        return texts, drops

    return run


@pytest.fixture
def gharchive():
    """A function that makes an event's row as GHArchive has it."""

    def make(type, action, user, number, time, *, kind="issue", subject=None, item=None, **more):
        about = {
            "number": number,
            "title": "Parsing of empty files fails",
            "body": "The parser fails for files that have no content at all.",
            "user": {"login": "ann"},
            "created_at": "2020-01-01T00:00:00Z",
            **(subject or {}),
        }
        payload = {"action": action, kind: about}
        if item is not None:
            name = "review" if type == "PullRequestReviewEvent" else "comment"
            payload[name] = {"user": {"login": user}, **item}
        event = {
            "type": type,
            "actor": {"login": user},
            "repo": {"name": "owner/name"},
            "payload": payload,
            "created_at": f"2020-01-01T00:00:{time:02}Z",
            **more,
        }
        return {"kind": "event", "content": json.dumps(event).encode()}

    return make
