"""Gathers the documents of all sources: without duplicates, in hash order, split and sampled."""

import collections
import contextlib
import dataclasses
import pathlib
import pickle
from collections.abc import Callable, Iterator

from starcoder_jax.data.config import DataConfig
from starcoder_jax.data.documents import Document, Dropped, is_heldout
from starcoder_jax.data.sources import read_source

SPLITS = ("train", "validation")

# Sorting happens one bucket of hashes at a time, so that a corpus may be larger than memory.
_BUCKETS = 64


@dataclasses.dataclass
class SourceCounts:
    """What became of the texts of a source.

    Attributes:
        read: Number of texts read.
        documents: Number of documents kept.
        splits: The same, by split.
        bytes: Length of their UTF-8 text.
        dropped: Number of texts left out, by reason.
        licenses: Number of documents kept, by license.
    """

    read: int = 0
    documents: int = 0
    splits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    bytes: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    licenses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Corpus:
    """Documents on disk, by task and split, each split in ascending order of document id.

    Attributes:
        counts: Task name to what became of the texts of its source.
    """

    def __init__(self, folder: pathlib.Path, counts: dict[str, SourceCounts]):
        self._folder = folder
        self.counts = counts

    def documents(self, task: str, split: str) -> Iterator[Document]:
        """Reads the documents of a "train" or "validation" split."""
        yield from _read_pickles(_split_path(self._folder, task, split))


def gather(
    data: DataConfig,
    folder: pathlib.Path,
    report: Callable[[str, int], None] = lambda task, read: None,
) -> Corpus:
    """Reads and filters all sources.

    Of equal texts, the one with the smallest (task, repository, path) stays. Then each source keeps
    its documents in the order of their ids, up to `data.max_source_bytes`: a random sample that
    depends on nothing but the texts.

    Args:
        data: Which sources, and how much of them.
        folder: An empty folder, which holds the corpus for as long as it is used.
        report: Called with a task's name and the number of its texts read so far, now and then.

    Raises:
        ValueError: A source does not exist or is damaged, or it has no document to train on.
    """
    counts = {task: SourceCounts() for task in sorted(data.sources)}
    with contextlib.ExitStack() as stack:
        buckets = [
            stack.enter_context(open(_bucket_path(folder, number), "wb"))
            for number in range(_BUCKETS)
        ]
        for task, count in counts.items():
            for document in read_source(data.sources[task], data.extensions):
                count.read += 1
                if count.read % 1000 == 0:
                    report(task, count.read)
                if isinstance(document, Dropped):
                    count.dropped[document.reason] += 1
                else:
                    bucket = buckets[int(document.id[:2], 16) * _BUCKETS // 256]
                    pickle.dump((document.id, task, document), bucket)
    _distribute(data, folder, counts)
    for task, count in counts.items():
        if not count.splits["train"]:
            raise ValueError(_nothing_to_train_on(task, data.sources[task], count))
    return Corpus(folder, counts)


def _distribute(data: DataConfig, folder: pathlib.Path, counts: dict[str, SourceCounts]) -> None:
    """Writes the documents that stay to their splits."""
    with contextlib.ExitStack() as stack:
        files = {
            (task, split): stack.enter_context(open(_split_path(folder, task, split), "wb"))
            for task in counts
            for split in SPLITS
        }
        for task, document in _without_duplicates(folder, counts):
            count = counts[task]
            if data.max_source_bytes is not None and count.bytes >= data.max_source_bytes:
                count.dropped["beyond max_source_bytes"] += 1
                continue
            count.documents += 1
            count.bytes += document.num_bytes
            count.licenses[document.license] += 1
            split = SPLITS[is_heldout(document.id, data.heldout_fraction)]
            count.splits[split] += 1
            pickle.dump(document, files[task, split])


def _without_duplicates(
    folder: pathlib.Path, counts: dict[str, SourceCounts]
) -> Iterator[tuple[str, Document]]:
    for number in range(_BUCKETS):
        path = _bucket_path(folder, number)
        entries = list(_read_pickles(path))
        path.unlink()
        entries.sort(key=lambda entry: (entry[0], entry[1], entry[2].repository, entry[2].path))
        previous = None
        for id_, task, document in entries:
            if id_ == previous:
                counts[task].dropped["duplicate"] += 1
            else:
                yield task, document
            previous = id_


def _nothing_to_train_on(task: str, uri: str, count: SourceCounts) -> str:
    dropped = ", ".join(f"{number} {reason}" for reason, number in count.dropped.most_common())
    return (
        f"source {task!r} ({uri}) has no document to train on: {count.read} texts read, "
        f"{sum(count.dropped.values())} dropped ({dropped or 'none'}), {count.documents} held out"
    )


def _read_pickles(path: pathlib.Path) -> Iterator:
    with open(path, "rb") as file:
        while file.peek(1):
            yield pickle.load(file)


def _bucket_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"bucket-{number:02d}"


def _split_path(folder: pathlib.Path, task: str, split: str) -> pathlib.Path:
    return folder / f"{task}:{split}"
