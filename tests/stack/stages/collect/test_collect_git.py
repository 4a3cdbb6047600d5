import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import zlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.collect import CollectConfig, git_objects, steps
from starcoder_jax.stack.stages.collect.rows import DamagedError, git_hash

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs the program git")


def _git(folder, *command, stdin=b"", **environment):
    return (
        subprocess.run(
            ["git", "-c", "init.defaultBranch=main", "-C", str(folder), *command],
            input=stdin,
            capture_output=True,
            check=True,
            env={
                "PATH": os.environ["PATH"],
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
                **{f"GIT_{who}_NAME": "Ada" for who in ("AUTHOR", "COMMITTER")},
                **{f"GIT_{who}_EMAIL": "ada@example.org" for who in ("AUTHOR", "COMMITTER")},
                **{f"GIT_{who}_DATE": "1700000000 +0100" for who in ("AUTHOR", "COMMITTER")},
                **environment,
            },
        )
        .stdout.decode()
        .strip()
    )


def _commit(folder, message="Change it", date=1700000000):
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", message, GIT_COMMITTER_DATE=f"{date} +0000")
    return _git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path, write):
    """A repository with one revision."""
    folder = tmp_path / "work" / "demo"
    write(folder, {"a.py": b"x = 1\n", "sub/b.c": b"int b;\n", "data.bin": b"\0\1"})
    (folder / "link").symlink_to("/etc/passwd")
    _git(folder, "init", "-q")
    _commit(folder, "Begin\n\nWith a body.")
    return folder


def _store(folder, kind, content):
    """Writes an object without any check, under the id that its content has."""
    data = b"%s %d\0" % (kind, len(content)) + content
    name = git_hash(content, kind)
    file = folder / ".git" / "objects" / name[:2] / name[2:]
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        file.write_bytes(zlib.compress(data))
    return name


def _tree(folder, *entries):
    content = b"".join(b"%s %s\0" % (mode, name) + bytes.fromhex(id) for mode, name, id in entries)
    return _store(folder, b"tree", content)


def _revision(folder, tree, *parents, who="Eve <eve@example.org> 5 +0000"):
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"author {who}", f"committer {who}", "", "Message\n"]
    revision = _store(folder, b"commit", "\n".join(lines).encode())
    (folder / ".git" / "refs" / "heads" / "main").write_text(f"{revision}\n")
    return revision


def _paths(rows):
    return [row["path"] for row in rows]


@pytest.mark.parametrize("form", ["files", "bare", "packed"])
def test_the_newest_revision_is_read(repository, tmp_path, collect, reasons, form):
    uri = f"git:{repository}"
    revision = _git(repository, "rev-parse", "HEAD")
    if form == "bare":
        _git(tmp_path, "clone", "-q", "--bare", str(repository), str(tmp_path / "demo.git"))
        uri = f"git:{tmp_path}/demo.git"
    elif form == "packed":
        _git(repository, "gc", "-q")
        assert not (repository / ".git" / "refs" / "heads" / "main").exists()
    # Neither files that belong to no revision, nor changed ones.
    (repository / "a.py").write_bytes(b"changed")
    (repository / "untracked.py").write_bytes(b"new")
    rows, drops = collect(uri)
    assert [(row["repository"], row["path"], row["content"]) for row in rows] == [
        ("demo", "a.py", b"x = 1\n"),
        ("demo", "sub/b.c", b"int b;\n"),
    ]
    assert reasons(drops) == {"link": "symbolic link", "data.bin": "binary"}
    tree = _git(repository, "rev-parse", "HEAD^{tree}")
    for row in rows:
        assert row["revision"] == f"swh:1:rev:{revision}"
        assert row["directory"] == f"swh:1:dir:{tree}"
        assert row["timestamp"] == 1700000000
        blob = _git(repository, "rev-parse", f"HEAD:{row['path']}")
        assert row["swhid"] == f"swh:1:cnt:{blob}"
        assert json.loads(row["details"]) == {"branch_name": "main"}


def test_main_comes_before_master_before_the_branch_that_is_checked_out(repository, collect, write):
    _git(repository, "checkout", "-q", "-b", "feature/new")
    write(repository, {"feature.py": b"1"})
    _commit(repository)
    assert "feature.py" not in _paths(collect(f"git:{repository}")[0])
    _git(repository, "branch", "-m", "main", "master")
    assert "feature.py" not in _paths(collect(f"git:{repository}")[0])
    _git(repository, "branch", "-D", "master")
    rows, _ = collect(f"git:{repository}")
    assert "feature.py" in _paths(rows)
    assert json.loads(rows[0]["details"]) == {"branch_name": "feature/new"}


def test_mirrors_are_called_after_owner_and_name(repository, tmp_path, collect):
    for name in ("ada/one", "eve/two"):
        _git(tmp_path, "clone", "-q", "--bare", str(repository), f"mirror/{name}.git")
    rows, _ = collect(f"git:{tmp_path}/mirror/*/*")
    assert {row["repository"] for row in rows} == {"ada/one", "eve/two"}


def test_nothing_of_a_repository_is_run(repository, tmp_path, collect, write):
    write(repository, {".gitattributes": b"* filter=evil diff=evil\n"})
    _commit(repository)
    evidence = tmp_path / "evidence"
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {evidence}\n")
    hook.chmod(0o755)
    for name in ("reference-transaction", "post-index-change"):
        shutil.copy(hook, hook.with_name(name))
    names = ("fsmonitor", "pager", "sshCommand", "alternateRefsCommand", "gitProxy", "askPass")
    settings = [
        *("[core]", *(f"{name} = {hook}" for name in names)),
        *('[filter "evil"]', f"smudge = {hook}", f"clean = {hook}"),
        *('[diff "evil"]', f"textconv = {hook}", f"command = {hook}"),
        *("[include]", "path = /etc/passwd"),
        # A partial clone: git would ask the remote for what is missing.
        *('[remote "origin"]', f"url = ext::{hook}", "promisor = true"),
        *("[extensions]", "partialClone = origin", '[protocol "ext"]', "allow = always"),
    ]
    config = repository / ".git" / "config"
    clean = config.read_text()
    config.write_text(clean + "\n".join(settings) + "\n")
    blob = _git_hash_of(repository / "a.py")
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    rows, drops = collect(f"git:{repository}", max_commits=5)
    assert "sub/b.c" in _paths(rows)
    assert [drop["detail"] for drop in drops if drop["path"] == "a.py"] == [blob]
    assert {drop["reason"] for drop in drops if drop["path"] == "a.py"} == {"missing content"}
    assert not evidence.exists()
    # The trap is one: git as such falls into it.
    config.write_text(config.read_text().replace("path = /etc/passwd", ""))
    command = ["git", "-C", str(repository), "cat-file", "-p", blob]
    subprocess.run(command, capture_output=True, check=False)
    assert evidence.exists()


def _git_hash_of(path):
    return git_hash(path.read_bytes())


def _alternates(folder, elsewhere):
    (folder / ".git/objects/info").mkdir(exist_ok=True)
    (folder / ".git/objects/info/alternates").write_text(f"{elsewhere}\n")


def _linked_objects(folder, elsewhere):
    shutil.rmtree(folder / ".git/objects")
    (folder / ".git/objects").symlink_to(elsewhere)


def _linked_object(folder, elsewhere):
    blob = _git_hash_of(folder / "a.py")
    file = folder / ".git/objects" / blob[:2] / blob[2:]
    file.unlink()
    file.symlink_to(elsewhere / blob[:2] / blob[2:])


def _pipe(folder, elsewhere):
    os.mkfifo(folder / ".git/objects/pack/pack-1.idx")


def _pipe_for_head(folder, elsewhere):
    (folder / ".git/HEAD").unlink()
    os.mkfifo(folder / ".git/HEAD")
    (folder / ".git/refs/heads/main").unlink()


def _linked_git_folder(folder, elsewhere):
    shutil.move(folder / ".git", folder.parent / "real")
    (folder / ".git").symlink_to(folder.parent / "real")


def _git_file(folder, elsewhere):
    shutil.move(folder / ".git", folder.parent / "real")
    (folder / ".git").write_text(f"gitdir: {folder.parent}/real\n")


def _no_revision(folder, elsewhere):
    (folder / ".git/refs/heads/main").unlink()


def _escaping_branch(folder, elsewhere):
    (folder / ".git/HEAD").write_text("ref: refs/heads/../../../../secret\n")
    shutil.move(folder / ".git/refs/heads/main", folder.parent / "secret")


def _damaged_revision(folder, elsewhere):
    (folder / ".git/refs/heads/main").write_text(_store(folder, b"commit", b"no header"))


def _damaged_tree(folder, elsewhere):
    _revision(folder, _store(folder, b"tree", b"100644 a\0short"))


def _missing_tree(folder, elsewhere):
    _revision(folder, "1" * 40)


def _blob_as_revision(folder, elsewhere):
    _revision(folder, _store(folder, b"blob", b"content"))


@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (_alternates, "borrows"),
        (_linked_objects, "no git repository"),
        (_linked_object, "link"),
        (_pipe, "special file"),
        (_pipe_for_head, "no revision"),
        (_linked_git_folder, "no git repository"),
        (_git_file, "no git repository"),
        (_no_revision, "no revision"),
        (_escaping_branch, "no revision"),
        (_damaged_revision, "no revision"),
        (_damaged_tree, "damaged"),
        (_missing_tree, "missing"),
        (_blob_as_revision, "damaged"),
    ],
)
def test_a_hostile_repository_is_dropped(repository, tmp_path, collect, spoil, detail):
    _git(tmp_path, "clone", "-q", "--bare", str(repository), str(tmp_path / "elsewhere"))
    spoil(repository, tmp_path / "elsewhere" / "objects")
    rows, (drop,) = collect(f"git:{repository}")
    assert rows == []
    assert drop["reason"] == "damaged repository" and detail in drop["detail"]
    assert drop["repository"] == "demo"


def test_entries_that_climb_out_and_submodules_are_dropped(repository, collect, reasons):
    blob = _store(repository, b"blob", b"text")
    folder = _tree(repository, (b"100644", b"ok.py", blob))
    tree = _tree(
        repository,
        (b"100644", b"..", blob),
        (b"100644", b"a/../../b", blob),
        (b"40000", b".", folder),
        (b"40000", b"fine", folder),
        (b"100664", b"odd.py", blob),
        (b"160000", b"module", "2" * 40),
    )
    _revision(repository, tree)
    rows, drops = collect(f"git:{repository}")
    assert _paths(rows) == ["fine/ok.py", "odd.py"]
    assert reasons(drops) == {
        **dict.fromkeys(("..", "a/../../b", "."), "path climbs out"),
        "module": "submodule",
    }


def test_a_bomb_of_folders_ends(repository, collect):
    """Few objects stand for more files than there are bytes on any disk."""
    tree = _tree(repository, (b"100644", b"f", _store(repository, b"blob", b"x" * 100)))
    for _ in range(20):
        tree = _tree(repository, *((b"40000", b"%d" % number, tree) for number in range(10)))
    _revision(repository, tree)
    rows, drops = collect(f"git:{repository}", max_repository_files=500)
    assert 0 < len(rows) < 500
    assert [drop["reason"] for drop in drops] == ["repository too large"]
    _, drops = collect(f"git:{repository}", max_repository_bytes=20_000)
    assert [drop["reason"] for drop in drops] == ["repository too large"]
    rows, drops = collect(f"git:{repository}", max_depth=2)
    assert rows == [] and len(drops) == 1000
    assert {drop["reason"] for drop in drops} == {"too deep"}


def test_large_contents_are_not_inflated(repository, collect, write, reasons):
    write(repository, {"large.txt": bytes(b"x" * 3_000_000)})
    _commit(repository)
    rows, drops = collect(f"git:{repository}", max_file_bytes=2_999_999)
    assert "large.txt" not in _paths(rows)
    assert reasons(drops)["large.txt"] == "too large"
    assert {drop["path"]: drop["bytes"] for drop in drops}["large.txt"] == 3_000_000
    assert "large.txt" in _paths(collect(f"git:{repository}", max_file_bytes=3_000_000)[0])


def test_a_content_that_is_not_what_its_id_says_is_dropped(repository, collect, reasons):
    blob = _git_hash_of(repository / "a.py")
    file = repository / ".git/objects" / blob[:2] / blob[2:]
    file.chmod(0o644)
    file.write_bytes(zlib.compress(b"blob 5\0other"))
    rows, drops = collect(f"git:{repository}")
    assert _paths(rows) == ["sub/b.c"]
    assert reasons(drops)["a.py"] == "wrong content"


def test_git_has_so_much_memory(repository, collect, write, monkeypatch):
    """What a delta applies to has to be held as a whole."""
    write(repository, {"large.txt": b"a" * 2**25, "larger.txt": b"a" * 2**25 + b"b"})
    _commit(repository)
    _git(repository, "repack", "-adq")
    rows, drops = collect(f"git:{repository}", max_file_bytes=2**26)
    assert {"large.txt", "larger.txt"} < set(_paths(rows))
    monkeypatch.setattr(git_objects, "_MEMORY_BYTES", 2**24)
    rows, drops = collect(f"git:{repository}", max_file_bytes=2**26)
    assert not {"large.txt", "larger.txt"} < set(_paths(rows))
    assert "damaged repository" in {drop["reason"] for drop in drops}


def test_many_files_in_a_folder(repository, collect, write):
    write(repository, {f"many/{number}.py": b"%d" % number for number in range(700)})
    _commit(repository)
    rows, _ = collect(f"git:{repository}")
    found = {row["path"]: row["content"] for row in rows if row["path"].startswith("many/")}
    assert found == {f"many/{number}.py": b"%d" % number for number in range(700)}


def test_single_file_changes_become_events(repository, collect, write, reasons):
    begin = _git(repository, "rev-parse", "HEAD")
    write(repository, {"sub/b.c": b"int b = 2;\n"})
    change = _commit(repository, "Fix b\n\nIt was <unset> & bad.", date=1700000100)
    write(repository, {"new.py": "é = 1\n".encode()})
    added = _commit(repository, "Add it", date=1700000200)
    (repository / "a.py").unlink()
    removed = _commit(repository, "Remove it")
    write(repository, {"new.py": b"2", "sub/b.c": b"3"})
    both = _commit(repository, "Two files")
    _git(repository, "checkout", "-q", "-b", "side", added)
    write(repository, {"side.py": b"1"})
    side = _commit(repository, "On the side")
    _git(repository, "checkout", "-q", "main")
    _git(repository, "merge", "-q", "--no-ff", "-m", "Merge it", "side")
    merge = _git(repository, "rev-parse", "HEAD")
    rows, drops = collect(f"git:{repository}", max_commits=10)
    events = {row["path"]: row for row in rows if row["kind"] == "commit_event"}
    assert list(events) == sorted(
        [f"commit/{change}/sub/b.c", f"commit/{added}/new.py", f"commit/{removed}/a.py"]
    )
    row = events[f"commit/{change}/sub/b.c"]
    assert (row["repository"], row["revision"], row["timestamp"], row["swhid"]) == (
        *("demo", f"swh:1:rev:{change}", 1700000100, None),
    )
    assert json.loads(row["content"]) == {
        "repository": "demo",
        "commit": change,
        "parents": [begin],
        "subject": "Fix b",
        "message": "Fix b\n\nIt was <unset> & bad.\n",
        "author": "Ada",
        "timestamp": 1700000100,
        "path": "sub/b.c",
        "old": "int b;\n",
        "new": "int b = 2;\n",
    }
    added_event = json.loads(events[f"commit/{added}/new.py"]["content"])
    assert (added_event["old"], added_event["new"]) == ("", "é = 1\n")
    removed_event = json.loads(events[f"commit/{removed}/a.py"]["content"])
    assert (removed_event["old"], removed_event["new"]) == ("x = 1\n", "")
    found = {path: reason for path, reason in reasons(drops).items() if path.startswith("commit/")}
    assert found == {
        f"commit/{merge}": "merge",
        f"commit/{both}": "not one file changed",
        f"commit/{begin}": "not one file changed",
    }
    assert side not in str(rows) + str(drops)
    # The newest ones, and none if none are asked for.
    rows, drops = collect(f"git:{repository}", max_commits=3)
    assert sum(drop["path"].startswith("commit/") for drop in drops) == 2
    assert [row["path"] for row in rows if row["kind"] == "commit_event"] == [
        f"commit/{removed}/a.py"
    ]
    rows, drops = collect(f"git:{repository}")
    assert {row["kind"] for row in rows} == {"file"}


def test_the_history_of_a_shallow_clone_ends_without_loss(repository, tmp_path, collect, write):
    for number in range(4):
        write(repository, {"a.py": b"%d" % number})
        _commit(repository, f"Change {number}")
    _git(tmp_path, "clone", "-q", "--depth=2", f"file://{repository}", "shallow")
    rows, drops = collect(f"git:{tmp_path}/shallow", max_commits=10)
    events = [json.loads(row["content"]) for row in rows if row["kind"] == "commit_event"]
    assert [(event["old"], event["new"]) for event in events] == [("2", "3")]
    assert {drop["path"] for drop in drops} == {"link", "data.bin"}


def test_changes_of_binary_or_linked_files_are_dropped(repository, collect, write):
    write(repository, {"data.bin": b"\0\2"})
    binary = _commit(repository)
    write(repository, {"a.py": b"caf\xe9"})
    latin = _commit(repository)
    (repository / "link").unlink()
    (repository / "link").symlink_to("/etc/shadow")
    link = _commit(repository)
    rows, drops = collect(f"git:{repository}", max_commits=3)
    assert all(row["kind"] == "file" for row in rows)
    found = {drop["path"]: drop["reason"] for drop in drops if drop["path"].startswith("commit/")}
    assert found == {
        f"commit/{binary}/data.bin": "binary",
        f"commit/{latin}/a.py": "not UTF-8",
        f"commit/{link}/link": "no file",
    }


def test_a_fingerprint_changes_with_the_revision(repository, write):
    def fingerprint():
        (step,) = steps(CollectConfig(sources=(f"git:{repository}",)))
        (item,) = step.items
        return item.fingerprint

    before = fingerprint()
    write(repository, {"untracked.py": b"new"})
    assert fingerprint() == before
    _commit(repository)
    assert fingerprint() != before


def test_sources_need_folders_and_git(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="matches no folder"):
        steps(CollectConfig(sources=(f"git:{tmp_path}/*",)))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs the program git"):
        steps(CollectConfig(sources=(f"git:{tmp_path}",)))


def test_leaves_no_process_and_no_folder(repository, collect, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    (step,) = steps(CollectConfig(sources=(f"git:{repository}",)))
    chunks = step.emit(step.items[0])
    next(chunks)
    chunks.close()
    (process,) = started
    assert process.poll() is not None
    assert list(scratch.iterdir()) == []
    assert pathlib.Path(repository).exists()


@given(st.binary(max_size=80))
def test_a_tree_of_any_bytes_is_one_or_damaged(tree):
    with contextlib.suppress(DamagedError):
        for entry in git_objects.entries(tree):
            assert 0 <= entry.mode < 8**6 and len(entry.id) == 40 and b"\0" not in entry.name


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A repository with three revisions, all in one pack."""
    folder = tmp_path_factory.mktemp("pack") / "demo"
    folder.mkdir()
    _git(folder, "init", "-q")
    for number in range(3):
        (folder / "a.py").write_bytes(b"line\n" * 500 + b"%d" % number)
        _commit(folder)
    _git(folder, "gc", "-q")
    return folder


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_packs_never_fail(packed, data):
    files = sorted((packed / ".git/objects/pack").glob("*.[pi][ad]*"))
    assert [path.suffix for path in files] == [".idx", ".pack"]
    path = data.draw(st.sampled_from(files))
    path.chmod(0o644)
    whole = path.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (step,) = steps(CollectConfig(sources=(f"git:{packed}",), shards=1, max_commits=3))
    path.write_bytes(bytes(content))
    try:
        tables = [table for item in step.items for _, table in step.emit(item)]
    finally:
        path.write_bytes(whole)
    output = step.reduce(pa.concat_tables(tables))
    assert len(output.table) + len(output.drops) > 0
    # What is kept is what its id says, whatever was changed.
    for row in output.table.to_pylist():
        if row["kind"] == "file":
            assert row["swhid"] == "swh:1:cnt:" + git_hash(row["content"])
            assert row["content"] == b"line\n" * 500 + b"2"
