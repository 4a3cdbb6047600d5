"""What to collect, and how much of it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Settings of `collect` (gin section `collect`).

    Attributes:
        sources: URIs; `starcoder_jax.stack.stages.collect` says which there are.
        shards: how many to write. A repository is never split between shards.
        max_file_bytes: files with more bytes are dropped. Software Heritage's files of 10 MB and
            more were left out of StarCoder2's corpus (arXiv:2402.19173, section 2).
        max_depth: files below more folders than that are dropped, as in StarCoder2's corpus.
        max_repository_bytes: of a folder, git repository or archive, decompressed; what is read
            after that many bytes is dropped.
        max_repository_files: likewise, files and folders.
        max_ratio: decompressed bytes of an archive by its bytes on disk; what is read after it has
            grown that much is dropped. Source code compresses to about a fifth.
        max_commits: how many revisions of a git repository's first-parent history, the newest
            first, become rows of kind "commit_event" if they change a single file.

    Raises:
        ValueError: a number is too small.
    """

    sources: tuple[str, ...] = ()
    shards: int = 16
    max_file_bytes: int = 10_000_000
    max_depth: int = 64
    max_repository_bytes: int = 16 * 2**30
    max_repository_files: int = 1_000_000
    max_ratio: float = 200.0
    max_commits: int = 0

    def __post_init__(self):
        if isinstance(self.sources, str):
            raise ValueError(f"collect.sources is a tuple of URIs: write ({self.sources!r},)")
        for name in ("shards", "max_file_bytes", "max_depth", "max_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"collect.{name} must be at least 1, is {getattr(self, name)}")
        for name in ("max_repository_bytes", "max_repository_files", "max_commits"):
            if getattr(self, name) < 0:
                raise ValueError(f"collect.{name} must not be negative, is {getattr(self, name)}")
