import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from starcoder_jax.ablation.charts import curves_chart, intervals_chart
from starcoder_jax.ablation.grid import make_grid
from starcoder_jax.ablation.report import write_report
from starcoder_jax.ablation.results import collate, results_table, write_results
from starcoder_jax.ablation.run import Result, reason_to_give_up

NAN = math.nan


@pytest.fixture
def grid(tmp_path):
    def make(**fields):
        path = tmp_path / "ablation.gin"
        arms = {"first": (), "wide": ("model.mlp_dim=2048",), "fim": ("fim.rate=0.9",)}
        fields = {"base": ("tiny.gin",), "arms": arms, "seeds": (4, 5, 6)} | fields
        path.write_text("".join(f"ablation.{name} = {value!r}\n" for name, value in fields.items()))
        return make_grid([str(path)], [], tmp_path)

    return make


def results(grid, values, **others):
    """Held-out bits per byte by arm and, in their order, seeds; None: no result yet."""
    found = {}
    for arm, of_seeds in values.items():
        for seed, value in zip(grid.config.seeds, of_seeds, strict=True):
            if value is not None:
                run = grid.run("tokens", arm, seed)
                curve = [(run.tokens // 2, value + 1), (run.tokens, value)]
                metrics = {"eval/bits_per_byte": value} | others.get(arm, {})
                found[run.name] = Result(metrics, curve, None)
    return found


def test_arms_are_compared_seed_by_seed(grid):
    grid = grid()
    values = {"first": [1.0, 2.0, 3.0], "wide": [0.8, 1.7, 2.8], "fim": [3.01, 2.0, 0.98]}
    found = collate(grid, results(grid, values, fim={"eval/infill_loss": 2.0}))
    assert found["complete"] and found["first_arm"] == "first"
    bits, infill = found["comparisons"]
    assert (bits["metric"], bits["equal"]) == ("eval/bits_per_byte", "tokens")
    first, wide, fim = bits["arms"].values()
    assert first["values"] == {"4": 1.0, "5": 2.0, "6": 3.0}
    assert (first["mean"], first["deviation"]) == (2.0, 1.0)
    assert first["difference"] is None and first["words"] is None
    assert wide["difference"]["mean"] == pytest.approx(-0.7 / 3)
    assert wide["words"].startswith("lower by 0.233, 11.7% (95 % interval")
    assert fim["words"].startswith("no difference seen at this scale")
    assert infill["arms"]["fim"]["mean"] == 2.0
    assert infill["arms"]["fim"]["words"].startswith("cannot be compared")
    assert infill["arms"]["wide"]["mean"] is None
    table = results_table(found)
    assert "eval/bits_per_byte at equal tokens" in table and wide["words"] in table
    assert "2 ± 1" in table and "missing" not in table


def test_what_is_not_there_is_named_and_the_rest_compared(grid):
    grid = grid()
    there = results(grid, {"first": [1.0, 2.0, 3.0], "wide": [1.1, None, None], "fim": [1, NAN, 3]})
    name = grid.run("tokens", "wide", 5).name
    there[name] = Result({}, [], "loss was not finite at step 7")
    found = collate(grid, there)
    assert not found["complete"]
    assert {run["state"] for run in found["runs"]} == {"done", "diverged", "not finished"}
    wide, fim = (found["comparisons"][0]["arms"][arm] for arm in ("wide", "fim"))
    assert wide["values"] == {"4": 1.1} and wide["difference"]["low"] is None
    assert fim["values"] == {"4": 1, "5": None, "6": 3} and fim["difference"]["count"] == 2
    table = results_table(found)
    assert f"{name} is missing: diverged (loss was not finite at step 7)" in table
    assert f"{grid.run('tokens', 'wide', 6).name} is missing: not finished" in table


def test_nothing_is_given_up_unless_asked_for(grid):
    values = {"first": [1.0, 1.0, None], "wide": [9.0, None, None], "fim": [None, None, None]}
    calm = grid()
    assert reason_to_give_up(calm.run("tokens", "wide", 5), calm, results(calm, values)) is None
    strict = grid(give_up=0.1)
    there = results(strict, values)
    reason = reason_to_give_up(strict.run("tokens", "wide", 5), strict, there)
    assert reason == "800.0% more held-out bits per byte than first, seed 4"
    for arm, seed in (("first", 6), ("fim", 5), ("wide", 4)):
        assert reason_to_give_up(strict.run("tokens", arm, seed), strict, there) is None
    found = collate(strict, there)
    states = {run["name"]: run["state"] for run in found["runs"]}
    assert states[strict.run("tokens", "wide", 6).name] == "given up"
    assert states[strict.run("tokens", "fim", 6).name] == "not finished"
    assert "is missing: given up (800.0% more" in results_table(found)


@pytest.mark.parametrize(("value", "given_up"), [(1.09, False), (1.11, True), (NAN, True)])
def test_giving_up_takes_more_than_the_share(grid, value, given_up):
    strict = grid(give_up=0.1)
    there = results(strict, {"first": [1, 1, None], "wide": [1, value, None]})
    reason = reason_to_give_up(strict.run("tokens", "wide", 6), strict, there)
    assert (reason is not None) == given_up


def test_an_arm_that_diverged_is_given_up(grid):
    strict = grid(give_up=0.1)
    there = {strict.run("tokens", "wide", 4).name: Result({}, [], "not finite")}
    assert reason_to_give_up(strict.run("tokens", "wide", 5), strict, there) == (
        "it diverged with seed 4"
    )


def page(tmp_path, found):
    write_results(tmp_path, found)
    write_report(tmp_path, json.loads((tmp_path / "ablation.json").read_text()))
    return (tmp_path / "ablation.html").read_text()


def test_the_page_shows_all_of_it(grid, tmp_path):
    grid = grid(equal=("tokens", "flops"), arms={"first": (), "x": ("model.mlp_dim=2048",)})
    values = {"first": [1.0, 2.0, 3.0], "x": [0.8, 1.7, 2.8]}
    text = page(tmp_path, collate(grid, results(grid, values)))
    assert "6 of 9 runs done" in text
    assert "At equal tokens" in text and "At equal FLOPs" in text and "over FLOPs" in text
    assert "lower by 0.233, 11.7% (95 % interval" in text
    assert "model.mlp_dim=2048" in text and "<script" not in text and "http" not in text
    assert text.count("<figure") == 3  # no interval at equal FLOPs, since no run of x is done
    figures = re.findall(r"<figure.*?</figure>", text)
    assert [figure.count("<polyline") for figure in figures] == [8, 0, 4]
    for figure in figures:
        ElementTree.fromstring(figure)
    assert ElementTree.fromstring(figures[1]).findall(".//circle")


def test_a_page_of_nothing_and_of_what_diverged(grid, tmp_path):
    grid = grid()
    assert "0 of 9 runs done" in page(tmp_path, collate(grid, {}))
    diverged = {run.name: Result({}, [(8, NAN)], "<bad> loss") for run in grid.runs}
    text = page(tmp_path, collate(grid, diverged))
    assert "diverged (&lt;bad&gt; loss)" in text and "<bad>" not in text


def test_curves_of_seeds_that_share_no_place_have_no_mean():
    curves = [[(1, 2.0), (2, 1.0)], [(3, 1.5)]]
    figure = ElementTree.fromstring(curves_chart("a < b", "over x", {"one": curves, "none": []}))
    assert len(figure.findall(".//polyline")) == 2
    assert [item.text or item[0].tail for item in figure.findall(".//li")] == ["one", "none"]
    shared = [[(1, 2.0), (2, 1.0)], [(2, 3.0)]]
    figure = ElementTree.fromstring(curves_chart("a", "b", {"one": shared}))
    assert "one: 2 in the end" in [title.text for title in figure.findall(".//title")]
    assert curves_chart("a", "b", {"none": []}) == ""


def test_an_interval_is_drawn_where_it_is():
    rows = [
        ("up", [1.0, 3.0], {"mean": 2.0, "low": 1.0, "high": 3.0}),
        ("one", [-1.0], {"mean": -1.0, "low": None, "high": None}),
    ]
    figure = ElementTree.fromstring(intervals_chart("title", "note", rows))
    zero = next(p for p in figure.findall(".//path") if "var(--quiet)" in p.get("style", ""))
    origin = float(re.match(r"M([\d.]+)", zero.get("d"))[1])
    (line,) = [p for p in figure.findall(".//path") if "stroke-width" in p.get("style", "")]
    low, high = map(float, re.match(r"M([\d.]+) [\d.]+H([\d.]+)", line.get("d")).groups())
    assert origin < low < high
    places = [float(dot.get("cx")) for dot in figure.findall(".//circle") if dot.get("r") == "4"]
    assert places == [pytest.approx((low + high) / 2, abs=0.2), pytest.approx(2 * origin - low)]
    assert intervals_chart("t", "n", [("same", [0.0], rows[1][2] | {"mean": 0.0})])
