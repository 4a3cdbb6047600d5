import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.filter.comments import comment_fraction
from starcoder_jax.stack.stages.filter.content import encoded_data, visible_characters


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (0, 0)),
        (b"x = 1\n" * 100, (0, 0)),
        # Base64: 64 characters at least, lines included.
        (b"(" + b"A" * 63 + b")", (0, 0)),
        (b"(" + b"A" * 64 + b")", (64, 64)),
        (b"(" + b"A1+/" * 16 + b"=\n" + b"B" * 40 + b")", (106, 106)),
        # Eight hexadecimal bytes at least.
        (b"(0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07)", (0, 0)),
        (b"{0x01,0x02,0x03,0x04,0x05,0x06,0x07,0x08}", (39, 39)),
        (b"de ad be ef de ad be ef", (23, 23)),
        # As published, the first backslash needs a letter before it.
        (rb"\x01\x02\x03\x04\x05\x06\x07\x08", (0, 0)),
        (rb"b\x01\x02\x03\x04\x05\x06\x07\x08", (32, 32)),
        # Eight escaped code points at least.
        (rb"'\u0041\u0042\u0043\u0044\u0045\u0046\u0047'", (0, 0)),
        (rb"'\u0041\u0042\u0043\u0044\u0045\u0046\u0047\u0048'", (48, 48)),
        # All pieces of the pattern that has most.
        (b"(" + b"A" * 64 + b") (" + b"B" * 70 + b") de ad be ef de ad be ef", (70, 134)),
    ],
)
def test_encoded_data(content, expected):
    assert encoded_data(content) == expected


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", 0),
        ("plain", 5),
        ("<p>two  words\n</p>", 9),
        ("<p class='x'>a</p><p>b</p>", 3),
        ("a<!-- b <p> -->c", 3),
        ("a<script>if (x < y) { f('</p>') }</script>c", 3),
        ("a<STYLE type=x>p {}</Style >c", 3),
        ("a<template><p>b</p></template>c", 3),
        ("a<!-- never closed <p>b</p>", 1),
        ("a<script>never closed", 1),
        ("a &lt; b &amp;&#65;&#x41;", 9),
        ("&nosemicolon x", 14),
        ("é<b>ü</b>", 3),
        ("&#" + "9" * 5000 + ";", 1),
    ],
)
def test_visible_characters(page, expected):
    assert visible_characters(page.encode()) == expected


@pytest.mark.parametrize(
    ("language", "content", "expected"),
    [
        ("C", "/* ab */ int a; // c\n", 12),
        ("C", 'char *a = "// no /* no";\n', 0),
        ("C", 'char *a = "\\"// no";\n', 0),
        ("C", "int a; /* never closed", 15),
        ("Go", "a := `// no`\n", 0),
        ("JavaScript", "a = '/* no */'; // yes", 6),
        ("PHP", "# a\n// b\n/* c */", 14),
        ("CSS", "/* a */ b { c: url(//d) }", 7),
        ("Python", "# abc\nx = '# no'\n", 5),
        ("Python", 'def f():\n    """abc"""\n    x = """# no"""\n', 9),
        ("Python", "r'''never # closed", 17),
        ("Shell", "a=b#c # d\n", 3),
        ("SQL", "SELECT '--' -- a\n", 4),
        ("Lua", "--[[ a\nb ]] c = '--' -- d", 15),
        ("Haskell", "{- a -} b = 'c' -- d", 11),
        ("TeX", "100\\% % a", 3),
        ("Scheme", '(a "; no") ; b', 3),
    ],
)
def test_comments(language, content, expected):
    assert comment_fraction(language, content.encode()) == pytest.approx(expected / len(content))


@pytest.mark.parametrize(("language", "content"), [("JSON", b"{}"), (None, b"x"), ("C", b"")])
def test_comments_that_are_not_known(language, content):
    assert comment_fraction(language, content) is None


UNITS = (
    *('"', "'", "`", "/*", "//", "#", '"""', "'''", "\\", '\\"', "<!--", "<script", "<", "&", "{-"),
    *("--[[", "%", ";", "\\u00", "0x0", "00 ", "A", " ", "\n", " \n", '"/*', '"\n', "<a ", "&#9"),
)


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_content(unit):
    content = (unit * 100_000)[:100_000].encode()
    start = time.monotonic()
    encoded_data(content)
    visible_characters(content)
    for language in (
        "C",
        "PHP",
        "CSS",
        "Shell",
        "Python",
        "SQL",
        "Lua",
        "Haskell",
        "TeX",
        "Scheme",
    ):
        assert 0 <= comment_fraction(language, content) <= 1
    assert time.monotonic() - start < 8


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*UNITS, "a", "</script>", "-->", "*/", "]]", "-}", "é"]), max_size=30
    ),
    st.sampled_from(["C", "Python", "Lua", "Haskell", "Scheme", "TeX"]),
)
def test_any_content_has_measures(units, language):
    content = "".join(units).encode()
    longest, total = encoded_data(content)
    assert longest <= total <= len(content)
    assert 0 <= visible_characters(content) <= len(content)
    assert 0 <= (comment_fraction(language, content) or 0) <= 1
