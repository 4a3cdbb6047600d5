import pyarrow as pa
import pytest

from starcoder_jax.stack.record import RECORD, Output, records, select
from starcoder_jax.stack.runner.shards import Drops, Store

ROWS = [
    {"kind": "file", "content": b"\x00" * 9, "path": "a", "stars": 1},
    {"kind": "file", "content": b"b" * 5, "marks": [{"offset": 5, "token": "<t>"}], "path": "b"},
    {"kind": "file", "content": b"c", "declared_licenses": ["MIT"], "details": "{}"},
]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def write(store, count=1):
    for index in range(count):
        output = select(records(ROWS), [None, None, "small"])
        output = Output(output.table, output.drops, {"seen": 3})
        store.write("filter", index, count, output, f"key {index}", None)
    return store.shards("filter", count)


def test_a_shard_is_read_as_it_was_written(store):
    (shard,) = write(store)
    table = store.table("filter", 0, 1)
    assert table.schema.equals(RECORD) and table.equals(records(ROWS[:2]))
    assert store.drops("filter", 0, 1)["reason"].to_pylist() == ["small"]
    assert (shard.rows, shard.bytes, shard.counts) == (2, 14, {"seen": 3})
    assert shard.drops == Drops(rows=1, bytes=1)
    assert store.shard("filter", 0, 1) == shard


def test_how_a_table_is_chunked_makes_no_difference_on_disk(store, tmp_path):
    table = pa.concat_tables([records(ROWS)] * 700)
    chunked = pa.concat_tables([table.slice(0, 13), table.slice(13)])
    store.write("whole", 0, 1, Output(table.combine_chunks()), "k", None)
    store.write("chunked", 0, 1, Output(chunked), "k", None)
    for end in (".parquet", ".json"):
        name = f"shard-00000-of-00001{end}"
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "chunked" / name
        ).read_bytes()


def test_an_empty_table_is_the_same_however_it_came_about(store, tmp_path):
    for name, table in (("none", RECORD.empty_table()), ("left", records(ROWS).slice(0, 0))):
        store.write(name, 0, 1, Output(table), "k", None)
    paths = [tmp_path / name / "shard-00000-of-00001.parquet" for name in ("none", "left")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert store.table("none", 0, 1).schema.equals(RECORD)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("end", [".parquet", ".drops.parquet", ".json"])
def test_a_shard_without_all_of_its_files_is_not_finished(store, tmp_path, end, complete):
    first, second = write(store, 2)
    if complete:
        store.finish("filter", [first, second])
    path = tmp_path / "filter" / f"shard-00001-of-00002{end}"
    data = path.read_bytes()
    path.unlink()
    assert store.shards("filter", 2) == [first, None]
    assert store.shard("filter", 1, 2) is None
    path.write_bytes(data)
    assert store.shards("filter", 2) == [first, second]
    path.write_bytes(data[:-9])
    if end != ".json":
        assert store.shards("filter", 2) == [first, None]
    assert store.shard("filter", 1, 2) is None


def test_a_step_is_complete_from_finish_to_begin(store):
    with pytest.raises(ValueError, match=r"step filter is not complete in .*: run it first"):
        store.load("filter")
    shards = write(store, 2)
    with pytest.raises(ValueError, match="not complete"):
        store.load("filter")
    store.finish("filter", shards)
    result = store.load("filter")
    assert result.shards == tuple(shards)
    assert [table.num_rows for table in result.tables()] == [2, 2]
    assert [table.num_rows for table in result.drops()] == [1, 1]
    store.begin("filter")
    with pytest.raises(ValueError, match="not complete"):
        store.load("filter")


def test_finish_removes_what_is_not_of_the_step(store, tmp_path):
    write(store, 3)
    shards = write(store, 2)
    folder = tmp_path / "filter"
    (folder / "shard-00000-of-00002.parquet.0123").write_text("of a run that was killed")
    (folder / "report.html").write_text("of somebody else")
    (folder / "spill").mkdir()
    (folder / "spill" / "00000.arrow").write_text("")
    store.finish("filter", shards)
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        *(
            f"shard-0000{index}-of-00002{end}"
            for index in range(2)
            for end in (".drops.parquet", ".json", ".parquet")
        ),
        "step.json",
    ]


def test_a_uri_is_a_folder_too(store, tmp_path):
    (shard,) = write(Store(f"file://{tmp_path}"))
    assert store.shards("filter", 1) == [shard]


def test_another_key_changes_nothing_else(store, tmp_path):
    (shard,) = write(store)
    before = (tmp_path / "filter" / "shard-00000-of-00001.parquet").stat()
    store.rename("filter", 0, 1, shard, "new")
    (renamed,) = store.shards("filter", 1)
    assert (renamed.key, renamed.digest) == ("new", shard.digest)
    assert (tmp_path / "filter" / "shard-00000-of-00001.parquet").stat() == before
