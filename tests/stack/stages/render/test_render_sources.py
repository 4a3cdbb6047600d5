"""Kaggle's notebooks, questions, intermediate representation and pages."""

import json
import time

import pytest

from starcoder_jax.stack.stages.render.pages import html_text


def _event(kind, path="a", **values):
    return {"kind": kind, "path": path, "content": json.dumps(values).encode()}


def test_kaggle(render):
    cells = [{"cell_type": "code", "source": "df = read()"}]
    known = _event(
        "kaggle_event",
        title="Irises",
        description="Measurements of flowers.",
        dataset="uciml/iris",
        file="iris.csv",
        info="RangeIndex: 150 entries",
        examples=["1,2", "3,4", "5,6", "7,8", "9,10"],
        notebook={"cells": cells},
    )
    unknown = _event("kaggle_event", "b", notebook=json.dumps({"cells": cells}))
    plain = _event("kaggle_event", "c", code="x = 1\n", dataset="uciml/iris")
    none = _event("kaggle_event", "d", title="Irises")
    texts, drops = render([known, unknown, plain, none])
    script = "<jupyter_script>df = read()\n"
    assert texts == {
        ("kaggle", "a"): "<jupyter_start><jupyter_text>Irises\nMeasurements of flowers.\n"
        "Kaggle dataset identifier: uciml/iris<jupyter_code>import pandas as pd\n\n"
        "df = pd.read_csv(iris.csv)\ndf.info()<jupyter_output>RangeIndex: 150 entries"
        f"<jupyter_text>Examples:\n1,2\n3,4\n5,6\n7,8{script}",
        ("kaggle", "b"): script,
        ("kaggle", "c"): "<jupyter_start><jupyter_text>Kaggle dataset identifier: uciml/iris"
        "<jupyter_script>x = 1\n",
    }
    assert drops == {"d": "no code"}
    assert render([known], style="starcoder")[1] == {"a": "no Kaggle notebooks in this style"}


def _question(number=1, **values):
    post = {"PostTypeId": "1", "Id": str(number), "Title": "How?", "Body": "<p>I do not know.</p>"}
    post |= {"OwnerUserId": "5", "AcceptedAnswerId": "12", **values}
    row = _event("question_event", f"questions/{number}", **post)
    return {**row, "repository": f"stackexchange/stackoverflow/{number}"}


def _answer(number, question=1, **values):
    post = {"PostTypeId": "2", "Id": str(number), "ParentId": str(question), **values}
    row = _event("question_event", f"questions/{question}/answers/{number}", **post)
    return {**row, "repository": f"stackexchange/stackoverflow/{question}"}


def test_questions(render):
    answers = [
        _answer(11, Body="<p>Like <code>this</code>.</p>", Score="-1", OwnerUserId="6"),
        _answer(12, Body="<pre><code>a\n  b</code></pre>", Score="7", OwnerDisplayName="bob"),
        _answer(13, Body="<p>bob is right</p>", OwnerUserId="5"),
        _answer(14, Body="<p>x</p>"),
        _answer(15, Body="<p>y, says user 5</p>"),
    ]
    texts, drops = render([_question(), *answers])
    text = texts["question", "questions/1"]
    start, *rest = text.split("<issue_comment>")
    assert start == "<issue_start>username_0: How?\nI do not know."
    users = {text.partition(": ")[2]: text.partition(": ")[0] for text in rest}
    bob = users["a\n  b\nUpvotes: 7 [selected answer]"]
    assert set(users) == {
        "Like this.\nUpvotes: -1",
        "a\n  b\nUpvotes: 7 [selected answer]",
        f"{bob} is right\nUpvotes: 0",
        "x\nUpvotes: 0",
        "y, says user 5\nUpvotes: 0",
    }
    assert users[f"{bob} is right\nUpvotes: 0"] == "username_0"
    assert sorted({"username_0", *users.values()}) == [f"username_{n}" for n in range(5)]
    assert drops == {}


def test_answers_stand_in_random_order(render):
    orders = set()
    for number in range(1, 20):
        answers = [_answer(100 * number + n, number, Body=str(n)) for n in range(3)]
        texts, _ = render([_question(number), *answers])
        again, _ = render([_question(number), *answers[::-1]])
        assert texts == again
        text = texts["question", f"questions/{number}"]
        orders.add(tuple(part.split(": ")[1][0] for part in text.split("<issue_comment>")[1:]))
    assert len(orders) == 6


def test_questions_that_are_dropped(render):
    rows = [_question(), *(_answer(n, Body="x") for n in (11, 12)), _answer(21, 2, Body="x")]
    texts, drops = render(rows, min_answers=3)
    assert texts == {}
    assert drops == {
        "questions/1": "few answers",
        "questions/1/answers/11": "few answers",
        "questions/1/answers/12": "few answers",
        "questions/2/answers/21": "answers without a question",
    }


def test_intermediate_representation(render):
    rows = [
        _event("ir_event", f"{n}.c", code=f"code {n}", ir=f"{level} {n}", opt_level=f"-{level}")
        for n in range(400)
        for level in ("O3", "Oz")
    ]
    texts, drops = render(rows)
    assert len(texts) == 400
    by_size = sum("Oz" in text for text in texts.values())
    forward = 0
    for (_, path), text in texts.items():
        code = f"code {path.removesuffix('.c')}"
        if text.startswith(code):
            forward += 1
            assert text.startswith(f"{code}<code_to_intermediate>O")
        else:
            assert text.endswith(f"<intermediate_to_code>{code}")
    assert 290 < by_size < 350 and 160 < forward < 240
    assert set(drops.values()) == {"other level"}


def test_intermediate_representation_that_is_dropped(render):
    rows = [
        _event("ir_event", "a", code="code", ir="ir"),
        _event("ir_event", "b", code="code"),
        _event("ir_event", "c", code="", ir="ir", opt_level="-Oz"),
        _event("ir_event", "d", code=["code"], ir="ir"),
    ]
    texts, drops = render(rows)
    assert list(texts) == [("ir", "a")]
    assert drops == dict.fromkeys("bcd", "no code with its representation")


def test_html_becomes_text():
    html = (
        "<!doctype html><html><head><title>T</title><style>p {}</style></head><body>"
        "<header>Site</header><nav><ul><li>Home</ul></nav><div>"
        "<h1>Title<a href='#t'>\u00b6</a></h1>\n"
        "<p>Some <b>bold</b>\n   text &amp; <a href='x'>links</a>.<br>New line</p>"
        "<ul><li>one<li>two</ul><pre>def f():\n\n    return <i>1</i>\n</pre>"
        "<table><tr><th>a<th>b<tr><td>1<td>2</table><script>alert('x')</script>"
        "<!-- hidden --></div><footer>Imprint</footer></body></html>"
    )
    assert html_text(html) == (
        "Title\n\nSome bold text & links.\nNew line\n\none\ntwo\n\ndef f():\n\n    return 1\n\n"
        "a b\n1 2"
    )


def test_only_the_main_content_is_taken():
    page = "<body><div>Menu</div><main><header><h1>T</h1></header><p>x</p></main>y</body>"
    assert html_text(page) == "T\n\nx"
    assert html_text("<p>a<article>b</article>c") == "b"
    assert html_text("<article>b</article><article>c</article>") == "b\n\nc"


def test_pages(render):
    rows = [
        {"kind": "page", "path": "a.html", "content": b"<p>text</p>"},
        {"kind": "page", "path": "b", "content": b"<?xml version='1.0'?>\n<HTML><p>text"},
        {"kind": "page", "path": "c.md", "content": b"# A <b>title</b>\n"},
        {"kind": "page", "path": "d.html", "content": b"<nav>Home</nav>"},
        {"kind": "page", "path": "e.txt", "content": b" \n"},
    ]
    texts, drops = render(rows)
    assert texts == {
        ("documentation", "a.html"): "text",
        ("documentation", "b"): "text",
        ("documentation", "c.md"): "# A <b>title</b>\n",
    }
    assert drops == {"d.html": "no text", "e.txt": "no text"}


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 200_000,
        "<" * 10**6,
        "<a href='" * 100_000,
        "&#" * 500_000,
        "<!--" * 250_000,
        "</" * 500_000,
        "<b><i>" * 100_000,
        "<table>" * 100_000,
        "<p>x" * 100_000,
        "<li>x" * 100_000,
        "<b>x<p>" * 50_000,
        "<pre>x\n" * 100_000,
        "<p " + "a " * 300_000,
        "<article>x" * 50_000,
        "x" * 10**6,
        " " * 10**6,
    ],
)
def test_time_of_html_is_bounded(html):
    start = time.monotonic()
    html_text(html)
    assert time.monotonic() - start < 5
