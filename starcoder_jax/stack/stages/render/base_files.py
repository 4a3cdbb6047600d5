"""The files of a pull request: what is shown of them as they were, and how they changed."""

import dataclasses
from collections.abc import Mapping, Sequence

from starcoder_jax.stack.chance import fraction, integer
from starcoder_jax.stack.stages.render import values
from starcoder_jax.stack.stages.render.changes import (
    Change,
    changes,
    hexadecimal_fraction,
    hunks,
)
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.result import Part

# Limits of StarCoder2 for the files of pull requests.
_MAX_CHARACTERS = 1_000_000
_MAX_LINES = 100_000
_MAX_LINE_LENGTH = 1000
_MAX_MEAN_LINE_LENGTH = 100
_MIN_ALPHANUMERIC = 0.25
_MAX_HEXADECIMAL = 0.25

# Parts of the paths of files that programs write.
_DATA_FILES = {
    "YAML": ("pack", "lock", "yarn", "output", "swagger", "openapi"),
    "JSON": ("pack", "lock", "output"),
}
_DATA_EXTENSIONS = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}
# The share of all that is shown from which such a file is large.
_LARGE_SHARE = 0.5
_OMITTED = "[DIFFS OMITTED]"


@dataclasses.dataclass(frozen=True)
class BaseFile:
    """A file at the base of a pull request.

    Attributes:
        shown: the lines that are shown.
        skip: how many lines stand before these.
    """

    shown: str
    skip: int


def base_files(
    diffs: Sequence[Sequence[Mapping]], repository: str, number: int, config: RenderConfig
) -> dict[str, BaseFile]:
    """What is shown of the files that a pull request changes, by path.

    Files that it adds or deletes are not shown, nor are those that StarCoder2's limits exclude;
    StarCoder2 left out Markdown that is not English, too, which is not done here.

    Args:
        diffs: the files of each head (see `events`).
        repository: names the random choices, with `number`.
        number: of the pull request.
        config: thresholds.
    """
    spans: dict[str, tuple[int, int]] = {}
    contents: dict[str, list[str]] = {}
    languages: dict[str, str] = {}
    for diff in diffs:
        for file in filter(_is_shown, diff):
            path, base, _ = _of(file)
            found = _changes(file)
            if not found:
                continue
            contents.setdefault(path, base.split("\n"))
            languages.setdefault(path, _language(file, path))
            start, stop = spans.get(path, (found[0][0], 0))
            spans[path] = (min(start, found[0][0]), max(stop, found[-1][1]))
    files = {}
    for path, lines in contents.items():
        names = (repository, str(number), path)
        start, stop = spans[path]
        if fraction(*names, "whole file", seed=config.seed) < config.whole_file_rate:
            start, stop = 0, len(lines)
        else:
            above, below = (
                integer(*names, side, low=0, high=config.max_extra_lines, seed=config.seed)
                for side in ("above", "below")
            )
            start, stop = max(0, start - above), min(len(lines), stop + below)
        files[path] = BaseFile("\n".join(lines[start:stop]), start)
    total = sum(len(file.shown) for file in files.values())

    def is_sampled(path: str, file: BaseFile) -> bool:
        keywords = _DATA_FILES.get(languages[path])
        if keywords is None or not (
            any(keyword in path for keyword in keywords) or len(file.shown) > _LARGE_SHARE * total
        ):
            return True
        names = (repository, str(number), path)
        return fraction(*names, "data file", seed=config.seed) < config.data_file_rate

    return {path: file for path, file in files.items() if is_sampled(path, file)}


def render_diff(
    diff: Sequence[Mapping],
    files: Mapping[str, BaseFile],
    repository: str,
    number: int,
    config: RenderConfig,
) -> list[Part]:
    """A head's differences to the base, of the files that are shown."""
    parts: list[Part] = [("<pr_diff>", "" if diff else _OMITTED)]
    for file in filter(_is_shown, diff):
        path, base, head = _of(file)
        if path not in files:
            continue
        low, high = config.min_diff_context, config.max_diff_context + 1
        names = (repository, str(number), path, "context")
        context = integer(*names, low=low, high=high, seed=config.seed)
        parts.append(("<pr_file>", path))
        parts += [
            ("<pr_diff_hunk>", hunk)
            for hunk in hunks(
                base.split("\n"), head.split("\n"), _changes(file), context, files[path].skip
            )
        ]
    return parts


def _of(file: Mapping) -> tuple[str, str, str]:
    return tuple(values.text(file, name) for name in ("path", "base", "head"))


def _changes(file: Mapping) -> list[Change]:
    _, base, head = _of(file)
    return changes(base.split("\n"), head.split("\n"))


def _is_shown(file: Mapping) -> bool:
    path, base, head = _of(file)
    return bool(path and base and head) and _is_readable(base) and _is_readable(head)


def _is_readable(text: str) -> bool:
    if len(text) > _MAX_CHARACTERS:
        return False
    lines = text.split("\n")
    alphanumeric = sum(map(str.isalnum, text))
    return (
        len(lines) <= _MAX_LINES
        and max(map(len, lines)) <= _MAX_LINE_LENGTH
        and len(text) <= _MAX_MEAN_LINE_LENGTH * len(lines)
        and alphanumeric >= _MIN_ALPHANUMERIC * len(text)
        and hexadecimal_fraction(text) <= _MAX_HEXADECIMAL
    )


def _language(file: Mapping, path: str) -> str:
    _, dot, extension = path.rpartition(".")
    return values.text(file, "language") or _DATA_EXTENSIONS.get(f"{dot}{extension}", "")
