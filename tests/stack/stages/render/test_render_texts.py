import json
import pathlib
import time

import pytest

from starcoder_jax.stack.stages.render import texts

DATA = pathlib.Path(__file__).parents[5] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dependabot[bot]", True),
        ("Mergebot", True),
        ("my-CI", True),
        ("SparkQA", True),
        ("sparkqa", False),
        ("acme-Service-Account", True),
        ("bors-servo", True),
        ("a-test-b", True),
        ("bottle", False),
        ("ann", False),
        ("cite", False),
    ],
)
def test_bots(name, expected):
    assert texts.is_bot(name) == expected


def test_bot_rules_are_the_published_ones():
    path = DATA / "bigcode-dataset" / "issue-bot-lists.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    lists = json.loads(path.read_text())
    assert frozenset(lists["BOT_AUTHORS"]) == texts.BOT_AUTHORS
    assert set(lists["BOT_KEYWORDS"]) == set(texts.BOT_KEYWORDS)
    assert {suffix.lower() for suffix in lists["BOT_SUFFIXES"]} == set(texts.BOT_SUFFIXES)


def test_mail_is_left_out():
    mail = (
        "I agree.\n\nOn Mon, 1 Jan 2020, Ann <notifications@github.com> wrote:\n> Shall we?\n"
        "> Or not?\n-- \nReply to this email directly or view it on GitHub:\n"
    )
    assert texts.without_mail(mail) == "I agree."
    mail = "Yes.\n________________________________\nFrom: Ann\nSent: Monday\nTo: me\nShall we?\n"
    assert texts.without_mail(mail + "Reply to this email directly, view it on GitHub.") == "Yes."
    assert texts.without_mail("1/2/2020 10:00 AM Ann wrote:\n> Shall we?\nNo.") == "No."
    assert texts.without_mail("> Shall we?\nYes.\n> When?\nNow.") == "Yes.\nNow."
    assert texts.without_mail("Fix.\n\nSigned-off-by: Ann <ann@x.org>\n") == "Fix."
    ordinary = "From: the point of view of the parser\n\n    if a > b:\n        pass"
    assert texts.without_mail(ordinary) == ordinary


def test_comments_of_templates_are_left_out():
    assert texts.without_comments("a<!-- b -->c<!--\nd\n-->e") == "ace"
    assert texts.without_comments("a<!-- never closed") == "a never closed"
    assert texts.without_comments("a --> b") == "a --> b"


def test_names_are_replaced_as_a_whole():
    names = texts.Pseudonyms(["ann", "ann-b", "x_y", "ann", "ghost"])
    assert names.users == ["ann", "ann-b", "x_y", "ghost"]
    text = "@ann ann's ann-b, ann_c (x_y) annex ann-b-c Ann: https://github.com/ann/ann"
    assert names.replaced(text) == (
        "@username_0 username_0's username_1, username_0_c (username_2) annex ann-b-c Ann: "
        "https://github.com/username_0/username_0"
    )


def test_names_of_several_words_are_replaced():
    names = texts.Pseudonyms(["Ann B", "Ann B. Cee", "?!"])
    assert names.replaced("Ann B. Cee, Ann B and Ann?!") == "username_1, username_0 and Ann?!"


@pytest.mark.parametrize(
    "text",
    [
        "From: " * 200_000,
        "On notifications@github.com wrote: " * 30_000,
        "Signed-off-by: <" * 60_000,
        "Signed-off-by: " + "<" * 10**6,
        "1/1/1 10:00 AM" * 70_000,
        "_" * 10**6,
        ">" * 10**6,
        "a-" * 500_000,
        "a" + "-" * 10**6,
        "<!--" * 250_000,
        "\n" * 10**6,
    ],
)
def test_time_is_linear(text):
    start = time.monotonic()
    cleaned = texts.without_comments(texts.without_mail(text))
    texts.Pseudonyms(["a", "b"]).replaced(texts.shortened(cleaned, 80, "..."))
    texts.Pseudonyms(["a", "b"]).replaced(text)
    assert time.monotonic() - start < 5
