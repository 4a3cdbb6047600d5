"""Collects what there is to curate, from where it lies, into shards of whole repositories.

A source is a URI:

| source | is |
|---|---|
| `folder:PATH` | one repository, called like the folder |
| `folders:GLOB` | folders, each a repository; loose files belong to one called like their folder |
| `environment:` | this Python: the standard library and the installed packages |
| `git:GLOB` | git repositories, with files or bare: the newest revision of main, master or HEAD |
| `archive:GLOB` | tar (plain, gzip, bzip2, Zstandard) and zip files, each a repository |
| `jsonl:GLOB` | JSON lines (plain, gzip, bzip2, Zstandard), one file a row |
| `parquet:GLOB` | Parquet, one file a row: The Stack v1 and v2, or the columns of `RECORD` |
| `swh:TABLE?contents=FOLDER` | The Stack v2's identifiers, with a mirror of the contents |
| `events:GLOB` | events of GitHub: GHArchive's files, and payloads of webhooks |
| `questions:GLOB` | Posts.xml of Stack Exchange's dumps |
| `kaggle:GLOB`, `ir:GLOB` | JSON lines for `render` |
| `pages:GLOB` | folders of documentation (HTML, Markdown, text), each a site |

A repository is called after the parts of its path that the pattern leaves open and the last one:
`git:/mirror/*/*` makes "owner/name". Nothing of what is read is ever run, and no symbolic link is
followed within a folder, repository or archive. What is left out has a row among the drops.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from starcoder_jax.stack.runner.steps import Shuffle, Step
from starcoder_jax.stack.stages.collect.archives import archive_items
from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.environment import environment_items
from starcoder_jax.stack.stages.collect.folders import folder_items, folders_items
from starcoder_jax.stack.stages.collect.git import git_items
from starcoder_jax.stack.stages.collect.heritage import heritage_items
from starcoder_jax.stack.stages.collect.objects import (
    event_items,
    ir_items,
    kaggle_items,
    question_items,
)
from starcoder_jax.stack.stages.collect.rows import SCHEMA, Item, chunks
from starcoder_jax.stack.stages.collect.shard import shard
from starcoder_jax.stack.stages.collect.tables import jsonl_items, parquet_items

__all__ = ["CollectConfig", "steps"]

_SCHEMES: dict[str, Callable[[str, CollectConfig], list[Item]]] = {
    "folder": folder_items,
    "folders": folders_items,
    "environment": environment_items,
    "git": git_items,
    "archive": archive_items,
    "jsonl": jsonl_items,
    "parquet": parquet_items,
    "swh": heritage_items,
    "events": event_items,
    "questions": question_items,
    "kaggle": kaggle_items,
    "ir": ir_items,
    "pages": functools.partial(folders_items, kind="page"),
}


def steps(config: CollectConfig) -> list[Step]:
    """The step "collect". What there is to read is looked up now, and read when it runs.

    Raises:
        ValueError: there is no source, or one is not there or of an unknown kind.
    """
    if not config.sources:
        raise ValueError("there is nothing to collect: set collect.sources to a tuple of URIs")
    items = {item.fingerprint: item for source in config.sources for item in _items(source, config)}
    # Which other sources there are changes nothing of what an item holds.
    limits = dataclasses.replace(config, sources=())
    return [
        Shuffle(
            name="collect",
            inputs=(),
            emit=functools.partial(_emit, config=limits),
            schema=SCHEMA,
            reduce=shard,
            partitions=config.shards,
            items=tuple(items.values()),
        )
    ]


def _items(source: str, config: CollectConfig) -> list[Item]:
    scheme, _, location = source.partition(":")
    if scheme not in _SCHEMES or not (location or source == "environment:"):
        raise ValueError(
            f"source {source!r} is of no known kind: write {':..., '.join(_SCHEMES)}:..."
        )
    return _SCHEMES[scheme](location, config)


def _emit(item: Item, config: CollectConfig) -> Iterator[tuple[np.ndarray, pa.Table]]:
    return chunks(item.read(config), config)
