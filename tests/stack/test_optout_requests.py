import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.optout_requests import parse, write_ledger
from starcoder_jax.stack.stages.optout import read_ledgers

OLD = "I request that the following data is removed from The Stack and StackOverflow:\n\n"
NOTE = (
    "\n_Note_: If you don't want all resources to be included just remove the elements from the "
    'list above. If you would like to exclude all repositories and resources just add "all".\n'
)
ACCOUNTS = "### Accounts and organizations to remove ENTIRELY\n\n"
REPOSITORIES = "### Specific repositories to remove\n\n"
OWN = [("repository", "me-2/_a_"), ("repository", "me-2/b")]
REST = """
### Optional - your relationship to what you listed

- [x] These are my own personal account(s).
- [ ] I am an owner or admin of the organization(s) listed.

### Optional - a link that helps confirm this is you/yours

https://example.com/me

### Anything else? (optional)

_No response_
"""


def request(body, **changes):
    issue = {"number": 7, "body": body, "user": {"login": "Me-2"}, "created_at": "2026-01-31T09:08"}
    return parse(issue | changes)


def entries(body):
    found = request(body)
    return sorted((entry.kind, entry.value) for entry in found.entries)


def questions(body):
    return [(question.line, question.reason) for question in request(body).questions]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (ACCOUNTS + "me-2\n\n" + REPOSITORIES + "_No response_\n" + REST, [("owner", "me-2")]),
        (ACCOUNTS + "- @Me-2\n" + REPOSITORIES + "- all\n" + REST, [("owner", "me-2")]),
        (ACCOUNTS + "https://github.com/Me-2/\r\n" + REST, [("owner", "me-2")]),
        ("# Accounts and organizations to remove ENTIRELY\nme-2\n", [("owner", "me-2")]),
        (ACCOUNTS + "Accounts and organizations to remove ENTIRELY\nme-2", [("owner", "me-2")]),
        (
            REPOSITORIES + "Me-2/A.b\n[me-2/c](https://github.com/me-2/c)\n`me-2/d`\n" + REST,
            [("repository", "me-2/a.b"), ("repository", "me-2/c"), ("repository", "me-2/d")],
        ),
        (OLD + " - all\n" + NOTE, [("owner", "me-2")]),
        (OLD + " - Commits\n - GitHub issue\n - all\n" + NOTE, [("owner", "me-2")]),
        (
            OLD.replace(" and StackOverflow", "") + " - Commits\n - GitHub issues\n* me-2/a\n",
            [("author", "me-2"), ("repository", "me-2/a")],
        ),
        (
            OLD + " - Commits related to:\n - GitHub issues related to:\n 1. me-2/a.git\n",
            [("repository", "me-2/a")],
        ),
        (
            OLD + "- StackOverflow: <INSERT_STACKOVERFLOW_USERNAME_HERE>\n- me-2/a" + NOTE,
            [("repository", "me-2/a")],
        ),
    ],
)
def test_what_is_certain(body, expected):
    assert entries(body) == expected
    assert questions(body) == []
    for entry in request(body, html_url="https://example.com/7").entries:
        assert (entry.date, entry.reference) == ("2026-01-31", "https://example.com/7")
    assert {entry.reference for entry in request(body).entries} == {"issue 7"}


@pytest.mark.parametrize(
    ("body", "certain", "unclear"),
    [
        (ACCOUNTS + "me-2\nbig-company\n", [("owner", "me-2")], ["big-company"]),
        (ACCOUNTS + "All\n", [], ["All"]),
        (REPOSITORIES + "all\n", [], ["all"]),
        (REPOSITORIES + "me-2/*\nfoo\n", [], ["me-2/*", "foo"]),
        (REPOSITORIES + "me-2/_a_\n_me-2/b_\nyou/b\n", OWN, ["you/b"]),
        (REPOSITORIES + "me-2/a\nyou/b\n", [("repository", "me-2/a")], ["you/b"]),
        (
            ACCOUNTS + "me-2\n" + REST.replace("_No response_", "Shame."),
            [("owner", "me-2")],
            ["Shame."],
        ),
        (OLD + " - Commits\n - me-2/a\n", [("repository", "me-2/a")], ["Commits"]),
        (OLD + " - USERNAME/REPO_1\n", [], ["USERNAME/REPO_1"]),
        (
            OLD + " - StackOverflow: me\n - me-2/a\n",
            [("repository", "me-2/a")],
            ["StackOverflow: me"],
        ),
        (OLD + " - every one I ever committed to\n", [], ["every one I ever committed to"]),
        (OLD + " - Commits related to:\n", [], ["Commits related to:"]),
        (
            OLD + "- me-2/a\nand more:\n- me-2/b",
            [("repository", "me-2/a")],
            ["and more:", "me-2/b"],
        ),
        ("Repositories: all\nGithub user: me-2\n", [], ["Repositories: all", "Github user: me-2"]),
        ("- all", [], ["all"]),
        (OLD + "- all\n```\n" + "0" * 40 + "\n```", [("owner", "me-2")], ["0" * 40]),
    ],
)
def test_what_is_not_certain_is_asked(body, certain, unclear):
    assert entries(body) == certain
    assert [line for line, _ in questions(body)] == unclear


@pytest.mark.parametrize(
    "body",
    [
        OLD + " - all\n\nexcept me-2/good, which you may keep",
        ACCOUNTS + "me-2\n\n### Anything else? (optional)\n\nDo not remove me-2/good.",
        OLD + " - all\n\nUpdate: I would like to cancel this.",
    ],
)
def test_exceptions_leave_the_whole_request_to_a_person(body):
    assert entries(body) == []
    assert questions(body) == [(body, "the request seems to make an exception")]


def test_requests_that_say_nothing():
    for body in ("", None, NOTE, ACCOUNTS + "_No response_\n" + REST):
        assert questions(body) == [(body or "", "nothing is named")]
    (question,) = request(OLD + "- all", pull_request={"url": "x"}).questions
    assert "pull request" in question.reason and question.author == "me-2"


def test_decided_lists_are_taken_as_they_are():
    row = {"issue": 54, "author": "x", "optout_owners": ["NUPRL"], "optout_repos": ["a/b"]}
    found = parse(row)
    assert [(e.kind, e.value, e.reference) for e in found.entries] == [
        ("owner", "nuprl", "issue 54"),
        ("repository", "a/b", "issue 54"),
    ]
    assert not found.questions


def test_files_become_a_ledger_and_questions(tmp_path):
    author = {"login": "me"}
    issues = [
        {"number": 2, "body": OLD + "- all", "user": author, "created_at": "2026-01-31T00:00:00Z"},
        {"number": 1, "body": REPOSITORIES + "me/b\nyou/c", "user": author, "created_at": None},
    ]
    (tmp_path / "a.json").write_text(json.dumps(issues))
    decided = [{"issue": 3, "optout_owners": ["x"], "optout_repos": []}] * 2
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, decided)) + "\n")
    ledger, unclear = tmp_path / "ledger.jsonl", tmp_path / "questions.jsonl"
    sources = [tmp_path / "a.json", tmp_path / "b.jsonl"]
    assert write_ledger(sources, ledger, unclear) == (3, 1)
    found = [(entry.kind, entry.value) for entry in read_ledgers([ledger])]
    assert found == [("owner", "me"), ("owner", "x"), ("repository", "me/b")]
    (question,) = map(json.loads, unclear.read_text().splitlines())
    assert (question["reference"], question["author"], question["line"]) == (
        "issue 1",
        "me",
        "you/c",
    )
    before = ledger.read_bytes()
    write_ledger(sources[::-1], ledger, unclear)
    assert ledger.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "cannot be read"),
        ("[1]", "request 1: it is no JSON object"),
        ('{"body": "x"}', "lacks a field"),
        ('{"number": 1, "body": "x", "user": null}', "lacks a field"),
        ('{"issue": 1, "optout_owners": 3}', "has no list of names"),
        ('{"issue": 1, "optout_owners": ["a b"]}', "must be a name"),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        write_ledger([tmp_path / "x.json"], tmp_path / "l", tmp_path / "q")
    assert "x.json" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "l").exists()


@settings(max_examples=150, deadline=500)
@given(
    st.lists(
        st.sampled_from(
            [OLD, ACCOUNTS, REPOSITORIES, "- ", "me-2", "/", "all", "\n", "[", "](", "a"]
        )
        | st.text(max_size=20),
        max_size=30,
    ).map("".join)
)
def test_whatever_is_written_names_only_the_author(body):
    found = request(body)
    assert found.entries or found.questions
    for entry in found.entries:
        assert entry.value.partition("/")[0] == "me-2"


@pytest.mark.parametrize("piece", ["-a", "[", "![a](", "a/", " \t", "1. ", "the stack"])
def test_long_lines_are_no_trap(piece):
    started = time.perf_counter()
    assert request(OLD + "- " + piece * 100_000).questions
    assert request(OLD + ("- " + piece * 100 + "\n") * 500).questions
    assert time.perf_counter() - started < 3
