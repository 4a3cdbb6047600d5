import functools
import hashlib
import os
import pickle
import random
import socket

import pyarrow as pa
import pytest

from starcoder_jax.stack.record import RECORD, part_of
from starcoder_jax.stack.stages.collect import CollectConfig, files, folders, steps
from starcoder_jax.stack.stages.collect.rows import SCHEMA, file_row
from starcoder_jax.stack.stages.collect.shard import shard


def _swhid(content):
    return "swh:1:cnt:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_a_folder_is_a_repository(tmp_path, collect, write):
    write(tmp_path / "demo", {"a.py": b"x = 1\n", "sub/b.c": b"int b;\n", "empty": b""})
    rows, drops = collect(f"folder:{tmp_path}/demo")
    assert drops == []
    assert [(row["repository"], row["path"], row["content"]) for row in rows] == [
        ("demo", "a.py", b"x = 1\n"),
        ("demo", "empty", b""),
        ("demo", "sub/b.c", b"int b;\n"),
    ]
    assert [row["swhid"] for row in rows] == [_swhid(row["content"]) for row in rows]
    # As `git hash-object` says.
    assert rows[1]["swhid"] == "swh:1:cnt:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert {row["kind"] for row in rows} == {"file"} and rows[0]["marks"] == []
    assert all(row[name] is None for row in rows for name in ("revision", "timestamp", "details"))


def test_every_folder_of_a_glob_is_one_and_loose_files_are_their_folders(
    tmp_path, collect, write, contents
):
    write(tmp_path / "packages", {"one/a.py": b"1", "two/a.py": b"2", "six.py": b"6"})
    rows, drops = collect(f"folders:{tmp_path}/packages/*")
    assert drops == []
    assert contents(rows) == {
        ("one", "a.py"): b"1",
        ("two", "a.py"): b"2",
        ("packages", "six.py"): b"6",
    }


@pytest.mark.parametrize(
    ("pattern", "path", "name"),
    [
        ("/mirror/*/*", "/mirror/owner/name", "owner/name"),
        ("/lib/python3*/packages/*", "/lib/python3.11/packages/numpy", "python3.11/numpy"),
        ("/lib/*", "/lib/numpy", "numpy"),
        ("/lib/numpy", "/lib/numpy", "numpy"),
        ("/", "/", "root"),
    ],
)
def test_a_repository_is_called_after_what_the_pattern_leaves_open(pattern, path, name):
    assert files.repository_name(path, pattern) == name


def test_hidden_folders_are_left_out_unless_people_commit_them(tmp_path, collect, write, reasons):
    write(
        tmp_path / "demo",
        {
            ".git/config": b"",
            ".venv/x.py": b"",
            ".github/ci.yml": b"on: push",
            ".editorconfig": b"",
        },
    )
    rows, drops = collect(f"folder:{tmp_path}/demo")
    assert [row["path"] for row in rows] == [".editorconfig", ".github/ci.yml"]
    assert reasons(drops) == {".git": "hidden folder", ".venv": "hidden folder"}


def test_nothing_but_regular_files_inside_is_read(tmp_path, collect, write, reasons):
    secret = tmp_path / "secret"
    write(secret, {"key.pem": b"private"})
    demo = tmp_path / "demo"
    write(demo, {"real.py": b"1"})
    (demo / "file_link.py").symlink_to(secret / "key.pem")
    (demo / "folder_link").symlink_to(secret)
    (demo / "loop").symlink_to(demo)
    (demo / "broken").symlink_to("nowhere")
    (demo / "near.py").symlink_to("real.py")
    os.mkfifo(demo / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.getcwd()
        os.chdir(demo)
        server.bind("socket")
        os.chdir(folder)
    rows, drops = collect(f"folder:{demo}")
    assert [row["path"] for row in rows] == ["real.py"]
    links = ("file_link.py", "folder_link", "loop", "broken", "near.py")
    assert reasons(drops) == {
        **dict.fromkeys(links, "symbolic link"),
        **dict.fromkeys(("pipe", "socket"), "special file"),
    }
    assert not any("private" in str(drop) for drop in drops)
    (tmp_path / "link").symlink_to(secret)
    rows, drops = collect(f"folders:{tmp_path}/*")
    assert sorted(row["path"] for row in rows) == ["key.pem", "real.py"]
    assert reasons(drops)["link"] == "symbolic link"


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path, collect, write, monkeypatch):
    write(tmp_path / "demo", {"a.py": b"1"})
    write(tmp_path, {"secret": b"private"})
    found = folders.entry_of

    def swapped(*args):
        entry = found(*args)
        (tmp_path / "demo" / "a.py").unlink()
        (tmp_path / "demo" / "a.py").symlink_to(tmp_path / "secret")
        return entry

    (step,) = steps(CollectConfig(sources=(f"folder:{tmp_path}/demo",)))
    monkeypatch.setattr(folders, "entry_of", swapped)
    ((_, table),) = step.emit(step.items[0])
    assert table["drop_reason"].to_pylist() == ["unreadable"]
    assert table["content"].to_pylist() == [None]


def test_what_is_too_large_too_deep_or_binary_is_dropped(tmp_path, collect, write, reasons):
    write(
        tmp_path / "demo",
        {
            "exact.py": b"x" * 100,
            "large.py": b"x" * 101,
            "late.txt": b"x" * 20 + b"\0",
            "utf16.txt": "text".encode("utf-16"),
            "a/b/fits": b"",
            "a/b/c/deep": b"",
        },
    )
    rows, drops = collect(f"folder:{tmp_path}/demo", max_file_bytes=100, max_depth=2)
    assert [row["path"] for row in rows] == ["a/b/fits", "exact.py", "utf16.txt"]
    assert reasons(drops) == {"large.py": "too large", "late.txt": "binary", "a/b/c": "too deep"}
    assert {drop["path"]: drop["bytes"] for drop in drops}["large.py"] == 101
    assert all(drop["sample"] is None for drop in drops)


def test_the_first_8_kilobytes_tell_binary_files(tmp_path, collect, write):
    write(tmp_path / "demo", {"in": b"x" * 8191 + b"\0" + b"y" * 9000, "out": b"x" * 8192 + b"\0"})
    rows, (drop,) = collect(f"folder:{tmp_path}/demo")
    assert [(row["path"], len(row["content"])) for row in rows] == [("out", 8193)]
    assert (drop["path"], drop["reason"], drop["bytes"]) == ("in", "binary", 17192)


def test_a_repository_may_hold_so_much(tmp_path, collect, write, reasons):
    write(tmp_path / "demo", {f"{number}": b"x" * 10 for number in range(5)})
    rows, drops = collect(f"folder:{tmp_path}/demo", max_repository_bytes=25)
    assert [row["path"] for row in rows] == ["0", "1"]
    assert reasons(drops) == {"2": "repository too large"}
    rows, drops = collect(f"folder:{tmp_path}/demo", max_repository_files=4)
    assert len(rows) == 4 and reasons(drops) == {"4": "repository too large"}


def test_names_that_are_not_utf8_are_escaped(tmp_path, collect):
    folder = os.path.join(os.fsencode(tmp_path), b"d\xe9mo")
    os.mkdir(folder)
    for name in (b"caf\xe9.py", b"new\nline", "ü.py".encode()):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name)
    rows, drops = collect(f"folders:{tmp_path}/*")
    assert drops == []
    assert [row["path"] for row in rows] == ["caf\\xe9.py", "new\nline", "ü.py"]
    assert {row["repository"] for row in rows} == {"d\\xe9mo"}


def test_what_cannot_be_read_is_dropped(tmp_path, collect, write, monkeypatch, reasons):
    write(tmp_path / "demo", {"a.py": b"1", "b.py": b"2", "sub/c.py": b"3"})
    os_open = os.open

    def refused(path, *args, **kwargs):
        if path in ("b.py", "sub"):
            raise PermissionError(path)
        return os_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    rows, drops = collect(f"folder:{tmp_path}/demo")
    assert [row["path"] for row in rows] == ["a.py"]
    assert reasons(drops) == {"b.py": "unreadable", "sub": "unreadable"}


def test_a_folder_that_is_gone_is_reported(tmp_path, write):
    write(tmp_path / "demo", {"a.py": b"1"})
    (step,) = steps(CollectConfig(sources=(f"folder:{tmp_path}/demo",)))
    (tmp_path / "demo").rename(tmp_path / "moved")
    ((_, table),) = step.emit(step.items[0])
    assert table["drop_reason"].to_pylist() == ["unreadable"]
    assert table["repository"].to_pylist() == ["demo"]


def test_pages_are_documentation(tmp_path, collect, write, reasons):
    write(
        tmp_path / "docs" / "site", {"index.html": b"<p>hi", "a/README.md": b"#", "x.css": b"p{}"}
    )
    rows, drops = collect(f"pages:{tmp_path}/docs/*")
    assert [(row["kind"], row["repository"], row["path"]) for row in rows] == [
        ("page", "site", "a/README.md"),
        ("page", "site", "index.html"),
    ]
    assert reasons(drops) == {"x.css": "no page"} and drops[0]["kind"] == "page"


def test_shards_hold_whole_repositories_in_order_whatever_order_items_come_in(
    tmp_path, write, run_steps
):
    for number in range(12):
        write(tmp_path / f"repo{number}", {"b.py": b"b", "a.py": b"a%d" % number, "z\0"[:1]: b"\0"})
    (step,) = steps(CollectConfig(sources=(f"folders:{tmp_path}/*",), shards=3))
    assert len(step.items) == 12
    first = run_steps([step])["collect"]
    for number, output in enumerate(first):
        assert output.table.schema == RECORD
        keys = [(row["repository"], row["path"]) for row in output.table.to_pylist()]
        assert keys == sorted(keys) and keys
        assert all(part_of(repository, 3) == number for repository, _ in keys)
    items = list(step.items)
    random.Random(0).shuffle(items)
    again = run_steps([pickle.loads(pickle.dumps(_with_items(step, items)))])["collect"]
    assert [output.table for output in again] == [output.table for output in first]
    assert [output.drops for output in again] == [output.drops for output in first]


def _with_items(step, items):
    return type(step)(**{**vars(step), "items": tuple(items)})


def test_a_fingerprint_changes_with_what_is_read(tmp_path, write):
    write(tmp_path / "packages", {"one/a.py": b"1", "two/a.py": b"2", "six.py": b"6"})

    def fingerprints(sources=(f"folders:{tmp_path}/packages/*",), **settings):
        (step,) = steps(CollectConfig(sources=sources, **settings))
        return [item.fingerprint for item in step.items], step.emit

    before, emit = fingerprints()
    assert fingerprints()[0] == before and len(set(before)) == 3
    write(tmp_path / "packages", {"two/b.py": b"new"})
    after, _ = fingerprints()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    # A source more changes nothing of the items that were there.
    more, with_more = fingerprints((f"folder:{tmp_path}", f"folders:{tmp_path}/packages/*"))
    assert more[1:] == after
    assert isinstance(emit, functools.partial) and emit.keywords == with_more.keywords
    assert fingerprints(max_depth=3)[1].keywords != emit.keywords


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "collect.sources"),
        (("ftp://host/x",), "'ftp://host/x' is of no known kind"),
        (("folder:",), "no known kind"),
        (("folder:/nowhere/at/all",), "no folder /nowhere/at/all"),
        (("folders:/nowhere/*",), "nothing matches /nowhere/\\*"),
    ],
)
def test_a_source_that_is_not_there_is_an_error(sources, message):
    with pytest.raises(ValueError, match=message) as error:
        steps(CollectConfig(sources=sources))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["shards", "max_file_bytes", "max_depth", "max_ratio"])
def test_settings_have_bounds(name):
    with pytest.raises(ValueError, match=f"collect.{name} must be"):
        CollectConfig(**{name: 0})
    with pytest.raises(ValueError, match="is a tuple"):
        CollectConfig(sources="folder:x")


def test_repeats_are_dropped_and_the_one_with_most_stars_stays(run_steps):
    config = CollectConfig()
    about = {"repository": "o/r", "path": "a.py", "revision": "swh:1:rev:" + "0" * 40}
    rows = [
        file_row(b"same", config, **about, stars=3, language="B"),
        file_row(b"same", config, **about, stars=7, language="C"),
        file_row(b"same", config, **about, stars=7, language="A"),
        file_row(b"other", config, **about, stars=1),
        file_row(b"same", config, **{**about, "revision": None}),
        file_row(b"same", config, **{**about, "path": "b.py"}),
    ]
    outputs = []
    for order in (rows, rows[::-1], [*rows[3:], *rows[:3]]):
        tables = [pa.Table.from_pylist([{"marks": [], **row}], schema=SCHEMA) for row in order]
        outputs.append(shard(pa.concat_tables(tables)))
    kept = [(row["path"], row["content"], row["stars"]) for row in outputs[0].table.to_pylist()]
    assert sorted(kept, key=str) == sorted(
        [
            ("a.py", b"other", 1),
            ("a.py", b"same", 7),
            ("a.py", b"same", None),
            ("b.py", b"same", None),
        ],
        key=str,
    )
    drops = outputs[0].drops.to_pylist()
    assert [(drop["reason"], drop["language"]) for drop in drops] == [
        ("repeat", "C"),
        ("repeat", "B"),
    ]
    assert [drop["bytes"] for drop in drops] == [4, 4]
    for output in outputs[1:]:
        assert output.table == outputs[0].table and output.drops == outputs[0].drops
