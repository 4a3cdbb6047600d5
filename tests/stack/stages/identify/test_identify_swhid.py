import shutil
import subprocess

import pytest

from starcoder_jax.stack.stages.identify.swhid import content_swhid, directory_swhid

EMPTY = "swh:1:cnt:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_contents_have_gits_hashes():
    # What `git hash-object` says of an empty file and of "hello\n".
    assert content_swhid(b"") == EMPTY
    assert content_swhid(b"hello\n") == "swh:1:cnt:ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_folder_has_gits_hash_of_its_tree(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    # "a.b" stands before the folder "a", and "a0" behind it.
    files = {"a.b": b"1", "a/b/c": b"2", "a/z": b"", "a0": b"3", "é/ü": b"4"}

    def git(*arguments):
        command = ["git", "-c", "core.autocrlf=false", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    git("add", ".")
    contents = {path: content_swhid(content) for path, content in files.items()}
    assert directory_swhid(contents) == "swh:1:dir:" + git("write-tree")


def test_the_order_of_files_does_not_matter():
    contents = {"b": EMPTY, "a/c": EMPTY, "a/b": EMPTY}
    assert directory_swhid(contents) == directory_swhid(dict(reversed(contents.items())))


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a/b"],
        ["a/b/c", "a/b"],
        ["a//b"],
        ["/a"],
        ["a/../b"],
        ["./a"],
        [".git/config"],
        ["a/" * 65 + "b"],
        ["a/" * 500_000 + "b"],
        ["a" * 5000],
    ],
)
def test_what_is_no_tree_has_none(paths):
    assert directory_swhid(dict.fromkeys(paths, EMPTY)) is None


def test_the_deepest_path():
    assert directory_swhid({"a/" * 64 + "b": EMPTY}).startswith("swh:1:dir:")
