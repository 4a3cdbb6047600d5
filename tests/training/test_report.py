import html.parser
import math
import os
import re

import pytest

from starcoder_jax.training.goodput import Cause, Journal
from starcoder_jax.training.metrics import MetricsWriter
from starcoder_jax.training.report import HeldOutFile, InfillSample, write_report
from starcoder_jax.training.report_charts import (
    MAX_POINTS,
    downsample,
    line_chart,
    round_ticks,
    stacked_bar,
)

EVIL = "<script>alert('x')</script>&amp;\"\udcff\x00"


class Page(html.parser.HTMLParser):
    """Checks that the tags balance; keeps the tags, the text and what is fetched."""

    VOID = frozenset({"meta", "path", "rect", "circle", "polyline"})

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open
        self.text = "".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "onload")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def write(workdir, records=(), *, sample=None, heldout=(), config="a = 1\n", command=None):
    writer = MetricsWriter(workdir, 0)
    for step, metrics in records:
        writer.write(step, metrics)
    writer.close()
    write_report(
        workdir,
        title="tiny <3",
        config_text=config,
        sample=sample,
        heldout=heldout,
        next_command=command,
    )
    source = (workdir / "report.html").read_text(encoding="utf-8")
    return source, Page(source)


def polylines(source):
    return [points.split() for points in re.findall(r'<polyline points="([^"]*)"', source)]


def test_a_whole_report(tmp_path):
    records = [
        (
            step,
            {
                "loss": 10 / step,
                "grad_norm": 1.5,
                "learning_rate": 1e-4,
                "tokens": step * 4096,
                "tokens_per_second": 12_000.0,
                "batch_fingerprint": "00",
            }
            | ({"eval/loss": 3.0, "eval/<b>": 1.0, "eval/note": "text"} if step % 10 == 0 else {}),
        )
        for step in range(1, 41)
    ]
    sample = InfillSample("a/b.py", "\ndef f(x):\n", "    return x\n", "\n\nf(1)\n", "    pass\n")
    source, page = write(tmp_path, records, sample=sample, command="python -m starcoder_jax.train")
    assert [len(points) for points in polylines(source)] == [40, 40, 40, 40, 4, 4]
    for words in ("tiny <3", "eval/loss", "eval/<b>", "163.8k", "step 40: 0.25", "a = 1"):
        assert words in page.text
    assert "eval/note" not in page.text
    assert "<mark>    pass\n</mark>\n\nf(1)" in source
    assert "What was there:" in page.text
    assert "python -m starcoder_jax.train" in page.text
    # The text's own first newline is not swallowed by <pre>.
    assert '<pre class="code">\n\ndef f(x)' in source
    assert not page.links
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "http" not in source and "@import" not in source and "url(" not in source


def test_everything_from_data_or_model_is_escaped(tmp_path):
    source, page = write(
        tmp_path,
        [(1, {"loss": 1.0, "eval/<script>": 1.0})],
        sample=InfillSample(EVIL, EVIL, EVIL + "2", EVIL, EVIL),
        heldout=[HeldOutFile(EVIL, 10, 8.0, 16.0)],
        config=EVIL,
        command=EVIL,
    )
    assert "script" not in page.tags
    # The five texts of the sample, the held-out path, the configuration and the command.
    assert page.text.count("<script>alert('x')</script>&amp;\"?") == 8
    assert page.text.count("eval/<script>") == 1
    assert "<script" not in source


def test_the_heldout_table_is_weighted_by_bytes_and_sorted_by_gain(tmp_path):
    heldout = [
        HeldOutFile("worse.py", 1_000, 3_300.0, 3_000.0),
        HeldOutFile("broken.py", 1_000, math.nan, 3_000.0),
        HeldOutFile("best.py", 3_000, 3_000.0, 6_000.0),
    ]
    source, page = write(tmp_path, heldout=heldout)
    order = [source.index(file) for file in ("best.py", "worse.py", "broken.py", "3 files")]
    assert order == sorted(order)
    assert "not finite: the model has diverged" in page.text

    source, page = write(tmp_path, heldout=[heldout[0], heldout[2]])
    # (3300 + 3000) / 4000 and (3000 + 6000) / 4000, not the means of 3.3, 1 and of 3, 2.
    assert "<td>2 files</td><td>4,000</td><td>1.575</td><td>2.250</td>" in source
    assert "30% fewer than xz -9e (2.250)" in page.text
    assert ">+50.0%<" in source and ">-10.0%<" in source

    assert "10% more than xz -9e (3.000)" in write(tmp_path, heldout=[heldout[0]])[1].text
    even = HeldOutFile("even.py", 8, 8.0, 8.0)
    assert "level with xz -9e (1.000)" in write(tmp_path, heldout=[even])[1].text


def test_an_empty_heldout_file_is_refused():
    with pytest.raises(ValueError, match=r"^held-out file a\.py is empty; leave it out"):
        HeldOutFile("a.py", 0, 0.0, 256.0)


def test_before_the_first_step(tmp_path):
    source, page = write(tmp_path)
    assert "No step has been logged yet." in page.text
    assert "<svg" not in source
    for heading in ("Curves", "Held-out", "Infilling", "Try next"):
        assert heading not in page.text


def test_where_the_time_went_is_told_once_a_step_is_done(tmp_path):
    journal = Journal(tmp_path, 0, began=0.0)  # in 1970: all that is not told of is "stopped"
    assert "Where the time went" not in write(tmp_path)[1].text
    journal.write(10, {Cause.TRAINING: 7_200.0, Cause.COMPILATION: 90.0})
    _, page = write(tmp_path, [(10, {"loss": 1.0, "mfu": 0.431})])
    assert "Where the time went" in page.text
    for words in ("training 0.0% (2 h 0 min)", "compilation 0.0% (2 min)", "stopped 100.0%"):
        assert words in page.text
    assert "Goodput0.0%of the time trained the model" in page.text
    assert "MFU43.1%of peak bfloat16 FLOP/s" in page.text


def test_one_point_is_a_dot(tmp_path):
    source, page = write(tmp_path, [(1, {"loss": 0.0})])
    assert not polylines(source)
    assert page.tags.count("circle") == 2  # the point, and what the pointer calls up
    assert "NaN" not in page.text


def test_the_middle_as_it_was_nothing_and_long_contexts(tmp_path):
    text = "".join(f"line {number}\n" for number in range(500))
    _, page = write(tmp_path, sample=InfillSample("a.py", text, "m", text, "m"))
    assert "to the letter" in page.text and "What was there" not in page.text
    assert "489 lines above" in page.text and "489 lines below" in page.text
    assert page.text.count("line 499\n") == 1 and "line 250\n" not in page.text
    _, page = write(tmp_path, sample=InfillSample("a.py", "", "m", "", ""))
    assert "The model wrote nothing. What was there:" in page.text


def test_an_interrupted_write_leaves_the_old_report(tmp_path, monkeypatch):
    before, _ = write(tmp_path, [(1, {"loss": 1.0})])

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(
            tmp_path, title="new", config_text="", sample=None, heldout=[], next_command=None
        )
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "report.html", "tensorboard"]


def test_a_long_curve_keeps_its_ends_and_spikes():
    points = [(step, 100.0 if step == 4_321 else step % 7) for step in range(1, 10_001)]
    points[7_000] = (7_001, math.nan)
    drawn = downsample(points, MAX_POINTS)
    assert (drawn[0], drawn[-1]) == (points[0], points[-1])
    assert drawn == sorted(drawn) and len(drawn) == len(set(drawn))
    assert (4_321, 100.0) in drawn
    assert 0.9 * MAX_POINTS <= len(drawn) <= MAX_POINTS + 1
    chart = line_chart("loss", points, 10_000)
    assert "1 not finite, the first at step 7,001" in chart
    assert [len(run) > 1 for run in polylines(chart)] == [True, True]
    assert sum(map(len, polylines(chart))) == len(drawn) - 1
    assert chart.count("<title>") == len(drawn)


def test_a_short_curve_is_drawn_whole_and_breaks_where_it_is_not_finite():
    values = [1.0, 2.0, math.nan, 3.0, math.inf, math.nan, 4.0, 5.0, 6.0]
    chart = line_chart("loss", list(enumerate(values)), 8)
    assert [len(run) for run in polylines(chart)] == [2, 3]
    assert chart.count('class="dot"') == 1
    assert chart.count('class="bad"') == 3
    assert "step 4: Infinity" in chart
    Page(chart)


def test_every_point_lies_inside_the_chart():
    for values in ([-1e30, 1e30], [5.0, 5.0], [0.0, 0.0], [1e-12, 2e-12], [1e9, 1e9 + 1e-6]):
        (places,) = polylines(line_chart("", list(enumerate(values)), 1))
        for place in places:
            x, y = map(float, place.split(","))
            assert 52 <= x <= 462 and 10 <= y <= 194
    assert "<polyline" not in line_chart("", [(1, math.nan), (2, math.nan)], 2)


def test_a_stacked_bar_shows_shares_that_sum_to_one():
    parts = [("<training>", 7_200.0), ("nothing", 0.0), ("evaluation", 2_400.0)]
    bar = stacked_bar("Time", parts)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", bar)]
    assert widths == [75, 25]
    assert re.findall(r'<span class="(part\d)" style', bar) == ["part0", "part2"]
    page = Page(bar)
    assert page.text == "Time2 h 40 min<training> 75.0% (2 h 0 min)evaluation 25.0% (40 min)"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 600, [0, 200, 400, 600]),
        (2.1, 3.9, [2, 2.5, 3, 3.5, 4]),
        (0, 3e-4, [0, 1e-4, 2e-4, 3e-4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)
