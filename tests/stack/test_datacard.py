import re

import pytest
import yaml

from starcoder_jax.stack.datacard import card, size_category, write_card


def amount(rows, size):
    return {"rows": rows, "bytes": size}


def by(**values):
    nothing = amount(0, 0)
    return {
        name: {"in": nothing, "dropped": nothing, "out": amount(rows, rows * 10)}
        for name, rows in values.items()
    }


def stage(name, **changes):
    start = {"name": name, "in": amount(90, 9000), "dropped": amount(30, 3000)}
    start |= {"out": amount(60, 600), "made": 0, "joined": 0, "parts": None, "changed_bytes": 0}
    start["by"] = {"kind": by(file=60), "language": by(C=50, Ada=10), "license_type": by(x=60)}
    return start | {"reasons": {}, "counts": {}, "samples": {}, "withheld": 0} | changes


def report(*stages, **changes):
    start = {"format_version": 1, "licenses": {}, "configuration": "a = 1"}
    return start | {"stages": list(stages)} | changes


def header(text):
    _, yaml_text, rest = text.split("---\n", 2)
    return yaml.safe_load(yaml_text), rest


def test_a_card(tmp_path):
    languages = {
        name: {"in": amount(rows + 2, rows * 10 + 4), "dropped": amount(2, 4), "out": amount(1, 1)}
        for name, rows in {"Ada": 10, "C": 40, "": 10, "gone": 0}.items()
    }
    axes = {"kind": by(file=50, issue=10), "language": languages}
    axes["license_type"] = by(permissive=55, no_license=5)
    reasons = {"long lines": {"dropped": amount(30, 3000), "by": {}}}
    stages = [
        stage("filter", reasons=reasons),
        stage("redact", counts={"email": 1234}),
        stage("optout", dropped=amount(4, 4000)),
        stage("format", parts=70, by=axes, dropped=amount(0, 0)),
    ]
    licenses = {"MIT": amount(20, 1), "Apache-2.0": amount(30, 1), "Beerware": amount(1, 1)}
    write_card(report(*stages, licenses=licenses), tmp_path, "My corpus: v1")
    about, text = header((tmp_path / "README.md").read_text())
    assert about == {
        "pretty_name": "My corpus: v1",
        "license": ["apache-2.0", "mit", "other", "unknown"],
        "language": ["code"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["code", "C", "Ada"],
    }
    for line in (
        "# My corpus: v1",
        "| C | 40 | 400B |",
        "| unknown | 10 | 100B |",
        "| issue | 10 | 100B |",
        "| no_license | 5 | 50B |",
        "| Apache-2.0 | 30 | 1B |",
        "| filter | 90 | 30 | 60 | 600B |",
        "| filter | long lines | 30 | 3kB |",
        "| email | 1,234 |",
        "a = 1",
    ):
        assert line in text.splitlines()
    assert "60 documents with 600B of text, made of 70 files" in text
    assert "4 rows, 4kB, were left out since their owners asked" in text
    assert "It was not searched for benchmarks." in text and "gone" not in text


def test_hostile_names_are_text():
    evil = 'x|y<script>alert(1)</script>`\n---\n- a: "b"\u202e[z](javascript:1)'
    axes = {axis: by(**{evil: 5}) for axis in ("kind", "language", "license_type")}
    reasons = {evil: {"dropped": amount(30, 3000), "by": {}}}
    evils = stage("filter", by=axes, reasons=reasons, counts={evil: 1})
    text = card(report(evils, licenses={evil: amount(1, 1)}, configuration="a\n```\nb"), evil)
    about, rest = header(text)
    assert about["tags"] == ["code", evil] and about["pretty_name"] == evil
    assert about["license"] == ["other"]
    for mark in ("<script", "](", "\u202e"):
        assert mark not in rest
    tables = [line for line in rest.splitlines() if line.startswith("|")]
    assert sum("x&#124;y&#60;script" in line for line in tables) == 5
    assert all(line.endswith(" |") for line in tables)
    assert re.search(r"^````\na\n```\nb\n````$", rest, re.MULTILINE)


def test_many_languages_are_cut():
    many = by(**{f"L{number:03}": 1000 - number for number in range(150)})
    axes = {"kind": by(file=1), "language": many, "license_type": by(x=1)}
    text = card(report(stage("filter", by=axes)), "x")
    assert "| 50 more | " in text and "| L099 |" in text and "| L100 |" not in text


@pytest.mark.parametrize(
    ("documents", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (10**6, "1M<n<10M"),
        (10**9, "1B<n<10B"),
        (10**12, "n>1T"),
    ],
)
def test_size_categories(documents, name):
    assert size_category(documents) == name
