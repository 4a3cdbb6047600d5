"""Commits to a single file, as StarCoder read them.

    <commit_before>old<commit_msg>subject<commit_after>new

A `commit_event` says `commit` (SHA-1), `subject`, `author`, `path`, and the file before (`old`) and
after (`new`) the commit.
"""

import re

from starcoder_jax.stack.chance import fraction, integer
from starcoder_jax.stack.stages.render import values
from starcoder_jax.stack.stages.render.changes import Change, changes
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.result import RejectedError, Rendered

BAD_SUBJECTS = frozenset(
    (
        *("readme", "update", "dummy", "updated", "debug", "test", "update readme"),
        *("update readme.md", "updated readme.md", "updated readme"),
    )
)
BAD_PARTS = ("auto commit", "update contributing", "<?xml")

_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+")
_DATA_FILES = (".json", ".yml", ".yaml", ".xml", ".html")
_SHORT_SUBJECT_WORDS = 5
_MAX_WORD_LENGTH = 20
_SMALL_CHANGE, _LARGE_CHANGE = 2, 200


def render_commit(content: bytes, repository: str, config: RenderConfig) -> Rendered:
    """A commit from its `commit_event`.

    Raises:
        RejectedError: it is dropped.
    """
    event = values.parsed(content)
    if config.style != "starcoder":
        raise RejectedError("no commits in this style")
    subject, path = values.text(event, "subject"), values.text(event, "path")
    old, new = values.text(event, "old"), values.text(event, "new")
    if not new:
        raise RejectedError("empty file")
    if len(old) >= config.max_commit_characters:
        raise RejectedError("large file")
    _check_subject(subject)
    names = (repository, values.text(event, "commit"), path)
    seed = config.seed
    if len(subject.split()) < _SHORT_SUBJECT_WORDS:
        _sample(config.short_subject_rate, "short subject", *names, seed=seed)
    if path.lower().endswith(_DATA_FILES):
        _sample(config.data_commit_rate, "data file", *names, seed=seed)
    before, after = old.split("\n"), new.split("\n")
    found = changes(before, after)
    if not found:
        raise RejectedError("no change")
    span = (found[0][0], found[-1][1], found[0][2], found[-1][3])
    if span[1] - span[0] <= _SMALL_CHANGE:
        _sample(config.small_commit_rate, "small change", *names, seed=seed)
    if span[1] - span[0] >= _LARGE_CHANGE:
        _sample(config.large_commit_rate, "large change", *names, seed=seed)
    if fraction(*names, "whole file", seed=seed) >= config.whole_file_rate:
        old, new = _excerpts(before, after, span, names, config)
    parts = [("<commit_before>", old), ("<commit_msg>", subject), ("<commit_after>", new)]
    author = values.text(event, "author")
    return Rendered("commit", parts, authors=[author] if author else [])


def _check_subject(subject: str) -> None:
    lower = subject.lower().strip()
    words = subject.split()
    if not words:
        raise RejectedError("empty subject")
    if lower in BAD_SUBJECTS or any(part in lower for part in BAD_PARTS):
        raise RejectedError("bad subject")
    if _VERSION.match(lower):
        raise RejectedError("version number")
    if len(subject) > _MAX_WORD_LENGTH * len(words):
        raise RejectedError("long words")


def _sample(rate: float, what: str, *names: str, seed: int) -> None:
    if fraction(*names, what, seed=seed) >= rate:
        raise RejectedError(f"{what}, not sampled")


def _excerpts(
    before: list[str], after: list[str], span: Change, names: tuple[str, ...], config: RenderConfig
) -> tuple[str, str]:
    """What changed in both versions, and the same number of lines around it."""
    above, below = (
        integer(*names, side, low=0, high=config.max_extra_lines, seed=config.seed)
        for side in ("above", "below")
    )
    return tuple(
        "\n".join(version[max(0, start - above) : stop + below])
        for version, start, stop in ((before, *span[:2]), (after, *span[2:]))
    )
