import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starcoder_jax.stack.stages.collect import CollectConfig, steps
from starcoder_jax.stack.stages.collect.rows import git_hash

_TEXT = b"x = 1\n"


def _table(path, rows):
    rows = [
        {"repo_name": "ada/engine", "path": f"/{number}.py", **row}
        for number, row in enumerate(rows)
    ]
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def _mirror(folder, content, place="{blob}", compress=bytes):
    blob = git_hash(content)
    file = folder / place.format(blob=blob, a=blob[:2], b=blob[2:4], c=blob[4:6])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(compress(content))
    return blob


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "place", ["{blob}", "{blob}.gz", "{a}/{b}/{blob}", "{a}/{b}/{blob}.gz", "{a}/{b}/{c}/{blob}"]
)
def test_contents_come_from_the_mirror(tmp_path, collect, place, compress):
    blob = _mirror(tmp_path / "mirror", _TEXT, place, compress)
    _table(tmp_path / "ids", [{"blob_id": blob, "src_encoding": "UTF-8", "star_events_count": 4}])
    (row,), drops = collect(f"swh:{tmp_path}/ids?contents={tmp_path}/mirror")
    assert drops == []
    assert (row["content"], row["swhid"], row["path"]) == (_TEXT, f"swh:1:cnt:{blob}", "0.py")
    assert (row["repository"], row["stars"]) == ("ada/engine", 4)
    assert json.loads(row["details"]) == {"src_encoding": "UTF-8"}


def test_swhids_and_parquet_with_files_work_as_well(tmp_path, collect, contents):
    blobs = [_mirror(tmp_path / "mirror", content) for content in (b"1", b"2", b"3")]
    files = [{"blob_id": blob, "path": f"/{blob[:3]}"} for blob in blobs[:2]]
    rows = [{"repo_name": "o/r", "revision_id": "1" * 40, "files": files}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ids.parquet")
    _table(tmp_path / "ids.jsonl", [{"swhid": f"swh:1:cnt:{blobs[2]}"}])
    rows, drops = collect(f"swh:{tmp_path}/ids.*?contents={tmp_path}/mirror")
    assert drops == []
    assert contents(rows) == {
        ("o/r", blobs[0][:3]): b"1",
        ("o/r", blobs[1][:3]): b"2",
        ("ada/engine", "0.py"): b"3",
    }
    assert {row["revision"] for row in rows} == {"swh:1:rev:" + "1" * 40, None}


def test_what_is_missing_wrong_or_no_identifier_is_dropped(tmp_path, collect, reasons):
    mirror = tmp_path / "mirror"
    wrong, bomb, broken = (character * 40 for character in "abc")
    for blob, content in (
        (wrong, _TEXT),
        (bomb, gzip.compress(b" " * 10**6)),
        (broken, gzip.compress(b"text" * 100)[:-20]),
    ):
        mirror.mkdir(exist_ok=True)
        (mirror / blob).write_bytes(content)
    (mirror / ("d" * 40)).symlink_to(tmp_path / "ids")
    (mirror / ("e" * 40)).mkdir()
    large = _mirror(mirror, b"y" * 1001)
    binary = _mirror(mirror, b"\0")
    names = [wrong, bomb, broken, *(c * 40 for c in "def"), large, binary, "../../etc/passwd", None]
    _table(tmp_path / "ids", [{"blob_id": name} for name in names])
    rows, drops = collect(f"swh:{tmp_path}/ids?contents={mirror}", max_file_bytes=1000)
    assert rows == []
    assert reasons(drops) == {
        "0.py": "wrong content",
        "1.py": "too large",
        "2.py": "wrong content",
        **{f"{number}.py": "missing content" for number in (3, 4, 5)},
        "6.py": "too large",
        "7.py": "binary",
        "8.py": "no identifier",
        "9.py": "no identifier",
    }


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("ISO-8859-1", b"caf\xe9"), ("UTF-16", "café".encode("utf-16")), ("utf-8", "café".encode())],
)
def test_contents_are_decoded_and_keep_the_name_they_were_found_under(
    tmp_path, collect, encoding, content
):
    blob = _mirror(tmp_path / "mirror", content)
    _table(tmp_path / "ids", [{"blob_id": blob, "src_encoding": encoding}])
    (row,), drops = collect(f"swh:{tmp_path}/ids?contents={tmp_path}/mirror")
    assert drops == []
    assert (row["content"], row["swhid"]) == ("café".encode(), f"swh:1:cnt:{blob}")
    assert json.loads(row["details"]) == {"src_encoding": encoding}


@pytest.mark.parametrize(
    "encoding",
    [
        "zlib",
        "bz2",
        "rot13",
        "hex",
        "idna",
        "punycode",
        "unicode_escape",
        "no such",
        "ascii",
        "a\0b",
    ],
)
def test_what_is_no_encoding_decodes_nothing(tmp_path, collect, encoding):
    blob = _mirror(tmp_path / "mirror", b"caf\xe9")
    _table(tmp_path / "ids", [{"blob_id": blob, "src_encoding": encoding}])
    rows, (drop,) = collect(f"swh:{tmp_path}/ids?contents={tmp_path}/mirror")
    assert rows == [] and drop["reason"] == "unknown encoding"


def test_the_mirror_must_be_there(tmp_path):
    _table(tmp_path / "ids", [])
    for uri in (f"swh:{tmp_path}/ids", f"swh:{tmp_path}/ids?contents={tmp_path}/nowhere"):
        with pytest.raises(ValueError, match="swh:TABLE\\?contents=FOLDER"):
            steps(CollectConfig(sources=(uri,)))
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "ids")
    with pytest.raises(ValueError, match="no column swhid or blob_id"):
        steps(CollectConfig(sources=(f"swh:{tmp_path}/ids?contents={tmp_path}",)))
