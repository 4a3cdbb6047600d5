import bz2
import gzip
import io
import stat
import tarfile
import time
import zipfile

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.collect import CollectConfig, archives, steps
from starcoder_jax.stack.stages.collect import tar as tar_module
from starcoder_jax.stack.stages.collect.rows import Budget, BudgetSpentError, DamagedError

_REVISION = "0123456789abcdef0123456789abcdef01234567"
_FILES = {"top/": None, "top/a.py": b"x = 1\n", "top/sub/b.c": b"int b;\n"}


def _tar(files, compress=bytes, **settings):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **settings) as archive:
        for name, content in files.items():
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is None:
                entry.type = entry.type if entry is name else tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return compress(sink.getvalue())


def _zip(files, comment=b"", compression=zipfile.ZIP_DEFLATED):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content or b"")
        archive.comment = comment
    return sink.getvalue()


def _zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def _collect(tmp_path, collect, data, **limits):
    (tmp_path / "demo.archive").write_bytes(data)
    return collect(f"archive:{tmp_path}/demo.archive", **limits)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("demo.tar", _tar(_FILES)),
        ("demo.tar.gz", _tar(_FILES, gzip.compress)),
        ("demo.tgz", _tar(_FILES, gzip.compress, format=tarfile.GNU_FORMAT)),
        ("demo.tar.bz2", _tar(_FILES, bz2.compress, format=tarfile.USTAR_FORMAT)),
        ("demo.tar.zst", _tar(_FILES, _zstd)),
        ("demo.zip", _zip(_FILES)),
        ("demo.ZIP", _zip(_FILES, compression=zipfile.ZIP_STORED)),
    ],
)
def test_an_archive_is_a_repository(tmp_path, collect, name, data):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / name).write_bytes(data)
    rows, drops = collect(f"archive:{tmp_path}/*/*")
    assert drops == []
    assert [(row["repository"], row["path"], row["content"]) for row in rows] == [
        ("ada/demo", "a.py", b"x = 1\n"),
        ("ada/demo", "sub/b.c", b"int b;\n"),
    ]


def test_the_revision_is_that_of_git_archive(tmp_path, collect):
    data = _tar(_FILES, format=tarfile.PAX_FORMAT, pax_headers={"comment": _REVISION})
    for archive in (data, _zip(_FILES, _REVISION.encode())):
        rows, _ = _collect(tmp_path, collect, archive)
        assert [row["revision"] for row in rows] == [f"swh:1:rev:{_REVISION}"] * 2
    rows, _ = _collect(tmp_path, collect, _zip(_FILES, b"no revision"))
    assert [row["revision"] for row in rows] == [None] * 2


@pytest.mark.parametrize("make", [_tar, _zip])
def test_without_a_top_folder_paths_stay(tmp_path, collect, make):
    rows, _ = _collect(tmp_path, collect, make({"pkg/a.py": b"1", "LICENSE": b"2"}))
    assert [row["path"] for row in rows] == ["LICENSE", "pkg/a.py"]
    rows, _ = _collect(tmp_path, collect, make({"./pkg/": None, "./pkg/a.py": b"1", "./b": b"2"}))
    assert len(rows) == 2 and "b" in {row["path"] for row in rows}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_are_whole(tmp_path, collect, format):
    long = "/".join(["folder" * 5] * 4) + "/ends_here.py"
    rows, drops = _collect(tmp_path, collect, _tar({long: b"1", "after.py": b"2"}, format=format))
    assert (drops, [row["path"] for row in rows]) == ([], ["after.py", long])
    if format != tarfile.USTAR_FORMAT:
        longer = "/".join(["ordner" * 10] * 30) + "/é.py"
        rows, _ = _collect(tmp_path, collect, _tar({longer: b"1"}, format=format))
        assert [row["path"] for row in rows] == [longer]


@pytest.mark.parametrize("make", [_tar, _zip])
@pytest.mark.parametrize(
    "name", ["../up.py", "/etc/cron.d/x", "top/../../up.py", "C:/x.py", "a/b/../../../x"]
)
def test_entries_that_climb_out_are_dropped(tmp_path, collect, reasons, make, name):
    rows, drops = _collect(tmp_path, collect, make({"top/": None, "top/a.py": b"1", name: b"2"}))
    assert len(rows) == 1 and rows[0]["content"] == b"1"
    assert reasons(drops) == {name: "path climbs out"}


def test_a_backslash_is_a_slash_in_a_zip_file(tmp_path, collect, reasons):
    rows, drops = _collect(tmp_path, collect, _zip({"a\\b.py": b"1", "..\\c.py": b"2"}))
    assert [row["path"] for row in rows] == ["a/b.py"]
    assert reasons(drops) == {"../c.py": "path climbs out"}


def test_links_and_special_files_of_a_tar_are_dropped(tmp_path, collect, reasons):
    files = {}
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ):
        entry = tarfile.TarInfo(f"kind{kind.decode()}")
        entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
        files[entry] = None
    rows, drops = _collect(tmp_path, collect, _tar({**files, "after.py": b"1"}))
    assert [row["path"] for row in rows] == ["after.py"]
    assert reasons(drops) == {
        **dict.fromkeys(("kind1", "kind2"), "link"),
        **dict.fromkeys(("kind3", "kind4", "kind6"), "special file"),
    }


def test_links_encrypted_and_oddly_compressed_entries_of_a_zip_are_dropped(
    tmp_path, collect, reasons
):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, mode in (("link", stat.S_IFLNK), ("pipe", stat.S_IFIFO), ("fine", stat.S_IFREG)):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (mode | 0o644) << 16
            archive.writestr(entry, b"/etc/passwd")
        archive.writestr("lzma", b"x", compress_type=zipfile.ZIP_LZMA)
        archive.writestr("bzip2", b"x", compress_type=zipfile.ZIP_BZIP2)
        archive.writestr("secret", b"x")
    data = bytearray(sink.getvalue())
    directory = data.rindex(b"PK\1\2")
    data[directory + 8] |= 1
    rows, drops = _collect(tmp_path, collect, bytes(data))
    assert [row["path"] for row in rows] == ["fine"]
    assert reasons(drops) == {
        "link": "link",
        "pipe": "special file",
        **dict.fromkeys(("lzma", "bzip2"), "unknown compression"),
        "secret": "encrypted",
    }


@pytest.mark.parametrize("make", [_tar, _zip])
def test_limits_of_an_entry(tmp_path, collect, reasons, make):
    files = {"fits": b"x" * 100, "large": b"x" * 101, "a/b/c": b"1", "a/b/c/d": b"1", "bin": b"\0"}
    rows, drops = _collect(tmp_path, collect, make(files), max_file_bytes=100, max_depth=2)
    assert [row["path"] for row in rows] == ["a/b/c", "fits"]
    assert reasons(drops) == {"large": "too large", "a/b/c/d": "too deep", "bin": "binary"}
    assert {drop["path"]: drop["bytes"] for drop in drops}["large"] == 101


def test_archives_in_archives_stay_closed(tmp_path, collect, reasons):
    inner = _zip({"inner.py": b"1"})
    for make in (_tar, _zip):
        rows, drops = _collect(tmp_path, collect, make({"inner.zip": inner, "a.py": b"1"}))
        assert [row["path"] for row in rows] == ["a.py"]
        assert reasons(drops) == {"inner.zip": "binary"}


def _bomb(make):
    blank = b" " * 900_000
    return make({f"top/{number}.txt": blank for number in range(20)})


@pytest.mark.parametrize(
    "data", [_bomb(_zip), _bomb(lambda files: _tar(files, gzip.compress))], ids=["zip", "tar.gz"]
)
def test_a_bomb_is_cut_short(tmp_path, collect, data, monkeypatch):
    assert len(data) < 25_000
    monkeypatch.setattr(archives, "_FREE_BYTES", 6_000_000)
    rows, (drop,) = _collect(tmp_path, collect, data)
    assert drop["reason"] == "archive too large"
    assert len(rows) == 6
    assert len(_collect(tmp_path, collect, data, max_ratio=2000)[0]) == 20
    rows, (drop,) = _collect(tmp_path, collect, data, max_repository_bytes=1_000_000)
    assert (len(rows), drop["reason"]) == (1, "archive too large")
    rows, (drop,) = _collect(tmp_path, collect, data, max_repository_files=3)
    assert (len(rows), drop["reason"]) == (3, "archive too large")


def test_entries_of_a_zip_that_share_their_bytes_are_cut_short(tmp_path, collect):
    """Many entries of the list that point to the same compressed bytes."""
    data = _zip({"a.txt": b" " * 900_000})
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry = data[directory:end]
    tail = bytearray(data[end:])
    tail[8:12] = (500).to_bytes(2, "little") * 2
    tail[12:16] = (500 * len(entry)).to_bytes(4, "little")
    rows, drops = _collect(tmp_path, collect, data[:directory] + entry * 500 + bytes(tail))
    # Newer versions of Python refuse entries that overlap.
    assert len(rows) <= 1 and len(drops) < 80
    assert "archive too large" in {drop["reason"] for drop in drops}


def test_a_zip_with_too_long_a_list_is_refused(tmp_path, collect, monkeypatch):
    data = _zip({f"{number:0100}": b"" for number in range(100)})
    assert len(_collect(tmp_path, collect, data)[0]) == 100
    monkeypatch.setattr(archives._ZipFile, "limit", 10_000)
    rows, (drop,) = _collect(tmp_path, collect, data)
    assert rows == [] and drop["reason"] == "damaged archive" and "list" in drop["detail"]


def test_a_zip_entry_with_another_content_than_promised_is_dropped(tmp_path, collect, reasons):
    data = _zip({"a.txt": b"one text", "b.txt": b"good"}, compression=zipfile.ZIP_STORED)
    rows, drops = _collect(tmp_path, collect, data.replace(b"one text", b"bad text"))
    assert [row["path"] for row in rows] == ["b.txt"]
    assert reasons(drops) == {"a.txt": "damaged"}


@pytest.mark.parametrize(
    "data", [b"", b"no archive" * 100, gzip.compress(b"no archive" * 100, mtime=0)]
)
def test_what_is_no_archive_is_dropped(tmp_path, collect, data):
    rows, drops = _collect(tmp_path, collect, data)
    assert rows == []
    assert [drop["reason"] for drop in drops] == ["damaged archive"]


def test_an_archive_that_ends_early_is_reported(tmp_path, collect):
    names = {f"{number}.txt": bytes([65 + number]) * 3000 for number in range(20)}
    for data in (_tar(names), _tar(names, gzip.compress), _zip(names)):
        rows, drops = _collect(tmp_path, collect, data[: len(data) // 2])
        assert len(rows) < 20
        assert [drop["reason"] for drop in drops] == ["damaged archive"]


def _header(kind, size, name=b"name"):
    header = bytearray(512)
    header[: len(name)] = name
    header[124:136] = b"%011o\0" % size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _members(data, **budget):
    stream = io.BytesIO(data)
    reader = tar_module.TarReader(stream.read, Budget(**{"bytes": 10**9, "files": 10**6, **budget}))
    return list(reader.members())


@pytest.mark.parametrize(
    "content", [b"1" * 2**16, b"1 " * 2**15, b"99999 a=" * 2**13, b"5 a=\n" * 2**13]
)
def test_extended_headers_take_linear_time(content):
    padding = bytes(-len(content) % 512)
    data = (_header(b"x", len(content)) + content + padding) * 20
    started = time.perf_counter()
    if content.startswith(b"5"):
        assert _members(data) == []
    else:
        with pytest.raises(DamagedError):
            _members(data)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_extended_headers_are_short(kind):
    with pytest.raises(DamagedError, match="too long"):
        _members(_header(kind, 2**33 - 1))


def test_sparse_entries_are_dropped_without_their_size(tmp_path, collect, reasons):
    fields = b"26 GNU.sparse.major=1\n\n\n\n\n"
    sparse = (
        _header(b"x", 26) + fields.ljust(512, b"\0") + _header(b"0", 2) + b"hi".ljust(512, b"\0")
    )
    rows, drops = _collect(tmp_path, collect, sparse + _header(b"0", 0, b"after"))
    assert [row["path"] for row in rows] == ["after"]
    assert reasons(drops) == {"name": "special file"}


def test_a_size_beyond_the_end_is_no_loop():
    with pytest.raises(BudgetSpentError):
        _members(_header(b"0", 8**11 - 1) + bytes(10**6), bytes=10**5)
    with pytest.raises(DamagedError, match="ends early"):
        _members(_header(b"0", 8**11 - 1) + bytes(10**6))


_CLEAN = {
    "tar": _tar({**_FILES, "n" * 300: b"long", "é": b""}, format=tarfile.PAX_FORMAT),
    "gnu": _tar({**_FILES, "n" * 300: b"long"}, format=tarfile.GNU_FORMAT),
    "zip": _zip({**_FILES, "é": b"text"}, b"comment"),
    "gz": _tar(_FILES, gzip.compress),
    "zst": _tar(_FILES, _zstd),
}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(_CLEAN)),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=6
    ),
    st.floats(0, 1),
)
def test_damaged_archives_never_fail(tmp_path_factory, form, changes, end):
    data = bytearray(_CLEAN[form])
    for place, change in changes:
        start = int(place * len(data))
        data[start : start + len(change)] = change
    if end < 0.3:
        del data[int(end / 0.3 * len(data)) :]
    path = tmp_path_factory.mktemp("archives") / "demo"
    path.write_bytes(bytes(data))
    (step,) = steps(CollectConfig(sources=(f"archive:{path}",), shards=1))
    tables = [table for item in step.items for _, table in step.emit(item)]
    output = step.reduce(pa.concat_tables([step.schema.empty_table(), *tables]))
    assert sum(map(len, output.table["content"].to_pylist())) < 1000
