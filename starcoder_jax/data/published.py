"""A published corpus: curated documents, as a TFDS dataset of ArrayRecord files.

    DIR/corpus.json                                                  what there is, see `Component`
    DIR/stack/COMPONENT/1.0.0/stack-train.array_record-00000-of-00004

Each component is a config of the dataset: a language, such as `python`, or another kind of
document, such as `issue`. `tfds.builder("stack/python", data_dir=DIR).as_data_source("train")`
opens one, and so do the sources `stack:DIR` and `stack:DIR?python,c` of a recipe.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence

from array_record.python import array_record_module

from starcoder_jax.data.documents import Document, document_id
from starcoder_jax.data.folders import exclusive_folder

DATASET = "stack"
VERSION = "1.0.0"
MANIFEST = "corpus.json"

_FILE_BYTES = 2**28  # of text in a file, about
_WRITER_OPTIONS = "group_size:1,zstd:1"


@dataclasses.dataclass(frozen=True)
class Component:
    """A part of a published corpus.

    Attributes:
        name: of the component, a config of the TFDS dataset.
        language: of its documents, by Linguist's name; None where they are of another kind.
        kind: of its documents, see `stack.record.KINDS`.
        documents: how many there are.
        bytes: of their UTF-8 text.
        digest: SHA-256 of all there is to be read in it.
    """

    name: str
    language: str | None
    kind: str
    documents: int
    bytes: int
    digest: str


def component_name(kind: str, language: str | None) -> str:
    """`python`, `cpp`, `csharp` for languages; the kind for documents that are no files."""
    if kind != "file":
        return kind
    name = (language or "unknown").lower().replace("#", "sharp").replace("*", "star")
    return re.sub(r"[^a-z0-9]+", "_", name.replace("+", "p")).strip("_")


def components(directory: str | pathlib.Path) -> dict[str, Component]:
    """What a published corpus has, by name.

    Raises:
        ValueError: there is none.
    """
    path = pathlib.Path(directory).expanduser() / MANIFEST
    try:
        entries = json.loads(path.read_bytes())
        return {name: Component(name=name, **entry) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory} is no published corpus: its {MANIFEST} cannot be read ({error})"
        ) from error


def read_component(directory: str | pathlib.Path, name: str) -> Iterator[Document]:
    """Reads the documents of a component, in ascending order of their ids within each file.

    Raises:
        ValueError: a document is not what its id says.
    """
    import tensorflow_datasets as tfds  # takes a second, and few processes read a corpus

    folder = pathlib.Path(directory).expanduser() / DATASET / name / VERSION
    source = tfds.builder_from_directory(folder).as_data_source(split="train")
    for number in range(len(source)):
        row = source[number]
        text = row["text"]
        marks = tuple(
            {"offset": int(offset), "token": token.decode()}
            for offset, token in zip(row["mark_offsets"], row["mark_tokens"], strict=True)
        )
        if document_id(text, marks) != row["id"].decode():
            raise ValueError(f"document {number} of {folder} is damaged: publish the corpus again")
        paths = row["files"]["path"]
        yield Document(
            text.decode(),
            path=paths[0].decode() if len(paths) else "",
            repository=row["repository"].decode(),
            license=row["license"].decode(),
            marks=marks,
        )


class ComponentWriter:
    """Writes a component, which appears, or replaces the one there was, when it is whole.

        with ComponentWriter(directory, component) as writer:
            writer.write(document)
            writer.finish()

    Args:
        directory: of the corpus.
        component: what is being written.
    """

    def __init__(self, directory: str | pathlib.Path, component: Component):
        self._target = pathlib.Path(directory) / DATASET / component.name / VERSION
        self._component = component
        self._features = _features()
        self._serializer = _serializer(self._features)
        self._writer = None
        self._lengths: list[int] = []  # documents of each file
        self._size = 0  # of the text in the last one
        self._total = 0  # of all records
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "ComponentWriter":
        partial = exclusive_folder(self._target.with_name(f"{VERSION}.partial"))
        self._folder = self._stack.enter_context(partial)
        return self

    def __exit__(self, *exception) -> None:
        self._close()
        self._stack.close()

    def write(self, document: Mapping) -> None:
        """Adds a document.

        Args:
            document: has `id`, `content` (UTF-8 bytes), `marks`, `kind`, `language`, `repository`,
                `licenses`, `license_type`, and `files` as in `stack.record.DOCUMENT`.
        """
        if self._writer is None or self._size >= _FILE_BYTES:
            self._close()
            path = self._folder / f"part-{len(self._lengths):05d}"
            self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
            self._lengths.append(0)
            self._size = 0
        example = self._serializer.get_tf_example(self._features.encode_example(_example(document)))
        # A map's entries else come in another order in every process.
        record = example.SerializeToString(deterministic=True)
        self._writer.write(record)
        self._lengths[-1] += 1
        self._size += len(document["content"])
        self._total += len(record)

    def finish(self) -> None:
        """Gives the files their names, and the component its own."""
        self._close()
        for number in range(len(self._lengths)):
            name = f"{DATASET}-train.array_record-{number:05d}-of-{len(self._lengths):05d}"
            (self._folder / f"part-{number:05d}").rename(self._folder / name)
        self._write_metadata()
        if self._target.exists():
            shutil.rmtree(self._target)
        self._folder.rename(self._target)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except RuntimeError as error:  # as the library reports a full disk
                raise OSError(str(error)) from error

    def _write_metadata(self) -> None:
        import tensorflow_datasets as tfds

        template = tfds.core.ShardedFileTemplate(
            data_dir=self._folder,
            dataset_name=DATASET,
            split="train",
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        split = tfds.core.SplitInfo(
            name="train",
            shard_lengths=self._lengths,
            num_bytes=self._total,
            filename_template=template,
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self._folder,
            features=self._features,
            split_infos=[split],
            filename_template=template,
            version=VERSION,
            description=f"Documents: {self._component.language or self._component.kind}.",
            check_data=False,  # it would read ArrayRecord files by tf.data, which cannot
        )


def write_manifest(directory: str | pathlib.Path, entries: Sequence[Component]) -> None:
    """Says what a corpus has, and removes components that it has no longer."""
    directory = pathlib.Path(directory)
    kept = {entry.name for entry in entries}
    for folder in (directory / DATASET).glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
    values = {}
    for entry in sorted(entries, key=lambda entry: entry.name):
        fields = dataclasses.asdict(entry)
        values[fields.pop("name")] = fields
    partial = directory / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    partial.replace(directory / MANIFEST)


def _features():
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            **{name: text() for name in ("id", "text", "kind", "language", "repository")},
            **{name: text() for name in ("license", "license_type")},
            "mark_offsets": tfds.features.Sequence(np.int64),
            "mark_tokens": tfds.features.Sequence(text()),
            "files": tfds.features.Sequence(
                {
                    **{name: text() for name in ("swhid", "repository", "path")},
                    **{name: text() for name in ("revision", "license")},
                    **{name: np.int64 for name in ("start", "stop")},
                }
            ),
        }
    )


def _serializer(features):
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(features.get_serialized_info())


def _example(document: Mapping) -> dict:
    return {
        "id": document["id"],
        "text": document["content"],
        "kind": document["kind"],
        "language": document["language"] or "",
        "repository": document["repository"],
        "license": " AND ".join(document["licenses"] or ()) or "unknown",
        "license_type": document["license_type"] or "",
        "mark_offsets": [mark["offset"] for mark in document["marks"]],
        "mark_tokens": [mark["token"] for mark in document["marks"]],
        "files": [
            {name: "" if value is None else value for name, value in file.items()}
            for file in document["files"]
        ],
    }
