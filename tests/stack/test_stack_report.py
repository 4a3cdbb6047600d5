import html.parser
import json

import pytest

from starcoder_jax.stack.report import write_report

EVIL = "<script>alert('x')</script>&amp;\"</pre>\u202e\x00"


class Page(html.parser.HTMLParser):
    """Checks that the tags balance; keeps them, their attributes and the text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], set(), [], []
        self.feed(source)
        self.close()
        assert not self.open
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def amount(rows, size):
    return {"rows": rows, "bytes": size}


def stage(name, **changes):
    between = {"in": amount(1000, 10**6), "out": amount(800, 9 * 10**5)}
    between["dropped"] = amount(200, 10**5)
    by = {axis: {"": between} for axis in ("kind", "language", "license_type")}
    start = {"name": name, **between, "made": 0, "joined": 0, "parts": None, "changed_bytes": 0}
    start |= {"by": by, "reasons": {}, "counts": {}, "samples": {}, "withheld": 0}
    return start | changes


def write(folder, stages, *, licenses=None, configuration="a = 1", title="Corpus"):
    report = {"format_version": 1, "stages": stages, "licenses": licenses or {}}
    report["configuration"] = configuration
    write_report(report, folder, title)
    assert json.loads((folder / "report.json").read_text()) == report
    source = (folder / "report.html").read_text(encoding="utf-8")
    return source, Page(source)


def test_a_whole_report(tmp_path):
    languages = {f"L{n}": amount(n, n) for n in range(1, 9)}
    reasons = {
        "long lines": {"dropped": amount(36, 10), "by": {"": amount(36, 10)}},
        "few letters": {"dropped": amount(164, 99_990), "by": languages},
    }
    sample = {"kind": "file", "repository": "a/b", "path": "c.py", "swhid": None, "bytes": 7}
    sample |= {"language": "C", "license_type": None, "detail": "the detail", "sample": "x = 1\n"}
    stages = [
        stage("filter", reasons=reasons, samples={"long lines": [sample]}, withheld=3),
        stage("redact", counts={"email": 1234}, reasons={}, changed_bytes=-17),
        stage("format", **{"in": amount(800, 9 * 10**5), "out": amount(50, 950_000)}, parts=800),
    ]
    licenses = {"MIT": amount(5, 50), "Apache-2.0": amount(45, 10)}
    source, page = write(tmp_path, stages, licenses=licenses)
    text = page.text
    for words in (
        "1,234",
        "-17",
        ">800<",
        "95.0%",
        "the detail",
        "x = 1",
        "3 samples are not shown",
    ):
        assert words in text or words in source
    assert text.index("few letters") < text.index("long lines")
    assert text.index("Apache-2.0") < text.index("MIT")
    assert "L8 8, L7 7, L6 6, L5 5, L4 4, 3 more" in text
    assert {"svg", "details", "table"} <= page.tags
    assert source.count('class="kept" x=') == source.count('class="gone" x=') == 3
    before = source
    assert write(tmp_path, stages, licenses=licenses)[0] == before


def test_nothing_of_the_input_is_markup_and_nothing_is_fetched(tmp_path):
    sample = {"kind": EVIL, "repository": EVIL, "path": EVIL, "swhid": EVIL, "bytes": 7}
    sample |= {"language": EVIL, "license_type": EVIL, "detail": EVIL, "sample": EVIL}
    by = {axis: {EVIL: stage("x")} for axis in ("kind", "language", "license_type")}
    reasons = {EVIL: {"dropped": amount(36, 10), "by": {EVIL: amount(36, 10)}}}
    evil = stage(EVIL, by=by, reasons=reasons, counts={EVIL: 1}, samples={EVIL: [sample]})
    source, page = write(
        tmp_path, [evil], licenses={EVIL: amount(1, 1)}, configuration=EVIL, title=EVIL
    )
    assert "script" not in page.tags
    assert page.text.count("<script>alert('x')</script>&amp;\"</pre>\\u202e\\u0000") > 15
    assert not any(name in ("src", "href") or name.startswith("on") for name, _ in page.attributes)
    assert "\x00" not in source and "\u202e" not in source and "url(" not in source


@pytest.mark.parametrize("size", [0, 1])
def test_empty_stages(tmp_path, size):
    nothing = amount(size, size)
    _, page = write(tmp_path, [stage("collect", **{"in": nothing, "out": nothing})])
    assert "No license is known" in page.text and "Nothing was dropped" in page.text


def test_names_have_an_end(tmp_path):
    reasons = {"r" * 10**6: {"dropped": amount(1, 1), "by": {}}}
    source, _ = write(tmp_path, [stage("filter", reasons=reasons)])
    assert len(source) < 30_000
