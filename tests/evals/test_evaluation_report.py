import html.parser

import pytest

from starcoder_jax.evals.problems import Problem
from starcoder_jax.evals.report import write_report
from starcoder_jax.evals.samples import Sample
from starcoder_jax.evals.sandbox import Outcome
from starcoder_jax.evals.scoring import Scored

EVIL = "<script>alert('x')</script></pre>&amp;\"\udcff\x00"


class Page(html.parser.HTMLParser):
    """Checks that tags balance; keeps tags, texts of headings and of <pre>, and what is fetched."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.headings, self.pres, self.words = [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "onload")]
        if tag != "meta":
            self.open.append(tag)
        if tag == "pre":
            self.pres.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] == "pre":
            self.pres[-1] += data
        if self.open and self.open[-1] in ("h3", "h4"):
            self.headings.append(data)


def item(index, reason, text="code\n", **about):
    problem = Problem(
        f"t/{index}", f"prompt {index}", "", "python", suffix=about.pop("suffix", None)
    )
    outcome = Outcome(reason == "passed", reason, f"detail {index}", 0.1)
    return Scored(problem, Sample(problem.task_id, 0, text, about=about), outcome)


def page(tmp_path, scored, **fields):
    record = {
        "task": "humaneval",
        "metrics": {"pass@1": 0.25, "pass@1_stderr": 0.125},
        "source": {"checkpoint": "tiny"},
        "date": "2030-01-02",
        "samples": ["not shown"],
    }
    write_report(tmp_path / "r.html", record | fields, scored)
    return Page((tmp_path / "r.html").read_text(encoding="utf-8"))


def test_failures_are_shown_by_kind_the_most_frequent_first(tmp_path):
    scored = [
        item(0, "passed"),
        item(1, "timeout"),
        item(2, "failed", suffix="the rest", first_answer="described"),
        item(3, "failed", text="\n  second"),
    ]
    found = page(tmp_path, scored, skipped={"rust": "rustc is not installed"})
    kinds = [heading for heading in found.headings if "(" in heading]
    assert kinds == ["failed (2)", "timeout (1)"]
    shown = [pre.removeprefix("\n") for pre in found.pres]  # as a browser drops it
    for text in ("prompt 2", "the rest", "described", "detail 2", "\n  second", "prompt 1"):
        assert text in shown
    text = "".join(found.words)
    assert "prompt 0" not in text and "not shown" not in text
    assert "0.2500" in text and "± 0.1250" in text
    assert "rust was skipped: rustc is not installed" in text
    assert "50.0%" in text


def test_nothing_in_it_is_markup_or_fetched(tmp_path):
    evil = Problem(EVIL, EVIL, EVIL, "python", suffix=EVIL)
    outcome = Outcome(False, "failed", EVIL, 0.0)
    scored = [Scored(evil, Sample(EVIL, 0, EVIL, about={"first_answer": EVIL}), outcome)]
    found = page(tmp_path, scored, source={"samples": EVIL}, skipped={EVIL: EVIL})
    assert "script" not in found.tags and found.links == []
    assert sum("<script>alert('x')</script></pre>&amp;" in pre for pre in found.pres) >= 5


def test_many_failures_are_counted_and_not_all_shown(tmp_path):
    found = page(tmp_path, [item(number, "failed") for number in range(60)])
    assert found.tags.count("details") == 50
    assert "and 10 more, named in the result file" in "".join(found.words)


@pytest.mark.parametrize("scored", [[], [item(0, "passed")]])
def test_without_failures_there_is_no_such_section(tmp_path, scored):
    found = page(tmp_path, scored, source={"solutions": "canonical"})
    assert "Failures by kind" not in "".join(found.words)
    assert "humaneval: canonical code" in "".join(found.words)
