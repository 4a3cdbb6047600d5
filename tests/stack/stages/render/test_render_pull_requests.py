import functools

import pytest

BODY = "The parser fails for files that have no content at all."
OPENED = f"<pr>Title: Parsing of empty files fails\nusername_0: {BODY}<pr_status>opened"
OLD = [f"line_{n} = compute(value, step)" for n in range(60)]
NEW = [*OLD[:30], "line_30 = compute(other, step)", *OLD[31:]]
NEWER = [*NEW[:31], "added = True", *NEW[31:]]
COMMITS = {"base": {"sha": "b0"}, "head": {"sha": "h1"}}


@pytest.fixture
def pull(gharchive):
    def make(action, user, number, time, **more):
        more["subject"] = {**COMMITS, "merged": False, **more.get("subject", {})}
        kind = "PullRequestEvent"
        return gharchive(kind, action, user, number, time, kind="pull_request", **more)

    return make


@pytest.fixture
def review(gharchive):
    def make(user, number, time, body, state="commented", head="h1"):
        item = {"id": 100 + time, "body": body, "state": state}
        return gharchive(
            "PullRequestReviewEvent",
            "created",
            user,
            number,
            time,
            kind="pull_request",
            subject={**COMMITS, "head": {"sha": head}},
            item=item,
        )

    return make


@pytest.fixture
def note(gharchive):
    """A comment on lines of code."""

    def make(user, number, time, body, **item):
        item = {"id": 100 + time, "body": body, "path": "a.py", "diff_hunk": "@@ -1 +1 @@", **item}
        kind = "PullRequestReviewCommentEvent"
        about = {"kind": "pull_request", "subject": COMMITS, "item": item}
        return gharchive(kind, "created", user, number, time, **about)

    return make


@pytest.fixture
def comment(gharchive):
    return functools.partial(_comment, gharchive)


def _comment(gharchive, user, number, time, body):
    item = {"id": 100 + time, "body": body}
    subject = {"pull_request": {"url": "..."}}
    kind = "IssueCommentEvent"
    return gharchive(kind, "created", user, number, time, subject=subject, item=item)


def _files(old=OLD, new=NEW, path="a.py", **more):
    return [{"path": path, "base": "\n".join(old), "head": "\n".join(new), **more}]


def test_blocks_and_their_order(render, pull, review, note, comment, gharchive):
    rows = [
        pull("closed", "carol", 4, 50, subject={"merged": True}),
        comment("bob", 4, 20, "I like this, and so does @ann I think."),
        review("carol", 4, 30, "Fine!", state="approved"),
        review("dave", 4, 31, None, state="changes_requested"),
        note(
            "bob",
            4,
            40,
            "Maybe a better name for this one?",
            pull_request_review_id=9,
            in_reply_to_id=8,
            original_position=2,
        ),
        pull("opened", "ann", 4, 0),
        pull("labeled", "ann", 4, 1),
        gharchive("IssuesEvent", "closed", "carol", 4, 51, subject={"pull_request": {"url": ""}}),
    ]
    texts, drops = render(rows)
    assert texts["pull_request", "pull/4"] == (
        f"{OPENED}<repo_name>owner/name"
        "<pr_comment>username_1: I like this, and so does @username_0 I think.<pr_event_id>120"
        "<pr_review>username_2: Fine!\n<pr_event_id>130<pr_review_state>approved"
        "<pr_review>username_3\n<pr_event_id>131<pr_review_state>changes_requested"
        "<pr_review_comment><pr_event_id>140<pr_in_reply_to_review_id>9"
        "<pr_in_reply_to_comment_id>8<pr_file>a.py<pr_diff_hunk_comment_line>2"
        "<pr_diff_hunk>@@ -1 +1 @@<pr_comment>username_1: Maybe a better name for this one?"
        "<pr>username_2<pr_status>closed<pr_is_merged>True"
    )
    assert drops == {"6": "no text", "7": "no text"}


def test_files_and_diffs(render, pull, comment):
    rows = [
        pull("opened", "ann", 4, 0, files=_files()),
        comment("bob", 4, 10, "What about the line after it?"),
        pull("closed", "bob", 4, 20, subject={"head": {"sha": "h2"}}, files=_files(new=NEWER)),
    ]
    texts, _ = render(rows, whole_file_rate=1.0, min_diff_context=2, max_diff_context=2)
    base = "\n".join(OLD)
    context = [f" {line}" for line in OLD[28:33]]
    hunk = ["@@ -29,5 +29,5 @@", *context[:2], f"-{OLD[30]}", f"+{NEW[30]}", *context[3:]]
    later = ["@@ -29,5 +29,6 @@", *context[:2], f"-{OLD[30]}", f"+{NEW[30]}", "+added = True"]
    assert texts["pull_request", "pull/4"] == (
        f"{OPENED}<repo_name>owner/name<pr_base><pr_file>a.py<pr_base_code>{base}"
        "<pr_diff><pr_file>a.py<pr_diff_hunk>" + "\n".join(hunk) + "<pr_comment>username_1: "
        "What about the line after it?<pr_event_id>110<pr_diff><pr_file>a.py<pr_diff_hunk>"
        + "\n".join([*later, *context[3:]])
        + "<pr>username_1<pr_status>closed<pr_is_merged>False"
    )


def test_an_excerpt_of_the_base_has_the_changes_and_hunks_count_from_its_start(render, pull):
    skips = set()
    for number in range(1, 20):
        rows = [pull("opened", "ann", number, 0, files=_files())]
        texts, _ = render(rows, whole_file_rate=0.0)
        text = texts["pull_request", f"pull/{number}"]
        shown = text.partition("<pr_base_code>")[2].partition("<pr_diff>")[0].split("\n")
        skip = OLD.index(shown[0])
        assert shown == OLD[skip : skip + len(shown)] and OLD[30] in shown
        assert 0 <= 30 - skip < 32 and len(shown) - (31 - skip) < 32
        header = text.partition("<pr_diff_hunk>@@ -")[2]
        start, size = map(int, header.partition(" ")[0].split(","))
        lines = text.partition("@@\n")[2].split("\n")
        assert lines[0][1:] == OLD[skip + start - 1]
        assert start > 0 and size <= 19
        skips.add(skip)
    assert len(skips) > 5


def test_a_state_without_files_says_so(render, pull):
    texts, _ = render([pull("opened", "ann", 4, 0, files=[])])
    assert texts["pull_request", "pull/4"].endswith("<repo_name>owner/name<pr_diff>[DIFFS OMITTED]")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"title": "Short one"}, "short title"),
        ({"title": "Bump dependency to 2"}, "dependency or release"),
        ({"title": "Release version 2.0"}, "dependency or release"),
        ({"body": "Too short."}, "short description"),
        ({"body": "<!-- what a template says -->"}, "short description"),
        ({"body": None}, "short description"),
        ({"body": "Qwiet says that all is well."}, "advertisement"),
        ({"user": {"login": "renovate[bot]"}}, "opened by a bot"),
        ({}, None),
    ],
)
def test_openings_that_drop_it(render, pull, fields, reason):
    texts, drops = render([pull("opened", "ann", 4, 0, subject=fields)])
    assert drops == ({} if reason is None else {"0": reason})
    assert len(texts) == (reason is None)


def test_comments_that_are_left_out_or_cut(render, pull, comment, note):
    rows = [
        pull("opened", "ann", 4, 0, subject={"title": "x" * 600}),
        comment("bob", 4, 1, "short"),
        comment("bob", 4, 2, "See the report of Codecov here"),
        comment("bob", 4, 3, "y" * 1001),
        comment("bob", 4, 4, "\n".join(["word"] * 81)),
        note("bob", 4, 5, "A long hunk, but short enough", diff_hunk="z" * 10_000),
        note("bob", 4, 6, "A hunk that is longer than that", diff_hunk="z" * 10_001),
    ]
    texts, drops = render(rows)
    text = texts["pull_request", "pull/4"]
    assert text.startswith("<pr>Title: " + "x" * 500 + "\nusername_0")
    assert "username_1: [OMITTED]CodeCov<pr_event_id>102" in text
    assert "username_1: " + "y" * 1000 + "<pr_event_id>" in text
    assert "\nword\n[TRUNCATED]\nword\n" in text
    assert "<pr_diff_hunk>" + "z" * 10_000 + "<pr_comment>" in text
    assert "<pr_diff_hunk>[OMITTED]<pr_comment>" in text
    assert drops == {"1": "short comment"}


def test_only_approved_or_merged_ones_with_one_base_and_a_diff_are_kept(render, pull, review):
    opened = pull("opened", "ann", 4, 0, files=_files())
    merged = pull("closed", "bob", 4, 9, subject={"merged": True})
    approved = review("bob", 4, 5, "Well done, indeed!", state="approved")
    moved = pull("edited", "ann", 4, 7, subject={"base": {"sha": "b1"}})
    moved_again = pull("edited", "ann", 4, 8, subject={"base": {"sha": "b2"}})
    cases = [
        ([opened], "neither approved nor merged"),
        ([opened, approved], None),
        ([opened, merged], None),
        ([opened, approved, moved], "several bases"),
        ([opened, merged, moved], None),
        ([opened, merged, moved, moved_again], "several bases"),
        ([pull("opened", "ann", 4, 0), merged], "no diff"),
        ([pull("opened", "ann", 4, 0, files=_files(new=[])), merged], "no diff"),
    ]
    for rows, reason in cases:
        texts, drops = render(rows, require_approval=True, require_diff=True)
        assert set(drops.values()) == (set() if reason is None else {reason})
        assert len(texts) == (reason is None)


def test_discussions_of_bots_are_dropped(render, pull, comment):
    rows = [pull("opened", "ann", 4, 0), comment("travis-ci", 4, 1, "All of the tests passed.")]
    assert set(render(rows)[1].values()) == {"bots only"}
    texts, drops = render([*rows, comment("bob", 4, 2, "Then let us merge this one.")])
    assert texts and not drops


def test_comments_alone_are_dropped(render, comment):
    assert render([comment("bob", 4, 1, "A comment on something")])[1] == {"0": "comments only"}


def test_length_limits(render, pull):
    rows = [pull("opened", "ann", 4, 0)]
    size = len(render(rows)[0]["pull_request", "pull/4"])
    for low, high, reason in [
        (size, size, None),
        (size + 1, 10**6, "short pull request"),
        (0, size - 1, "long pull request"),
    ]:
        limits = {"min_pull_request_characters": low, "max_pull_request_characters": high}
        _, drops = render(rows, **limits)
        assert drops == ({} if reason is None else {"0": reason})


def test_fewer_are_kept_of_repositories_with_many(render, pull):
    for count, low, high in [(1000, 60, 150), (2000, 60, 150), (100, 50, 95)]:
        rows = [pull("opened", "ann", number, 0) for number in range(count)]
        texts, drops = render(rows, sample_pull_requests=True)
        assert low < len(texts) < high
        assert set(drops.values()) == {"pull request, not sampled"}


@pytest.mark.parametrize(
    ("path", "old", "shown"),
    [
        ("a.py", OLD, True),
        ("config.yaml", OLD, False),
        ("b.json", OLD, False),
        ("a.py", ["x" * 1001, *OLD], False),
        ("a.py", ["x" * 101], False),
        ("a.py", ["+-*/ " * 10] * 10, False),
        ("a.py", ["0xde, 0xad, 0xbe"] * 10, False),
        ("a.py", [""], False),
    ],
)
def test_files_that_are_not_shown(render, pull, path, old, shown):
    rows = [pull("opened", "ann", 4, 0, files=_files(old, [*old, "end = 1"], path))]
    texts, _ = render(rows, data_file_rate=0.0)
    assert ("<pr_base>" in texts["pull_request", "pull/4"]) == shown


def test_small_data_files_are_shown_unless_programs_write_them(render, pull):
    files = _files() + _files(["a: 1"], ["a: 2"], "config.yaml")
    files += _files(["a: 1"], ["a: 2"], "yarn/config.yaml")
    texts, _ = render([pull("opened", "ann", 4, 0, files=files)], data_file_rate=0.0)
    text = texts["pull_request", "pull/4"]
    assert "<pr_file>config.yaml<pr_base_code>a: 1" in text and "yarn" not in text
    texts, _ = render([pull("opened", "ann", 4, 0, files=files)], data_file_rate=1.0)
    assert "<pr_file>yarn/config.yaml" in texts["pull_request", "pull/4"]


def test_starcoder_has_none(render, pull):
    _, drops = render([pull("opened", "ann", 4, 0)], style="starcoder")
    assert drops == {"0": "no pull requests in this style"}
