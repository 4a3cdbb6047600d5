import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.identify.text import to_utf8

LINES = {
    "cp1252": "# Größe der Datei, Überprüfung, façade, naïve\n",
    "cp1251": "// Это комментарий на русском языке для проверки кодировки\n",
    "koi8_r": "// Это комментарий на русском языке для проверки кодировки\n",
    "cp932": "// これは日本語のコメントです。文字コードの判定を行います\n",
    "euc_jp": "// これは日本語のコメントです。文字コードの判定を行います\n",
    "gb18030": "// 这是一个中文注释，用于检测编码的正确性\n",
    "big5": "// 這是一個繁體中文的註釋，用於檢測編碼\n",
    "cp949": "// 이것은 한국어 주석입니다 인코딩 감지를 위한\n",
}


@pytest.mark.parametrize("encoding", LINES)
def test_legacy_encodings_are_told(encoding):
    text = "int main() { return 0; }\n" * 300 + LINES[encoding] * 4
    assert to_utf8(text.encode(encoding)) == (text.encode(), encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "gb18030"])
def test_a_long_line_is_told_by_its_beginning(encoding):
    text = "x = 1; " * 2000 + LINES[encoding].strip() * 400
    assert to_utf8(text.encode(encoding)) == (text.encode(), encoding)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_decide_and_go(encoding):
    assert to_utf8("a = 'é'\n".encode(encoding)) == ("a = 'é'\n".encode(), encoding)


def test_big_endian_marks():
    assert to_utf8(b"\xfe\xff\x00a") == (b"a", "utf-16")
    assert to_utf8(b"\x00\x00\xfe\xff\x00\x00\x00a") == (b"a", "utf-32")


@pytest.mark.parametrize("content", [b"", b"plain\r\n", "é ∀ 𝕏\n".encode()])
def test_utf8_stays_the_very_bytes(content):
    text, encoding = to_utf8(content)
    assert text is content and encoding == "utf-8"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\0b", "binary"),
        ("a\0é".encode("utf-16"), "binary"),
        (b"\xff\xfea", "not text"),
        (bytes(range(128, 256)) * 20, "not text"),
        (b"\xef\xbb\xbf\xff", "not text"),
    ],
)
def test_what_is_no_text(content, reason):
    assert to_utf8(content) == (None, reason)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_become_text_or_a_reason(content):
    text, told = to_utf8(content)
    if text is None:
        assert told in ("binary", "not text")
    else:
        text.decode()
        assert b"\0" not in text
        assert content.decode(told) == text.decode()


@pytest.mark.parametrize(
    "unit", [b"\xe9", b"\xe9\n", b"a\xff", b"\x8f\x40", b"a" * 5000 + b"\xe9\n"]
)
def test_detection_takes_no_longer_for_large_files(unit):
    start = time.monotonic()
    to_utf8(unit * (2_000_000 // len(unit)))
    assert time.monotonic() - start < 5
