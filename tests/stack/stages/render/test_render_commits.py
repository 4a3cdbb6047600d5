import json

import pytest

OLD = [f"line {n}" for n in range(300)]
WHOLE = {"style": "starcoder", "whole_file_rate": 1.0}


def _commit(
    old=OLD, new=(*OLD[:150], "new", *OLD[151:]), subject="Make the parser quicker", **more
):
    event = {"subject": subject, "path": "a.py", "old": "\n".join(old), "new": "\n".join(new)}
    event |= {"commit": "c1", "author": "Ann", "message": f"{subject}\n\nMore about it.", **more}
    path = f"commit/{event['commit']}/{event['path']}"
    return {"kind": "commit_event", "path": path, "content": json.dumps(event).encode()}


def test_whole_file(render):
    texts, drops = render([_commit(["a", "b"], ["a", "c"])], **WHOLE)
    assert texts == {
        ("commit", "commit/c1/a.py"): "<commit_before>a\nb<commit_msg>Make the parser quicker"
        "<commit_after>a\nc"
    }
    assert drops == {}
    texts, _ = render([_commit([], ["a", "c"])], **WHOLE)
    assert "<commit_before><commit_msg>" in texts["commit", "commit/c1/a.py"]


def test_excerpts_have_what_changed_and_up_to_31_lines_around(render):
    tops, bottoms = set(), set()
    for number in range(30):
        rows = [_commit(commit=f"c{number}")]
        texts, _ = render(rows, style="starcoder", whole_file_rate=0.0)
        (text,) = texts.values()
        before, _, rest = text.removeprefix("<commit_before>").partition("<commit_msg>")
        after = rest.partition("<commit_after>")[2].split("\n")
        before = before.split("\n")
        top = OLD.index(before[0])
        bottom = top + len(before)
        assert before == OLD[top:bottom] and after == [*OLD[top:150], "new", *OLD[151:bottom]]
        assert 150 - 31 <= top <= 150 and 151 <= bottom <= 151 + 31
        tops.add(top)
        bottoms.add(bottom)
    assert len(tops) > 8 and len(bottoms) > 8


def test_whole_files_are_a_fifth(render):
    rows = [_commit(commit=f"c{n}", path=f"{n}.py") for n in range(500)]
    texts, _ = render(rows, style="starcoder")
    whole = sum("line 0\n" in text for text in texts.values())
    assert 70 < whole < 130


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"new": []}, "empty file"),
        ({"old": ["x" * 99_999]}, None),
        ({"old": ["x" * 100_000]}, "large file"),
        ({"new": OLD}, "no change"),
        ({"subject": " "}, "empty subject"),
        ({"subject": "Update README"}, "bad subject"),
        ({"subject": "An Auto Commit of this"}, "bad subject"),
        ({"subject": "v1.2.3 is out"}, "version number"),
        ({"subject": "1.2.3"}, "version number"),
        ({"subject": "x" * 21 + " " + "y" * 20}, "long words"),
        ({"subject": "x" * 20 + " " + "y" * 19}, None),
    ],
)
def test_filters(render, fields, reason):
    texts, drops = render([_commit(**fields)], **WHOLE)
    assert list(drops.values()) == ([] if reason is None else [reason])
    assert len(texts) == (reason is None)


@pytest.mark.parametrize(
    ("rate", "reason", "fields", "others"),
    [
        ("short_subject_rate", "short subject", {"subject": "One two three four"}, {}),
        ("data_commit_rate", "data file", {"path": "a.JSON"}, {"path": "json.py"}),
        (
            "small_commit_rate",
            "small change",
            {"new": ["a", "b", *OLD[2:]]},
            {"new": ["a", "b", "c", *OLD[3:]]},
        ),
        ("large_commit_rate", "large change", {"new": OLD[200:]}, {"new": OLD[199:]}),
    ],
)
def test_sampled(render, rate, reason, fields, others):
    subject = {"subject": "Five words make this one long"}
    for value, kept in ((0.0, 0), (1.0, 1)):
        texts, drops = render([_commit(**{**subject, **fields})], **WHOLE, **{rate: value})
        assert len(texts) == kept
        assert list(drops.values()) == [f"{reason}, not sampled"] * (1 - kept)
    texts, _ = render([_commit(**{**subject, **others})], **WHOLE, **{rate: 0.0})
    assert len(texts) == 1


def test_one_commit_a_file(render):
    rows = [_commit(commit="c1", subject="1.0.0"), _commit(commit="c2"), _commit(commit="c3")]
    rows.append(_commit(commit="c1", path="b.py"))
    rows.append({**_commit(commit="c9"), "repository": "other/name"})
    texts, drops = render(rows, **WHOLE)
    assert {path for _, path in texts} == {
        "commit/c2/a.py",
        "commit/c1/b.py",
        "commit/c9/a.py",
    }
    assert drops == {
        "commit/c1/a.py": "version number",
        "commit/c3/a.py": "another commit of the file",
    }


def test_starcoder2_has_none(render):
    _, drops = render([_commit()])
    assert list(drops.values()) == ["no commits in this style"]
