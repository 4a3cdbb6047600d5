import functools

import pytest

BODY = "The parser fails for files that have no content at all."


@pytest.fixture
def issue(gharchive):
    return functools.partial(gharchive, "IssuesEvent")


@pytest.fixture
def comment(gharchive):
    def make(user, number, time, body, id=None, action="created", **more):
        item = {"id": time if id is None else id, "body": body}
        return gharchive("IssueCommentEvent", action, user, number, time, item=item, **more)

    return make


@pytest.mark.parametrize("style", ["starcoder", "starcoder2"])
def test_posts_and_closing(render, issue, comment, style):
    rows = [
        comment("bob", 7, 20, "I see it, too.\r\n@ann, which version?"),
        issue("opened", "ann", 7, 0),
        comment("ann", 7, 30, "bob_1 and bob: the newest, says bobby. Joann agrees."),
        issue("closed", "bob", 7, 40),
        comment("carol", 7, 50, "Thanks!"),
    ]
    texts, drops = render(rows, style=style)
    assert texts == {
        ("issue", "issues/7"): "<issue_start>Title: Parsing of empty files fails\n"
        f"username_0: {BODY}"
        "<issue_comment>username_1: I see it, too.\n@username_0, which version?"
        "<issue_comment>username_0: username_1_1 and username_1: the newest, says bobby. "
        "Joann agrees."
        "<issue_closed><issue_comment>username_2: Thanks!"
    }
    assert drops == {}


def test_order_of_rows_does_not_matter(render, issue, comment):
    rows = [
        issue("opened", "ann", 1, 0),
        *(comment(f"user{n}", 1, n, f"Comment {n}") for n in range(1, 6)),
        *(comment(f"user{n}", 2, n, f"Other {n}") for n in range(1, 6)),
    ]
    forward, backward = render(rows), render(rows[::-1])
    assert forward[0] == backward[0]
    assert list(forward[0]) == [("issue", "issues/1"), ("issue", "issues/2")]


def test_missing_opening_is_made_up_from_a_later_event(render, comment):
    texts, drops = render([comment("bob", 3, 5, "Me too.")])
    assert texts["issue", "issues/3"] == (
        f"<issue_start>Title: Parsing of empty files fails\nusername_0: {BODY}"
        "<issue_comment>username_1: Me too."
    )
    assert drops == {}


def test_edited_and_deleted_comments(render, issue, comment):
    rows = [
        issue("opened", "ann", 1, 0),
        comment("bob", 1, 1, "Frist", id=5),
        comment("carol", 1, 2, "Never mind", id=6),
        comment("ann", 1, 3, "Ok"),
        comment("bob", 1, 4, "First", id=5, action="edited"),
        comment("carol", 1, 5, "Never mind", id=6, action="deleted"),
        issue("edited", "ann", 1, 6, subject={"title": "A better title", "body": "Better."}),
        issue("labeled", "ann", 1, 7),
    ]
    texts, drops = render(rows)
    assert texts["issue", "issues/1"] == (
        "<issue_start>Title: A better title\nusername_0: Better."
        "<issue_comment>username_1: First<issue_comment>username_0: Ok"
    )
    assert drops == {"1": "edited", "2": "deleted", "5": "deleted", "7": "no text"}


def test_bots_and_calls_of_bots_go(render, issue, comment):
    rows = [
        issue("opened", "ann", 1, 0),
        comment("stale[bot]", 1, 1, "This is stale."),
        comment("bob", 1, 2, "/retest"),
        comment("k8s-ci-robot", 1, 3, "Testing ..."),
        comment("bob", 1, 4, "mergebot, please"),
        comment("mergebot", 1, 5, "Merged."),
        comment("carol", 1, 6, "All is well."),
        comment("SparkQA", 1, 7, "Passed."),
        issue("closed", "close-bot", 1, 8),
    ]
    texts, drops = render(rows)
    assert texts["issue", "issues/1"] == (
        f"<issue_start>Title: Parsing of empty files fails\nusername_0: {BODY}"
        "<issue_comment>username_1: All is well."
    )
    assert drops == {
        "1": "bot",
        "2": "call of a bot",
        "3": "bot",
        "4": "call of a bot",
        "5": "bot",
        "7": "bot",
        "8": "bot",
    }


def test_the_opening_is_no_call_of_a_bot(render, issue, comment):
    for body in ("/help is needed", "Why does mergebot fail?"):
        rows = [
            issue("opened", "ann", 1, 0, subject={"body": body}),
            comment("mergebot", 1, 1, "Thanks for the report."),
        ]
        texts, drops = render(rows)
        assert texts["issue", "issues/1"].endswith(f"\nusername_0: {body}")
        assert drops == {"1": "bot"}


def test_an_issue_of_a_bot_begins_with_the_first_human(render, issue, comment):
    rows = [
        issue("opened", "lint-ci", 1, 0, subject={"user": {"login": "lint-ci"}}),
        comment("bob", 1, 1, "Done."),
    ]
    texts, _ = render(rows)
    assert texts["issue", "issues/1"] == (
        "<issue_start>Title: Parsing of empty files fails\nusername_0: Done."
    )
    texts, drops = render(rows[:1])
    assert texts == {} and drops == {"0": "bots only"}


@pytest.mark.parametrize(
    ("characters", "comments", "users", "reason"),
    [
        (199, 0, 2, "short issue"),
        (200, 1, 2, None),
        (7000, 0, 1, None),
        (7001, 0, 1, "monologue"),
        (7001, 1, 2, None),
        (200, 9, 1, None),
        (200, 10, 1, "monologue"),
        (200, 10, 2, None),
    ],
)
def test_length_and_users(render, issue, comment, characters, comments, users, reason):
    body = "x" * (characters - comments)
    rows = [issue("opened", "ann", 1, 0, subject={"body": body})]
    names = ["ann", "bob"][:users]
    rows += [comment(names[n % users - 1], 1, n + 1, "y") for n in range(comments)]
    texts, drops = render(rows, lenient=False)
    assert bool(texts) == (reason is None)
    assert set(drops.values()) == (set() if reason is None else {reason})


@pytest.mark.parametrize(("lines", "cut"), [(80, False), (81, True)])
def test_long_comments_are_cut_in_the_middle(render, issue, comment, lines, cut):
    body = "\n".join(f"line {n}" for n in range(lines))
    texts, _ = render([issue("opened", "ann", 1, 0), comment("bob", 1, 1, body)])
    shown = texts["issue", "issues/1"].partition("<issue_comment>username_1: ")[2].split("\n")
    if cut:
        assert shown[:60] + shown[61:] == [f"line {n}" for n in [*range(60), *range(61, 81)]]
        assert shown[60] == "[Truncated]"
    else:
        assert "\n".join(shown) == body


def test_an_account_that_is_gone_is_called_ghost(render, issue):
    texts, _ = render([issue("opened", "ann", 1, 0, subject={"user": None, "body": "ghost"})])
    assert texts["issue", "issues/1"].endswith("\nusername_0: username_0")


def test_what_is_no_event_of_an_issue_is_dropped(render):
    rows = [
        {"kind": "event", "content": content}
        for content in (b"[]", b"{", b'{"issue": {"title": "x"}}', b'{"ref": "x"}', b"[" * 10**5)
    ]
    texts, drops = render(rows)
    assert texts == {}
    other = "not an event of an issue or pull request"
    bad = "not a JSON object"
    assert drops == {"0": bad, "1": bad, "2": other, "3": other, "4": bad}
