"""Arms that differ in how their source code was curated, each with a corpus of its own.

A document must be the same text in all of these corpora: whether it is held out depends on its text
alone, so that no arm trains on what another one is measured on.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

from starcoder_jax import gin_files
from starcoder_jax.stack.config import StackRecipe

_TASK = "stack"
_SECTIONS = frozenset(field.name for field in dataclasses.fields(StackRecipe))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What `stack run` makes for one or several arms.

    Attributes:
        folder: of all its stages.
        arguments: those of `stack run`.
    """

    folder: pathlib.Path
    arguments: tuple[str, ...]

    @property
    def training(self) -> list[str]:
        """The changes of a recipe that trains on it."""
        source = f"stack:{self.folder / 'published'}"
        return [f"data.sources={ {_TASK: source}!r}", f"data.rates={ {_TASK: 1.0}!r}"]


def separate(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Changes of the training, and those of the curation, told apart by their sections."""
    curation = [change for change in changes if change.partition(".")[0] in _SECTIONS]
    return [change for change in changes if change not in curation], curation


def make_corpus(files: Sequence[str], changes: Sequence[str], workdir: pathlib.Path) -> Corpus:
    """Reads a recipe of `stack`.

    Args:
        files: its gin files.
        changes: "section.field=value".
        workdir: of the ablation; corpora go there, one for all arms whose recipe is the same.

    Raises:
        ValueError: the recipe is wrong, or a file would not be the same document in all arms.
    """
    recipe = gin_files.load(StackRecipe, files, changes)
    if recipe.format.style != "starcoder" or recipe.format.metadata_rate != 0:
        raise ValueError(
            "an ablation of the curation needs format.style='starcoder' and "
            "format.metadata_rate=0.0: documents that are held out must be the same in all arms"
        )
    settings = dataclasses.asdict(recipe)
    del settings["runner"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = workdir / "corpora" / digest
    arguments = (
        *(f"--gin_file={file}" for file in files),
        *(f"--gin.{change}" for change in changes),
        f"--folder={folder}",
    )
    return Corpus(folder, arguments)
