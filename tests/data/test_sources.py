import collections
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from starcoder_jax.data.documents import Document, Dropped
from starcoder_jax.data.sources import read_source

CODE = "def add(first, second):\n    return first + second\n"


def read(uri, extensions=(".py",)):
    """Returns the documents by path, and the number of texts dropped by reason."""
    items = list(read_source(uri, extensions))
    documents = [item for item in items if isinstance(item, Document)]
    by_path = {document.path: document for document in documents}
    assert len(by_path) == len(documents)
    dropped = collections.Counter(item.reason for item in items if isinstance(item, Dropped))
    assert len(documents) + dropped.total() == len(items)
    return by_path, dropped


def test_folder(tmp_path):
    root = tmp_path / "project"
    for name in ("a.py", "sub/b.PY", "sub/c.txt", ".hidden.py", ".git/d.py", "sub/.e/f.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE + f"# {name}\n")
    (root / "binary.py").write_bytes(b"\0\1")
    (root / "latin.py").write_bytes("é = 1\n".encode("latin-1"))
    documents, dropped = read(f"folder:{root}")
    assert set(documents) == {"a.py", "sub/b.PY"}
    assert dropped == {"binary": 1, "not UTF-8": 1}
    document = documents["sub/b.PY"]
    assert document.text == CODE + "# sub/b.PY\n"
    assert (document.repository, document.license) == ("project", "unknown")
    assert set(read(f"folder:{root}", (".py", ".txt"))[0]) == {"a.py", "sub/b.PY", "sub/c.txt"}


def test_folder_with_symbolic_links_and_special_files(tmp_path):
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.py").write_text(CODE)
    (tmp_path / "secret.py").write_text(CODE)
    os.symlink(tmp_path / "secret.py", root / "link.py")
    os.symlink(tmp_path, root / "outside")
    os.symlink(root, root / "sub" / "loop")
    os.symlink(root / "nowhere.py", root / "dangling.py")
    os.mkfifo(root / "pipe.py")
    documents, dropped = read(f"folder:{root}")
    assert set(documents) == {"sub/a.py"} and not dropped


def test_folder_with_hostile_names(tmp_path):
    names = [
        b"new\nline.py",
        b"quote'\".py",
        b"  .py",
        b"\xff\xfe.py",
        b"-rf.py",
        "é名.py".encode(),
    ]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write(CODE)
    documents, _ = read(f"folder:{tmp_path}")
    assert len(documents) == len(names)
    assert {"new\nline.py", "é名.py", "\\udcff\\udcfe.py"} <= set(documents)
    for path in documents:
        path.encode()


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"folder:.*there is no such folder"):
        list(read_source(f"folder:{tmp_path / 'no'}", (".py",)))


ROWS = [
    {"text": CODE + "# 1", "path": "a.py", "repository": "r", "license": "MIT"},
    {
        "content": CODE + "# 2",
        "max_stars_repo_path": "b.py",
        "max_stars_repo_name": "s",
        "max_stars_repo_licenses": ["MIT", "Apache-2.0"],
    },
    {"content": CODE + "# 3", "path": "c.py", "repo_name": "t", "detected_licenses": []},
    {"text": CODE + "# 4"},
]
EXPECTED = {
    "a.py": ("r", "MIT"),
    "b.py": ("s", "MIT AND Apache-2.0"),
    "c.py": ("t", "unknown"),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_jsonl(tmp_path, compressed):
    lines = [json.dumps(row).encode() for row in ROWS]
    lines += [b"", b"{", b"[1]", b'{"x": 1}', b'{"text": 3}', b'{"text": "\xff"}', b'{"text": ""}']
    lines += [b'{"text": "\\ud800 abc"}', b"[" * 100_000]
    path = tmp_path / ("a.jsonl.gz" if compressed else "a.jsonl")
    with gzip.open(path, "wb") if compressed else open(path, "wb") as file:
        file.write(b"\n".join(lines))
    documents, dropped = read(f"jsonl:{tmp_path}/*.jsonl*", ())
    fields = {path: (document.repository, document.license) for path, document in documents.items()}
    assert fields == EXPECTED | {f"{path.name}:4": ("unknown", "unknown")}
    assert documents["a.py"].text == CODE + "# 1"
    assert dropped == {"not JSON": 2, "no text": 3, "not UTF-8": 2, "empty": 1}


def test_jsonl_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="matches no file"):
        list(read_source(f"jsonl:{tmp_path}/*.jsonl", ()))
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b"".join(json.dumps({"text": CODE * n}).encode() for n in range(99)))
    for damaged in (whole[: len(whole) // 2], whole[:50] + bytes(50) + whole[100:], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read .*a\.jsonl\.gz"):
            list(read_source(f"jsonl:{path}", ()))


def test_parquet(tmp_path):
    rows = [
        {"content": CODE + f"# {number}", "path": f"{number}.py", "detected_licenses": ["ISC"]}
        for number in range(600)
    ]
    rows.append({"content": None, "path": "none.py", "detected_licenses": None})
    table = pyarrow.Table.from_pylist([{**row, "extra": 1} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=250)
    documents, dropped = read(f"parquet:{tmp_path}/*.parquet", ())
    assert set(documents) == {f"{number}.py" for number in range(600)}
    assert documents["599.py"] == Document(CODE + "# 599", "599.py", "unknown", "ISC")
    assert dropped == {"no text": 1}


def test_parquet_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"code": ["x"]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: it has no column text or content"):
        list(read_source(f"parquet:{path}", ()))
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet"):
        list(read_source(f"parquet:{path}", ()))


def make_package(site, name, license, files, version="1.0"):
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{license}\n"
    )
    for file in files:
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[file])
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_environment(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    (library / "json").mkdir(parents=True)
    (library / "json" / "decoder.py").write_text(CODE)
    (library / "site-packages").mkdir()
    (library / "site-packages" / "other.py").write_text(CODE)
    site, hidden = tmp_path / "site", tmp_path / "hidden"
    mit = "License-Expression: MIT"
    vendored = dict.fromkeys(("good/_vendor/v.py", "good/third_party/w.py"), CODE)
    files = {"good/a.py": CODE, "good/b.txt": CODE, "good/gone.py": CODE, "../../bin/c.py": CODE}
    gpl = "# GNU General Public License\n" + CODE
    make_package(site, "good", mit, {**files, **vendored, "good/gpl.py": gpl})
    (site / "good" / "gone.py").unlink()
    make_package(site, "bad", "License-Expression: GPL-3.0-only", {"bad/a.py": CODE})
    make_package(site, "silent", "", {"silent/a.py": CODE})
    make_package(site, "starcoder_jax", mit, {"starcoder_jax/a.py": CODE})
    make_package(hidden, "Good", mit, {"good/older.py": CODE}, version="0.9")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    monkeypatch.setattr("sys.path", [str(site), str(hidden)])
    documents, dropped = read("environment:")
    assert set(documents) == {"json/decoder.py", "good/a.py"}
    assert documents["good/a.py"] == Document(CODE, "good/a.py", "good 1.0", "MIT")
    assert documents["json/decoder.py"].license == "PSF-2.0"
    assert documents["json/decoder.py"].repository.startswith("cpython 3.")
    assert dropped == {
        "license not permissive": 2,
        "vendored": 2,
        "copyleft notice": 1,
        "unreadable": 1,
    }


def test_environment_of_this_machine():
    seen = collections.Counter()
    for item in read_source("environment:", (".py",)):
        if isinstance(item, Dropped):
            continue
        seen[item.repository.partition(" ")[0]] += 1
        assert item.license != "unknown" and "GPL" not in item.license
        assert not item.path.startswith(("/", "..")) and "__pycache__" not in item.path
        if sum(seen.values()) > 3000 and len(seen) > 5:
            break
    assert seen["cpython"] > 100
    assert "starcoder_jax" not in seen
