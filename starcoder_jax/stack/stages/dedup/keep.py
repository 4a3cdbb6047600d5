"""Which of several duplicates stays, and the removal of the others."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack.record import RECORD, Output, select
from starcoder_jax.stack.stages.dedup.ids import rows_of

# What may decide, and which end of it is preferred; rows that lack a value come last.
PREFERENCES = {
    "license_type": "ascending",
    "stars": "descending",
    "forks": "descending",
    "timestamp": "descending",
}
_LICENSE_TYPES = pa.array(["permissive", "no_license", "non_permissive"])
# What decides between rows that are equal in the above. The last one tells apart only rows of one
# shard, whose order there is their own.
_NAMES = ("repository", "path", "id")

LOSER = pa.schema([("id", pa.int64()), ("detail", pa.string())])


def contestant(key: pa.DataType) -> pa.Schema:
    """Rows that compete with those of the same key."""
    fields = [RECORD.field(name) for name in ("stars", "forks", "timestamp", "repository", "path")]
    return pa.schema([("key", key), ("id", pa.int64()), ("license_type", pa.int32()), *fields])


def contestants(table: pa.Table, keys: pa.Array, ids: np.ndarray) -> pa.Table:
    """The `contestant`s that rows of `RECORD`s are.

    Args:
        table: n rows.
        keys: n of them.
        ids: int64 [n].
    """
    schema = contestant(keys.type)
    columns = {
        "key": keys,
        "id": pa.array(ids, pa.int64()),
        "license_type": pc.index_in(table["license_type"], value_set=_LICENSE_TYPES),
    }
    rest = {name: table[name] for name in schema.names if name not in columns}
    return pa.table({name: (columns | rest)[name] for name in schema.names}, schema=schema)


def losers(table: pa.Table, keep: Sequence[str]) -> Output:
    """All contestants but the best one of each key, as `LOSER`s that name it.

    Args:
        table: of `contestant`s.
        keep: names of `PREFERENCES`: what decides, then what decides between equals, and so on.
            Between those equal in all of it, the least repository and path stays.
    """
    order = [("key", "ascending"), *((name, PREFERENCES[name]) for name in keep)]
    table = table.sort_by([*order, *((name, "ascending") for name in _NAMES)])
    keys = table["key"].combine_chunks()
    repeated = np.zeros(len(table), bool)
    repeated[1:] = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    best = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(table))))[repeated]
    names = pc.binary_join_element_wise(
        table["repository"], table["path"], ": ", null_handling="skip"
    )
    return Output(
        pa.table([table["id"].filter(pa.array(repeated)), names.take(pa.array(best))], schema=LOSER)
    )


def without(table: pa.Table, lost: pa.Table, reason: str, partitions: int) -> Output:
    """A shard of `RECORD`s without its `LOSER`s."""
    reasons: list[str | None] = [None] * len(table)
    details: list[str | None] = [None] * len(table)
    rows = rows_of(lost["id"].to_numpy(), table, partitions)
    for row, detail in zip(rows.tolist(), lost["detail"].to_pylist(), strict=True):
        reasons[row], details[row] = reason, detail
    return select(table, reasons, details)
