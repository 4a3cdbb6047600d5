import bz2
import gzip
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder_jax.stack.stages.collect import files


def _reader(blocks):
    blocks = iter(blocks)
    return lambda size: next(blocks, b"")


@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"x", b"\n"))), st.integers(0, 9)
)
def test_lines_are_those_of_the_whole(blocks, limit):
    blocks = [block for block in blocks if block]
    expected = b"".join(blocks).split(b"\n")
    if not expected[-1]:
        expected.pop()
    found = list(files.lines(_reader(blocks), limit))
    assert found == [(line if len(line) <= limit else None, len(line)) for line in expected]


def test_a_line_of_ten_gigabytes_is_skipped_in_little_memory():
    block = bytes(2**20)

    def blocks():
        yield b"first\n"
        for _ in range(10_000):
            yield block
        yield b"\nlast"

    tracemalloc.start()
    found = list(files.lines(_reader(blocks()), limit=2**22))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(b"first", 5), (None, 10_000 * 2**20), (b"last", 4)]
    assert peak < 20 * 2**20


def _zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, _zstd])
def test_files_are_decompressed_by_what_they_hold(tmp_path, compress):
    (tmp_path / "file").write_bytes(compress(b"one\n") + compress(b"two\n"))
    with files.decompressed(str(tmp_path / "file")) as stream:
        assert files.read_up_to(stream.read, 100) == b"one\ntwo\n"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, _zstd])
def test_a_file_that_ends_early_is_an_error(tmp_path, compress):
    data = compress(b"".join(b"%d\n" % number for number in range(10_000)))
    (tmp_path / "file").write_bytes(data[: len(data) // 2])
    with files.decompressed(str(tmp_path / "file")) as stream, pytest.raises(OSError):
        files.read_up_to(stream.read, 10**6)


def test_reads_no_more_of_a_file_than_the_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    name = str(tmp_path / "file")
    assert len(files.read_regular(name, 50_000)) == 50_001
    assert len(files.read_regular(name, 10)) == 11
    assert len(files.read_regular(name, 100_000)) == 100_000
