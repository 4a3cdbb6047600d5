import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.data.marks import pieces
from starcoder_jax.stack import record
from starcoder_jax.stack.stages.format import FormatConfig, steps


def _file(path, content=b"code", repository="owner/name", **more):
    row = {"kind": "file", "repository": repository, "path": path, "content": content}
    return {**row, "language": "Python", "swhid": f"swh:1:cnt:{path}", **more}


def _inline(document):
    parts = pieces(document["content"], document["marks"])
    return "".join((token or "") + content.decode() for token, content in parts)


@pytest.fixture
def documents(run_steps):
    """A function of rows, or shards of rows, and fields of the configuration."""

    def run(rows, **fields):
        shards = rows if rows and isinstance(rows[0], list) else [rows]
        pipeline = steps(FormatConfig(**fields), "source")
        assert pipeline[-1].name == "format"
        outputs = run_steps(pipeline, source=[record.records(shard) for shard in shards])["format"]
        found, drops = [], {}
        for output in outputs:
            assert output.table.schema == record.DOCUMENT
            found += output.table.to_pylist()
            drops |= {row["path"]: row["reason"] for row in output.drops.to_pylist()}
        return found, drops

    return run


def test_starcoder_with_all_metadata(documents):
    rows = [
        _file("a.py", b"x = 1\n", stars=10),
        _file("b.py", b"y = '\xc3\xa9'\n", marks=[{"offset": 5, "token": "<EMAIL>"}]),
    ]
    found, drops = documents(rows, style="starcoder", metadata_rate=1.0)
    assert [_inline(document) for document in found] == [
        "<reponame>owner/name<filename>a.py<gh_stars>1-10\nx = 1\n",
        "<reponame>owner/name<filename>b.py<gh_stars>0\ny = '<EMAIL>é'\n",
    ]
    assert [mark["token"] for mark in found[1]["marks"]] == [
        *("<reponame>", "<filename>", "<gh_stars>", "<EMAIL>")
    ]
    assert drops == {}
    found, _ = documents(rows, style="starcoder", metadata_rate=0.0)
    assert [_inline(document) for document in found] == ["x = 1\n", "y = '<EMAIL>é'\n"]


@pytest.mark.parametrize(
    ("stars", "bucket"),
    [
        *((None, "0"), (0, "0"), (1, "1-10"), (10, "1-10"), (11, "10-100"), (100, "10-100")),
        *((101, "100-1000"), (1000, "100-1000"), (1001, "1000+")),
    ],
)
def test_stars(documents, stars, bucket):
    (document,), _ = documents([_file("a", stars=stars)], style="starcoder", metadata_rate=1.0)
    assert _inline(document).split("<gh_stars>")[1] == f"{bucket}\ncode"


def test_starcoder_says_each_with_a_probability_of_a_fifth(documents):
    found, _ = documents([_file(f"{n}.py") for n in range(3000)], style="starcoder")
    texts = [_inline(document) for document in found]
    for token in ("<reponame>", "<filename>", "<gh_stars>"):
        assert 520 < sum(token in text for text in texts) < 680
    # Independently of each other.
    assert 80 < sum("<reponame>" in text and "<filename>" in text for text in texts) < 165
    assert all(text.endswith("\ncode") != (text == "code") for text in texts)
    assert len(found) == 3000


def test_starcoder2_joins_a_repository(documents):
    rows = [
        _file("a.py", b"x = 1\n", marks=[{"offset": 0, "token": "<KEY>"}]),
        _file("b/c.py", b"y = 2\n"),
        _file("d.py", b"z = 3\n", repository="owner/other"),
    ]
    found, _ = documents(rows, metadata_rate=1.0)
    first, second = "a.py\n<KEY>x = 1\n", "b/c.py\ny = 2\n"
    start = "<repo_name>owner/name<file_sep>"
    assert _inline(found[0]) in (
        f"{start}{first}<file_sep>{second}",
        f"{start}{second}<file_sep>{first}",
    )
    assert _inline(found[1]) == "<repo_name>owner/other<file_sep>d.py\nz = 3\n"
    found, _ = documents(rows, metadata_rate=0.0)
    first, second = "<file_sep><KEY>x = 1\n", "<file_sep>y = 2\n"
    assert _inline(found[0]) in (first + second, second + first)
    assert len(found) == 2


def test_half_of_the_repositories_have_metadata_and_files_are_in_random_order(documents):
    rows = [_file(path, path.encode(), f"owner/{n}") for n in range(300) for path in "abc"]
    found, _ = documents(rows)
    texts = [_inline(document) for document in found]
    assert 120 < sum(text.startswith("<repo_name>owner/") for text in texts) < 180
    orders = ["".join(file["path"] for file in document["files"]) for document in found]
    assert len(set(orders)) == 6
    assert all(25 < orders.count(order) < 80 for order in set(orders))
    again, _ = documents(rows, seed=1)
    assert [document["files"] for document in again] != [document["files"] for document in found]


def test_other_kinds_are_a_document_a_row(documents):
    marks = [{"offset": 0, "token": "<issue_start>"}]
    rows = [
        _file("a.py"),
        {
            **_file("issues/1", b"Title: x\nusername_0: y"),
            **{"kind": "issue", "marks": marks, "language": "Python", "swhid": None},
        },
        {**_file("n.ipynb", b"text"), "kind": "notebook_script"},
    ]
    for style in ("starcoder", "starcoder2"):
        found, _ = documents(rows, style=style, languages=("Python",))
        by_kind = {document["kind"]: document for document in found}
        assert _inline(by_kind["issue"]) == "<issue_start>Title: x\nusername_0: y"
        assert _inline(by_kind["notebook_script"]) == "text"
        assert {kind: document["language"] for kind, document in by_kind.items()} == {
            "file": "Python",
            "issue": None,
            "notebook_script": None,
        }


def test_language_and_licenses_of_a_repository(documents):
    rows = [
        _file("a", b"12345", language="C", detected_licenses=["MIT"], license_type="permissive"),
        _file("b", b"123", language="Go", declared_licenses=["Apache-2.0"]),
        _file("c", b"123", language="Go", detected_licenses=["MIT", "BSD-3-Clause"]),
        _file("d", b"123456789", language=None, license_type="no_license"),
    ]
    (document,), _ = documents(rows)
    assert document["language"] == "Go"
    assert document["licenses"] == ["Apache-2.0", "BSD-3-Clause", "MIT"]
    assert document["license_type"] == "no_license"
    licenses = {file["path"]: file["license"] for file in document["files"]}
    assert licenses == {"a": "MIT", "b": "Apache-2.0", "c": "BSD-3-Clause AND MIT", "d": None}
    (document,), _ = documents(rows[:1])
    assert (document["language"], document["license_type"]) == ("C", "permissive")
    (document,), _ = documents([{**rows[0], "license_type": "non_permissive"}, *rows[1:]])
    assert document["license_type"] == "non_permissive"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["file", "file", "issue"]),
            st.sampled_from(["r/a", "r/b"]),
            st.text(st.characters(codec="utf-8"), max_size=20),
        ),
        max_size=8,
    ),
    st.sampled_from(["starcoder", "starcoder2"]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_spans_are_exact(values, style, rate):
    rows = [
        _file(
            f"{n}.py",
            text.encode(),
            repository,
            kind=kind,
            marks=[{"offset": at, "token": "<NAME>"} for at in {0, len(text.encode())}],
        )
        for n, (kind, repository, text) in enumerate(values)
    ]
    config = FormatConfig(style=style, metadata_rate=rate, max_language_bytes={})
    (step,) = steps(config, "source")
    found = step.function(record.records(rows)).table.to_pylist()
    contents = {row["path"]: row["content"] for row in rows}
    seen = []
    for document in found:
        end = 0
        for file in document["files"]:
            assert end <= file["start"] <= file["stop"]
            end = file["stop"]
            assert document["content"][file["start"] : end] == contents[file["path"]]
            assert file["repository"] == document["repository"]
            names = [m["offset"] for m in document["marks"] if m["token"] == "<NAME>"]
            assert file["start"] in names and end in names
            seen.append(file["path"])
        assert end == len(document["content"])
        offsets = [mark["offset"] for mark in document["marks"]]
        assert offsets == sorted(offsets)
        document["content"].decode()
    assert sorted(seen) == sorted(contents)


def test_languages(documents):
    languages = {"a": "Python", "b": "COBOL", "c": None, "d": "Makefile"}
    rows = [_file(path, language=language) for path, language in languages.items()]
    for chosen, kept in [
        (("starcoder2_17",), "a"),
        (("starcoder2_17", "Makefile"), "ad"),
        (("COBOL",), "b"),
        (("starcoder2_619",), "abd"),
        (None, "abcd"),
    ]:
        found, drops = documents(rows, languages=chosen)
        assert {file["path"] for document in found for file in document["files"]} == set(kept)
        assert drops == dict.fromkeys(set("abcd") - set(kept), "language not selected")


def test_caps_keep_a_random_sample_of_at_most_so_many_bytes(documents):
    rows = [_file(f"{n}.json", b"x" * 10, f"o/{n % 7}", language="JSON") for n in range(2000)]
    rows += [_file(f"{n}.py", b"x" * 10) for n in range(50)]
    rows.append({**_file("issues/1", b"x" * 10, language="JSON"), "kind": "issue"})
    for cap, low in [(10_000, 9700), (20_000, 20_000), (5, 0), (0, 0)]:
        found, drops = documents(rows, max_language_bytes={"JSON": cap, "Python": 500})
        sizes = {"json": 0, "py": 0, "issues/1": 0}
        for document in found:
            for file in document["files"]:
                sizes[file["path"].split(".")[-1]] += file["stop"] - file["start"]
        assert low <= sizes["json"] <= cap
        assert (sizes["py"], sizes["issues/1"]) == (500, 10)
        assert len(drops) == 2000 - sizes["json"] // 10
        assert set(drops.values()) <= {"language over its cap"}


def test_caps_do_not_depend_on_shards(documents):
    rows = [_file(f"{n}.json", b"x" * 10, f"o/{n}", language="JSON") for n in range(300)]

    def kept(shards):
        found, _ = documents(shards, max_language_bytes={"JSON": 1000})
        return {file["path"] for document in found for file in document["files"]}

    whole = kept([rows])
    assert 80 < len(whole) <= 100
    assert whole == kept([rows[:10], rows[10:200], [], rows[200:]]) == kept([rows[::-1]])
    paths = sorted(int(path.removesuffix(".json")) for path in whole)
    assert paths[0] < 30 and paths[-1] > 270


def test_published_caps_are_the_default():
    caps = FormatConfig().max_language_bytes
    assert caps["Java"] == caps["JavaScript"] == 2 * caps["HTML"] == 200_000_000_000
    assert caps["JSON"] == caps["XML"] == caps["YAML"] == 8_000_000_000
    assert [step.name for step in steps(FormatConfig(), "optout")] == ["format.caps", "format"]
    (step,) = steps(FormatConfig(max_language_bytes={}), "optout")
    assert (step.name, step.inputs) == ("format", ("optout",))


def test_steps_can_be_sent_to_other_processes(run_steps):
    pipeline = pickle.loads(pickle.dumps(steps(FormatConfig(), "source")))
    table = record.records([_file("a.py", detected_licenses=["MIT"])])
    outputs = run_steps(pipeline, source=[table, table.slice(0, 0)])
    assert [len(output.table) for output in outputs["format"]] == [1, 0]
    assert outputs["format"][0].counts == {"rows put into documents": 1}
    assert isinstance(outputs["format.caps"][0].table, pa.Table)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "codegen"}, "format.style is 'codegen': it must be starcoder or starcoder2"),
        ({"metadata_rate": 2}, "format.metadata_rate is 2: it must be from 0 to 1"),
        ({"languages": "C"}, "format.languages is 'C': it must be a tuple of names, or None"),
        ({"languages": ()}, "format.languages is (): it must be a tuple of names, or None"),
        (
            {"max_language_bytes": {"C": -1}},
            "format.max_language_bytes of C is -1: it must not be negative",
        ),
        ({"seed": -1}, "format.seed is -1: it must not be negative"),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises(ValueError, match="format") as error:
        FormatConfig(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_large_repository_becomes_several_documents(documents, rate):
    rows = [_file(f"{n}.py", bytes([97 + n]) * 100) for n in range(10)]
    rows.append(_file("large.py", b"z" * 500))
    found, _ = documents(rows, metadata_rate=rate, max_document_bytes=300)
    paths = [file["path"] for document in found for file in document["files"]]
    (whole,), _ = documents(rows, metadata_rate=rate)
    assert paths == [file["path"] for file in whole["files"]]
    for document in found:
        assert len(document["content"]) <= 300 or len(document["files"]) == 1
        start = "<repo_name>owner/name<file_sep>" if rate else "<file_sep>"
        assert _inline(document).startswith(start)
        for file in document["files"]:
            part = document["content"][file["start"] : file["stop"]]
            assert part in {row["content"] for row in rows if row["path"] == file["path"]}
    assert len(found) >= 5


def test_a_document_has_some_size():
    with pytest.raises(ValueError, match=r"format\.max_document_bytes is 0: it must be positive"):
        FormatConfig(max_document_bytes=0)
