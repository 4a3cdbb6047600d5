"""Drops rows that are not worth training on."""

import functools

import pyarrow as pa

from starcoder_jax.data.tokenizer import load_tokenizer
from starcoder_jax.stack.record import Output, select
from starcoder_jax.stack.runner.steps import Map, Step
from starcoder_jax.stack.stages.filter.config import FilterConfig
from starcoder_jax.stack.stages.filter.rules import Row, reason_to_drop


def steps(config: FilterConfig, source: str) -> list[Step]:
    """One `Map`, "filter", that drops rows of `RECORD`s by the rules of `rules.reason_to_drop`.

    Among the reasons: "non-permissive license", "unknown language", "generated", "too many lines",
    "long data file", "long lines", "few letters", "encoded data", "little visible text", "plain
    text".

    Args:
        config: The thresholds.
        source: Name of the step before, after `render`.

    Raises:
        ValueError: There is no tokenizer where the config says.
    """
    # A step is done again when what it is given differs: here also what the tokenizer's file holds.
    fingerprint = load_tokenizer(config.tokenizer).fingerprint if config.tokenizer else None
    return [Map("filter", (source,), functools.partial(_filter, config, fingerprint))]


def _filter(config: FilterConfig, fingerprint: str | None, table: pa.Table) -> Output:
    names = ("kind", "path", "language", "license_type", "stars")
    columns = [table[name].to_pylist() for name in names]
    reasons = []
    for content, kind, path, language, license_type, stars in zip(
        table["content"], *columns, strict=True
    ):
        row = Row(
            kind=kind,
            path=path or "",
            language=language or "",
            license_type=license_type or "no_license",
            stars=stars or 0,
            content=content.as_py() or b"",
        )
        reasons.append(reason_to_drop(config, row))
    return select(table, reasons)
