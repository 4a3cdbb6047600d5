"""Replaces what identifies people, or opens their accounts, in the texts of all kinds.

Detectors find spans of a text, and `substitute` says what comes in their place. Those here go by
patterns. StarCoder had a model, too, which also finds names and passwords: any model can be named
in `RedactConfig.detectors`, as "module:function". The function takes a batch of texts and returns
the spans of each; a module `starpii.py` that runs StarCoder's own model could be

    import functools
    import transformers
    from starcoder_jax.stack.stages.redact.spans import Span

    @functools.cache
    def model():
        return transformers.pipeline(
            "ner", "bigcode/starpii", aggregation_strategy="simple", stride=128
        )

    def detect(texts):
        return [
            [Span(entity["start"], entity["end"], entity["entity_group"]) for entity in entities]
            for entities in model()(list(texts))
        ]

and is used by `redact.detectors = ("email", "ip_address", "key", "starpii:detect")`. It must find
the same in the same text whatever else is in the batch.
"""

import collections
import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from starcoder_jax.data.marks import joined, pieces
from starcoder_jax.stack.record import KINDS, RECORD, Output
from starcoder_jax.stack.runner.steps import Map, Step
from starcoder_jax.stack.stages.redact.addresses import find_emails, find_ip_addresses
from starcoder_jax.stack.stages.redact.keys import find_keys
from starcoder_jax.stack.stages.redact.replacement import STYLES, accepted, substitute
from starcoder_jax.stack.stages.redact.spans import TYPES, Detector, Span, union

DETECTORS: Mapping[str, Detector] = {
    "email": find_emails,
    "ip_address": find_ip_addresses,
    "key": find_keys,
}


@dataclasses.dataclass(frozen=True)
class RedactConfig:
    """What is looked for, and what comes in its place.

    Attributes:
        detectors: names of `DETECTORS`, or "module:function" of a model.
        style: "starcoder" or "santacoder", see `substitute`.
        types: of the spans that are replaced in rows of a kind; all `TYPES` in kinds that are not
            named. Documentation keeps passwords and IP addresses, as in StarCoder2 (arXiv
            2402.19173, table 3).
        seed: of the addresses and strings that are chosen.
    """

    detectors: Sequence[str] = ("email", "ip_address", "key")
    style: str = "starcoder"
    types: Mapping[str, Sequence[str]] = dataclasses.field(
        default_factory=lambda: {"documentation": ("EMAIL", "KEY", "NAME")}
    )
    seed: int = 0

    def __post_init__(self):
        _check("style", [self.style], STYLES)
        _check("types", self.types, KINDS)
        _check("types", [of for types in self.types.values() for of in types], TYPES)
        if isinstance(self.detectors, str):
            raise ValueError("redact.detectors is a sequence of names, not one string")
        _check("detectors", [name for name in self.detectors if ":" not in name], DETECTORS)


def _check(field: str, names: Sequence[str] | Mapping, known: Sequence[str] | Mapping) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"redact.{field}: {unknown[0]!r} is unknown; there are {', '.join(known)}")


def steps(config: RedactConfig, source: str) -> list[Step]:
    """The step "redact", a `Map` that drops nothing and counts what it replaced by type.

    Raises:
        ValueError: there is no such detector.
    """
    for name in config.detectors:
        _detector(name)
    return [Map("redact", (source,), functools.partial(_redact, config))]


def _detector(name: str) -> Callable[[Sequence[str]], list[list[Span]]]:
    """A detector by name, of batches."""
    if name in DETECTORS:
        return lambda texts: [DETECTORS[name](text) for text in texts]
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"redact.detectors: {name!r} cannot be imported ({error}); give module:function"
        ) from error

    def detect(texts: Sequence[str]) -> list[list[Span]]:
        found = list(function(texts))
        if len(found) != len(texts):
            raise ValueError(
                f"redact.detectors: {name} returned the spans of {len(found)} texts for "
                f"{len(texts)} texts"
            )
        return [accepted(text, spans, name) for text, spans in zip(texts, found, strict=True)]

    return detect


def _redact(config: RedactConfig, table: pa.Table) -> Output:
    names = ("kind", "content", "marks", "repository", "path", "swhid")
    columns = {name: table[name].to_pylist() for name in names}
    # Each row's pieces between marks are texts of their own: a mark stays where it is.
    owners, tokens, texts = [], [], []
    for row, (content, marks) in enumerate(zip(columns["content"], columns["marks"], strict=True)):
        for token, text in pieces(content or b"", marks or []):
            owners.append(row)
            tokens.append(token)
            texts.append(text.decode())
    found: list[list[Span]] = [[] for _ in texts]
    for name in config.detectors:
        for spans, more in zip(found, _detector(name)(texts), strict=True):
            spans.extend(more)

    counts: collections.Counter[str] = collections.Counter()
    parts: dict[int, list[tuple[str | None, bytes]]] = {}
    changed = set()
    for row, token, text, spans in zip(owners, tokens, texts, found, strict=True):
        types = config.types.get(columns["kind"][row], TYPES)
        file = columns["swhid"][row] or f"{columns['repository'][row]}/{columns['path'][row]}"
        row_parts = parts.setdefault(row, [])
        start = 0
        for span in union(span for span in spans if span.type in types):
            row_parts.append((token, text[start : span.start].encode()))
            value = text[span.start : span.stop]
            token, start = None, span.stop
            mark, other = substitute(config.style, span.type, value, file, config.seed)
            row_parts.append((mark, other.encode()))
            counts[f"{span.type} replaced"] += 1
            changed.add(row)
        row_parts.append((token, text[start:].encode()))
    if not changed:
        return Output(table, counts={"rows changed": 0})
    for row in changed:
        columns["content"][row], columns["marks"][row] = joined(parts[row])
    for name in ("content", "marks"):
        column = pa.array(columns[name], RECORD.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), RECORD.field(name), column)
    return Output(table, counts={"rows changed": len(changed), **counts})
