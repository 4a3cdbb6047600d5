"""Deduplication: exact, then near by MinHash, with every candidate verified.

Of equal or similar rows of one kind the best one stays (StarCoder2, section 6.1, and as
configured). Similar are two rows whose sets of shingles have a Jaccard similarity of at least the
threshold; which are compared at all, MinHash decides. Rows that are linked by similar ones count as
similar. So a row that is dropped need not itself be similar to the one that stays. What is kept
depends on the rows alone, not on shards, processes or order.

Rows of fewer tokens than a shingle has are no near duplicates of anything: The Stack v1 removes
them, here they stay.
"""

import dataclasses

from starcoder_jax.stack.record import KINDS
from starcoder_jax.stack.runner.steps import Step
from starcoder_jax.stack.stages.dedup import exact, near
from starcoder_jax.stack.stages.dedup.bands import optimal_bands
from starcoder_jax.stack.stages.dedup.keep import PREFERENCES


@dataclasses.dataclass(frozen=True)
class DedupConfig:
    """How duplicates are found, and which of them stays.

    Attributes:
        exact: whether rows with the same content are dropped first.
        threshold: the Jaccard similarity of near duplicates; None: they are not looked for.
        num_hashes: values of a signature.
        bands, rows: how a signature is cut up to find candidates; None: as is optimal for the
            threshold (`bands.optimal_bands`).
        ngram: tokens of a shingle.
        keep: what decides which one stays: the more permissive license, more stars, more forks, the
            later revision. Between equals, the least repository and path does.
        kinds: of the rows that take part; StarCoder2 did not deduplicate questions (table 3).
    """

    exact: bool = True
    threshold: float | None = 0.7
    num_hashes: int = 256
    bands: int | None = None
    rows: int | None = None
    ngram: int = 5
    keep: tuple[str, ...] = tuple(PREFERENCES)
    kinds: tuple[str, ...] = (
        *("file", "notebook_script", "notebook_structured", "issue", "pull_request", "commit"),
        *("kaggle", "ir", "documentation"),
    )

    def __post_init__(self):
        if not self.exact and self.threshold is None:
            raise ValueError("dedup: set exact, or threshold, or leave the stage out")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"dedup.threshold must be above 0 and at most 1: got {self.threshold}")
        if self.num_hashes < 1 or self.ngram < 1:
            raise ValueError(
                f"dedup: num_hashes {self.num_hashes} and ngram {self.ngram} must be positive"
            )
        if (self.bands is None) != (self.rows is None):
            raise ValueError("dedup: set both bands and rows, or neither")
        if self.bands is not None and not (
            min(self.bands, self.rows) > 0 and self.bands * self.rows <= self.num_hashes
        ):
            raise ValueError(
                f"dedup: {self.bands} bands of {self.rows} rows must be positive and need "
                f"{self.bands * self.rows} num_hashes: got {self.num_hashes}"
            )
        if unknown := set(self.keep) - set(PREFERENCES):
            raise ValueError(
                f"dedup.keep: {', '.join(sorted(unknown))} unknown: there are "
                f"{', '.join(PREFERENCES)}"
            )
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(
                f"dedup.kinds: {', '.join(sorted(unknown))} unknown: there are {', '.join(KINDS)}"
            )


def steps(config: DedupConfig, source: str, partitions: int) -> list[Step]:
    """The steps of the stage; the last one is called "dedup".

    Args:
        config: the stage's settings.
        source: a step that writes `RECORD`s.
        partitions: how many shards the source has, and each step of this stage but the one that
            finds components, which has one.
    """
    result: list[Step] = []
    if config.exact:
        name = "dedup" if config.threshold is None else "dedup.exact"
        result += exact.steps(source, name, config.kinds, config.keep, partitions)
        source = name
    if config.threshold is not None:
        bands, rows = config.bands, config.rows
        if bands is None:
            bands, rows = optimal_bands(config.threshold, config.num_hashes)
        result += near.steps(
            source,
            kinds=config.kinds,
            preferences=config.keep,
            partitions=partitions,
            threshold=config.threshold,
            num_hashes=config.num_hashes,
            bands=bands,
            rows=rows,
            ngram=config.ngram,
        )
    return result
