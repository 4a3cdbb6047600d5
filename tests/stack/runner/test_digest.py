import decimal

import pyarrow as pa
import pytest

from starcoder_jax.stack.record import DOCUMENT, RECORD, records
from starcoder_jax.stack.runner.digest import content_digest

ROWS = [
    {"kind": "file", "content": b"a = 1\n", "repository": "a/b", "path": "x.py", "stars": 3},
    {"kind": "file", "content": b"", "marks": [{"offset": 0, "token": "<t>"}], "path": "ab"},
    {"kind": "file", "content": b"\xff", "path": "é", "declared_licenses": ["MIT", None]},
    {"kind": "issue", "content": None, "declared_licenses": []},
]


def test_how_rows_lie_in_memory_makes_no_difference():
    table = records(ROWS)
    expected = content_digest(table)
    assert content_digest(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == expected
    padded = pa.concat_tables([records(ROWS[2:]), table, records(ROWS[:1])]).combine_chunks()
    assert content_digest(padded.slice(2, 4)) == expected
    assert content_digest(pa.concat_tables([table, RECORD.empty_table()])) == expected


def test_what_stands_behind_a_null_makes_no_difference():
    def column(hidden):
        values = pa.py_buffer(bytes([1, hidden]))
        return pa.Array.from_buffers(pa.int8(), 2, [pa.py_buffer(b"\x01"), values])

    assert column(5).to_pylist() == column(6).to_pylist() == [1, None]
    first, second = (pa.table({"a": column(hidden)}) for hidden in (5, 6))
    assert content_digest(first) == content_digest(second)


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (0, "content", b"a = 2\n"),
        (0, "path", None),
        (0, "stars", 4),
        (0, "stars", None),
        (0, "marks", [{"offset": 0, "token": "<t>"}]),
        (1, "marks", [{"offset": 1, "token": "<t>"}]),
        (1, "marks", [{"offset": 0, "token": None}]),
        (1, "path", ""),
        (2, "declared_licenses", ["MIT"]),
        (2, "declared_licenses", ["MIT", ""]),
        (3, "declared_licenses", None),
        (3, "content", b""),
    ],
)
def test_every_value_counts(row, column, value):
    rows = [dict(row) for row in ROWS]
    rows[row][column] = value
    assert content_digest(records(rows)) != content_digest(records(ROWS))


def test_where_a_value_ends_counts():
    def digest(**columns):
        return content_digest(pa.table(columns))

    assert digest(a=["ab", "c"]) != digest(a=["a", "bc"])
    assert digest(a=[["x"], ["y"]]) != digest(a=[["x", "y"], []])
    assert digest(a=[None, "a"]) != digest(a=["a", None])
    assert digest(a=["x"], b=["y"]) != digest(b=["y"], a=["x"])


def test_order_names_and_types_count():
    table = records(ROWS)
    others = [
        table.take([1, 0, 2, 3]),
        table.slice(1),
        table.rename_columns([*table.column_names[:-1], "more"]),
        table.drop_columns(["details"]),
        pa.table({"a": pa.array([1], pa.int32())}),
        pa.table({"a": pa.array([1], pa.int64())}),
        pa.table({"a": pa.array([True])}),
        pa.table({"a": pa.array([1.0])}),
        pa.table({"a": pa.array([decimal.Decimal(1)])}),
        pa.table({"a": pa.array([None])}),
        DOCUMENT.empty_table(),
        RECORD.empty_table(),
    ]
    digests = {content_digest(other) for other in [table, *others]}
    assert len(digests) == 1 + len(others)


def test_a_type_that_has_no_canonical_form_is_refused():
    table = pa.table({"a": pa.array(["x"]).dictionary_encode()})
    with pytest.raises(ValueError, match="a column has type dictionary"):
        content_digest(table)
