import json
import pickle

import pyarrow as pa
import pytest

from starcoder_jax.stack import record
from starcoder_jax.stack.stages import identify
from starcoder_jax.stack.stages.identify import IdentifyConfig
from starcoder_jax.stack.stages.identify.swhid import content_swhid, directory_swhid

MIT = b"Permission is hereby granted, free of charge, to any person obtaining a copy. The above "
MIT += b"copyright notice and this permission notice shall be included.\n"
GPL = b"GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007\n"


def file(path, content, **more):
    return {"kind": "file", "repository": "o/r", "path": path, "content": content, **more}


@pytest.fixture
def identified(run_steps):
    """A function of rows that gives the output's rows by path, and the output."""

    def run(*rows, config=IdentifyConfig()):  # noqa: B008
        table = record.records(rows)
        steps = identify.steps(config, "collect")
        assert [step.name for step in steps] == ["identify"]
        (output,) = run_steps(pickle.loads(pickle.dumps(steps)), collect=[table])["identify"]
        assert output.table.schema == record.RECORD and output.drops.schema == record.DROP
        assert len(output.table) + len(output.drops) == len(rows)
        return {row["path"]: row for row in output.table.to_pylist()}, output

    return run


def test_a_repository(identified):
    rows, output = identified(
        file("LICENSE", MIT),
        file("a.py", b"x = 1\n"),
        file("b.c", b"/* SPDX-License-Identifier: GPL-2.0-only */\n"),
        file("third/COPYING", GPL),
        file("third/c.js", b"f()\n"),
        file("data.bin", b"\0\1"),
        file("noise", bytes(range(128, 256)) * 20),
        file("old.py", "# Größe, Überprüfung, Änderung\n".encode("cp1252"), details='{"a": 1}'),
    )
    assert [drop["reason"] for drop in output.drops.to_pylist()] == ["binary", "not text"]
    assert {path: row["language"] for path, row in rows.items()} == {
        **{"LICENSE": "Text", "a.py": "Python", "b.c": "C", "third/COPYING": "Text"},
        **{"third/c.js": "JavaScript", "old.py": "Python"},
    }
    assert {path: row["detected_licenses"] for path, row in rows.items()} == {
        **{"LICENSE": ["MIT"], "a.py": ["MIT"], "b.c": ["GPL-2.0-only"], "old.py": ["MIT"]},
        **{"third/COPYING": ["GPL-3.0-only"], "third/c.js": ["GPL-3.0-only"]},
    }
    assert {path for path, row in rows.items() if row["license_type"] != "permissive"} == {
        *("b.c", "third/COPYING", "third/c.js"),
    }
    old = rows["old.py"]
    assert old["content"].decode() == "# Größe, Überprüfung, Änderung\n"
    assert old["swhid"] == content_swhid("# Größe, Überprüfung, Änderung\n".encode("cp1252"))
    assert json.loads(old["details"]) == {"a": 1, "encoding": "cp1252"}
    assert rows["a.py"]["details"] is None
    assert output.counts == {"encoding cp1252": 1}
    drops = {drop["path"]: drop for drop in output.drops.to_pylist()}
    assert drops["data.bin"]["swhid"] == content_swhid(b"\0\1")


def test_the_root_is_that_of_all_files_collected(identified):
    files = {"a.py": b"1\n", "b/c.bin": b"\0", "b/d": b"2\n"}
    rows, _ = identified(*(file(path, content) for path, content in files.items()))
    swhids = {path: content_swhid(content) for path, content in files.items()}
    assert {row["directory"] for row in rows.values()} == {directory_swhid(swhids)}


def test_what_collect_knows_stays(identified):
    given = {
        "swhid": "swh:1:cnt:" + "0" * 40,
        "revision": "swh:1:rev:" + "1" * 40,
        "language": "Brainfuck",
        "detected_licenses": ["Zlib"],
        "license_type": "no_license",
    }
    rows, _ = identified(file("a.py", b"# Licensed under the MIT License\n", **given))
    (row,) = rows.values()
    assert {name: row[name] for name in given} == given
    # The root of a revision is the archive's to tell: files may have been left out.
    assert row["directory"] is None


def test_the_directory_given_stays(identified):
    directory = "swh:1:dir:" + "2" * 40
    rows, _ = identified(file("a", b"a", directory=directory), file("b", b"b"))
    assert rows["a"]["directory"] == directory
    assert rows["b"]["directory"] == directory_swhid(
        {"a": content_swhid(b"a"), "b": content_swhid(b"b")}
    )


def test_repositories_and_revisions_do_not_mix(identified):
    _, output = identified(
        file("LICENSE", MIT, repository="x/1"),
        file("a.py", b"a\n", repository="x/1"),
        file("a.py", b"a\n", repository="x/2"),
        file("LICENSE", GPL, repository="x/3", revision="swh:1:rev:" + "1" * 40),
        file("a.py", b"a\n", repository="x/3", revision="swh:1:rev:" + "2" * 40),
        file("LICENSE", MIT, repository=None),
        file("a.py", b"a\n", repository=None),
    )
    assert output.table["license_type"].to_pylist() == [
        *("permissive", "permissive", "no_license", "non_permissive", "no_license"),
        *("permissive", "no_license"),
    ]


def test_what_the_source_declares_decides_unless_the_file_says_otherwise(identified):
    declared = {"declared_licenses": ["MIT"]}
    rows, _ = identified(
        file("COPYING", GPL, **declared),
        file("a.py", b"a\n", **declared),
        file("b.py", b"# under the GNU General Public License, version 2\n", **declared),
        {"kind": "event", "content": b"{}", "repository": "o/r", "path": "issues/1", **declared},
    )
    assert {path: row["license_type"] for path, row in rows.items()} == {
        **{"COPYING": "permissive", "a.py": "permissive", "b.py": "non_permissive"},
        "issues/1": "permissive",
    }
    rows, _ = identified(
        file("b.py", b"# under the GNU General Public License, version 2\n", **declared),
        config=IdentifyConfig(file_notices=False),
    )
    assert rows["b.py"]["license_type"] == "permissive"


def test_an_installed_package_is_under_what_its_metadata_say(identified):
    rows, _ = identified(
        file("p-1.dist-info/METADATA", b"Name: p\nLicense-Expression: BSD-3-Clause AND MIT\n"),
        file("p-1.dist-info/RECORD", b"p/a.py,,\np-1.dist-info/METADATA,,\n"),
        # Of a library within its binaries.
        file("p-1.dist-info/licenses/LICENSE.txt", GPL),
        file("p/a.py", b"a\n"),
        file("q/a.py", b"a\n"),
    )
    assert rows["p/a.py"]["detected_licenses"] == ["BSD-3-Clause", "MIT"]
    assert rows["p-1.dist-info/licenses/LICENSE.txt"]["license_type"] == "permissive"
    assert rows["q/a.py"]["license_type"] == "no_license"


def test_further_permissive_licenses(identified):
    row = file("LICENSES/Artistic-2.0.txt", b"The Artistic License 2.0\n")
    for config, expected in (
        (IdentifyConfig(), "non_permissive"),
        (IdentifyConfig(also_permissive=["Artistic-2.0"]), "permissive"),
    ):
        rows, _ = identified(row, config=config)
        assert [row["license_type"] for row in rows.values()] == [expected]
    with pytest.raises(ValueError, match="no SPDX identifier"):
        IdentifyConfig(also_permissive=("nonsense",))


def test_other_kinds_keep_their_content(identified):
    event = {"kind": "event", "content": '{"a": "é"}'.encode(), "repository": "o/r"}
    rows, _ = identified(
        {**event, "path": "issues/1"},
        {**event, "kind": "commit_event", "path": "src/a.go"},
        {**event, "kind": "page", "path": "docs/a.html", "content": b"<p>\xe9t\xe9 fa\xe7ade</p>"},
    )
    assert rows["issues/1"]["content"] == event["content"] and rows["issues/1"]["swhid"] is None
    assert rows["src/a.go"]["language"] == "Go" and rows["issues/1"]["language"] is None
    assert rows["docs/a.html"]["content"].decode() == "<p>été façade</p>"


def test_null_contents_and_paths(identified):
    _, output = identified(file(None, None), file("a", None), file("", b""))
    assert output.table["license_type"].to_pylist() == ["no_license"] * 3
    assert output.table["language"].null_count == 3


def test_many_changed_contents_keep_their_places(identified):
    rows = [
        file(
            f"{number:03}",
            f"# Größe {number} Änderung\n".encode("cp1252" if number % 3 else "utf-8"),
        )
        for number in range(60)
    ]
    _, output = identified(*rows)
    found = output.table["content"].to_pylist()
    assert [text.decode() for text in found] == [f"# Größe {n} Änderung\n" for n in range(60)]


def test_the_output_does_not_depend_on_the_tables_chunks():
    rows = [
        file("a.h", "// Größe, Überprüfung\n".encode("cp1252")),
        file("LICENSE", MIT),
        file("z.py", b"# \xef\n" * 3),
    ]
    (step,) = identify.steps(IdentifyConfig(), "collect")
    whole = step.function(record.records(rows))
    parts = step.function(pa.concat_tables([record.records([row]) for row in rows]))
    assert whole.table.equals(parts.table) and whole.counts == parts.counts
    empty = step.function(record.records([]))
    assert len(empty.table) == 0 and empty.table.schema == record.RECORD
