"""Bytes of any encoding to UTF-8."""

import re

import charset_normalizer

# Legacy encodings in which source code is found, the most common first.
_LEGACY_ENCODINGS = (
    *("cp1252", "cp1251", "cp932", "gb18030", "cp949", "big5", "euc_jp", "koi8_r", "iso8859_2"),
    *("cp1250", "cp1253", "cp1254", "cp1255", "cp1256"),
)
# UTF-32's mark begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
# Detection takes milliseconds for so many bytes, whatever the size of the file.
_SAMPLE_BYTES = 4096


def to_utf8(content: bytes) -> tuple[bytes | None, str]:
    """Turns a file's content into UTF-8 without a byte order mark.

    A byte order mark decides; then UTF-8 is tried, and then charset-normalizer guesses among the
    legacy encodings of source code, from the lines that are not ASCII.

    Returns:
        The text in UTF-8, and the Python name of the encoding it was in; or None and the reason
        why it is no text: "binary" (it has a NUL) or "not text".
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _decoded(content, encoding)
    if b"\0" in content:
        return None, "binary"
    if content.isascii():
        return content, "utf-8"
    try:
        content.decode()
    except UnicodeDecodeError:
        return _decoded(content, _guess(_telling_part(content)))
    return content, "utf-8"


def _decoded(content: bytes, encoding: str | None) -> tuple[bytes | None, str]:
    if encoding is None:
        return None, "not text"
    try:
        text = content.decode(encoding).encode()
    except UnicodeError:
        return None, "not text"
    return (None, "binary") if b"\0" in text else (text, encoding)


def _guess(sample: bytes) -> str | None:
    matches = charset_normalizer.from_bytes(sample, cp_isolation=list(_LEGACY_ENCODINGS))
    best = matches.best()
    if best is None:
        return None
    # Single-byte encodings of the Latin alphabet differ in few letters, which a short sample may
    # not contain: the most common one is then as likely, and its text as orderly.
    common = _LEGACY_ENCODINGS[0]
    for match in matches:
        if common in match.could_be_from_charset and match.chaos <= best.chaos:
            return common
    return best.encoding


def _telling_part(content: bytes) -> bytes:
    lines, size = [], 0
    for line in content.split(b"\n"):
        if len(line) <= _SAMPLE_BYTES and not line.isascii():
            lines.append(line)
            size += len(line)
            if size >= _SAMPLE_BYTES:
                break
    if lines:
        return b"\n".join(lines)
    # Only very long lines. The part may end within a character: it is cut after an ASCII byte.
    start = _NOT_ASCII.search(content).start()
    part = content[start : start + _SAMPLE_BYTES]
    ascii_end = max((place for place, byte in enumerate(part) if byte < 0x80), default=-1)
    return part[: ascii_end + 1] if ascii_end > _SAMPLE_BYTES // 2 else part
