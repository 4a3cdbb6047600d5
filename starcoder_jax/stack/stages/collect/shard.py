"""Puts the rows that reached a shard in order, whatever order they came in."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack.record import RECORD, Output, drops_of

_ORDER = ("repository", "path", "revision", "swhid", "kind", "digest")
_SAME = ("repository", "path", "revision", "kind", "digest")


def shard(rows: pa.Table) -> Output:
    """Sorts rows, and keeps one of those that say the same of the same file.

    Args:
        rows: of `rows.SCHEMA`, all that belong to the shard.

    Returns:
        Rows of `RECORD` in the order of (repository, path, revision, swhid). Rows that repeat kind,
        repository, path, revision and content of another are dropped as "repeat": the one with the
        most stars stays.
    """
    keys = [(name, "ascending") for name in _ORDER]
    order = pc.sort_indices(rows.select(_ORDER), keys).to_numpy()
    rows = rows.take(pa.array(order[_settled(rows.drop_columns(["content"]).take(order))]))
    reasons = rows["drop_reason"].to_numpy(zero_copy_only=False)
    repeats = _repeats(rows) & np.equal(reasons, None)
    reasons = np.where(repeats, "repeat", reasons)
    dropped = pa.array(np.not_equal(reasons, None), pa.bool_())
    out = rows.filter(dropped)
    drops = drops_of(
        out.select(RECORD.names),
        reasons[dropped.to_numpy(zero_copy_only=False)].tolist(),
        out["drop_detail"].to_pylist(),
    )
    # Their contents were never read: only the source knows their sizes.
    sizes = pc.coalesce(out["drop_bytes"], drops["bytes"])
    drops = drops.set_column(drops.column_names.index("bytes"), "bytes", sizes)
    return Output(rows.filter(pc.invert(dropped)).select(RECORD.names), drops)


def _repeats(rows: pa.Table) -> np.ndarray:
    """Whether each row, bool [rows], says the same as the row before."""
    same = np.zeros(len(rows), bool)
    if len(rows) > 1:
        same[1:] = True
        for name in _SAME:
            column = pc.fill_null(rows[name], "")
            equal = pc.equal(column[1:], column[:-1])
            same[1:] &= equal.to_numpy()
    return same


def _settled(rows: pa.Table) -> np.ndarray:
    """An order, int64 [rows], in which sorted rows that say the same do not stand as they came."""
    order = np.arange(len(rows))
    same = _repeats(rows)
    for start in np.flatnonzero(~same[:-1] & same[1:]):
        stop = start + 1 + np.argmin(np.append(same[start + 1 :], False))
        ranks = [_rank(row) for row in rows.slice(start, stop - start).to_pylist()]
        order[start:stop] = start + np.array(sorted(range(stop - start), key=ranks.__getitem__))
    return order


def _rank(row: dict) -> tuple:
    return (
        row["drop_reason"] or "",
        -(row["stars"] or 0),
        -(row["forks"] or 0),
        json.dumps(row, sort_keys=True),
    )
