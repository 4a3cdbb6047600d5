"""What a corpus is made of, as plain values that a gin file can bind."""

import dataclasses
import re
from collections.abc import Mapping

# A task's name is also a folder of the token store and part of its name in seqio's registry.
_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")
_SCHEMES = ("environment", "folder", "jsonl", "parquet", "stack")
_TOKENIZER_KINDS = ("bpe", "sentencepiece")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The documents to train on and the proportions to draw them in.

    Attributes:
        sources: Task name to URI: `environment:` (the Python code installed on this machine),
            `folder:PATH`, `jsonl:GLOB`, `parquet:GLOB`, or `stack:DIRECTORY` and
            `stack:DIRECTORY?COMPONENT,...` of a published corpus (`data.published`).
        rates: Task name to its rate in the mixture, counted in tokens. Rates need not sum to 1;
            tasks without a rate are prepared, but not trained on.
        directory: Where the token store lies; None means `data` in the working directory.
        extensions: File name extensions, with their dot, that `environment:` and `folder:` read.
        max_source_bytes: Keeps a random sample of this many bytes of each source; None keeps all.
        heldout_fraction: Fraction of the documents that are held out for validation.
        read_workers: Worker processes per host that read batches; 0 reads in threads instead.

    Raises:
        ValueError: A value is out of range, or a rate belongs to no source.
    """

    sources: Mapping[str, str]
    rates: Mapping[str, float]
    directory: str | None = None
    extensions: tuple[str, ...] = (".py",)
    max_source_bytes: int | None = None
    heldout_fraction: float = 0.01
    read_workers: int = 0

    def __post_init__(self):
        # gin hands over lists where a recipe writes [...]; equal recipes must compare equal.
        object.__setattr__(self, "extensions", tuple(self.extensions))
        if not self.sources:
            raise ValueError("sources is empty: name one, such as {'python': 'environment:'}")
        for task, uri in self.sources.items():
            _check_source(task, uri)
        _check_rates(self.rates, self.sources)
        for extension in self.extensions:
            if not re.fullmatch(r"\.[^./\\]+(\.[^./\\]+)*", extension):
                raise ValueError(f"extension {extension!r} must start with a dot, such as '.py'")
        if self.max_source_bytes is not None and self.max_source_bytes <= 0:
            raise ValueError(
                f"max_source_bytes is {self.max_source_bytes}: it must be positive, or None"
            )
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(
                f"heldout_fraction is {self.heldout_fraction}: it must be at least 0 and below 1"
            )
        if self.read_workers < 0:
            raise ValueError(f"read_workers is {self.read_workers}: it must not be negative")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary to tokenize with: one that exists, or one to train on the corpus.

    Attributes:
        path: A `tokenizer.json`, a `*.model`, or a directory that holds one; None trains one.
        kind: Kind of vocabulary to train, "bpe" or "sentencepiece"; unused where `path` is given.
        vocab_size: Number of ids to train; unused where `path` is given.
        train_bytes: Bytes of training documents to learn from; unused where `path` is given.

    Raises:
        ValueError: A value is out of range.
    """

    path: str | None = None
    kind: str = "bpe"
    vocab_size: int = 49152
    train_bytes: int = 30_000_000

    def __post_init__(self):
        if self.kind not in _TOKENIZER_KINDS:
            raise ValueError(
                f"tokenizer kind {self.kind!r} is unknown: use {' or '.join(_TOKENIZER_KINDS)}"
            )
        if self.vocab_size <= 0:
            raise ValueError(f"vocab_size is {self.vocab_size}: it must be positive")
        if self.train_bytes <= 0:
            raise ValueError(f"train_bytes is {self.train_bytes}: it must be positive")


def _check_source(task: str, uri: str) -> None:
    if not _TASK_NAME.fullmatch(task):
        raise ValueError(
            f"source name {task!r} must be letters, digits, '_' and '.', and not start with '.'"
        )
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _SCHEMES:
        known = ", ".join(f"{name}:" for name in _SCHEMES)
        raise ValueError(f"source {task!r} has the URI {uri!r}: it must start with one of {known}")
    if scheme == "environment" and rest:
        raise ValueError(f"source {task!r}: nothing may follow 'environment:', but {rest!r} does")
    if scheme != "environment" and not rest:
        raise ValueError(f"source {task!r}: a path must follow '{scheme}:'")


def _check_rates(rates: Mapping[str, float], sources: Mapping[str, str]) -> None:
    if not rates:
        raise ValueError(f"rates is empty: give one to at least one of {', '.join(sources)}")
    for task, rate in rates.items():
        if task not in sources:
            raise ValueError(f"rate of unknown source {task!r}: there are {', '.join(sources)}")
        if not 0 < rate < float("inf"):
            raise ValueError(
                f"rate of {task!r} is {rate}: it must be positive; leave out what is not wanted"
            )
