"""Pull requests: description, files, diffs and discussion, as StarCoder2 read them.

    <pr>Title: ...
    username_0: description<pr_status>opened<repo_name>owner/name
    <pr_base><pr_file>path<pr_base_code>...<pr_diff><pr_file>path<pr_diff_hunk>...
    <pr_comment>username_1: text<pr_event_id>1 ... <pr>username_1<pr_status>closed<pr_is_merged>True

without line feeds between the blocks. Files and diffs are there where the events carry them (see
`events`); a diff is shown again before the first event that refers to another head.
"""

import dataclasses
from collections.abc import Sequence

from starcoder_jax.stack.chance import fraction
from starcoder_jax.stack.stages.render import texts, values
from starcoder_jax.stack.stages.render.base_files import BaseFile, base_files, render_diff
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.events import Event, in_order, opening, without_edits
from starcoder_jax.stack.stages.render.result import Part, RejectedError, Rendered, length

_CUT = "[TRUNCATED]"
_OMITTED = "[OMITTED]"
_TITLE_KEYWORDS = ("depend", "release")
# A service whose comments are advertisements.
_ADVERTISEMENT = "Qwiet"
_SHOWN_ACTIONS = ("opened", "edited", "reopened", "closed")


@dataclasses.dataclass(frozen=True)
class _Discussion:
    """What the rendering of an event refers to."""

    number: int
    repository: str
    names: texts.Pseudonyms
    # By SHA-1 of the head: the files as an event carries them.
    diffs: dict[str, list]
    files: dict[str, BaseFile]
    config: RenderConfig


def render_pull_request(
    events: Sequence[Event], repository: str, num_pull_requests: int, config: RenderConfig
) -> Rendered:
    """A pull request from its events.

    Args:
        events: of the pull request and its issue.
        repository: of the base.
        num_pull_requests: that are known of the repository.
        config: thresholds.

    Raises:
        RejectedError: it is dropped.
    """
    if config.style != "starcoder2":
        raise RejectedError("no pull requests in this style")
    number = events[0].number
    ordered, unused = without_edits(in_order(list(events)))
    of_issue = {event.row for event in ordered if event.type == "issue"}
    unused |= {row: "no text" for row in of_issue}
    ordered = [event for event in ordered if event.row not in of_issue]
    about = [event for event in ordered if event.type != "comment"]
    if not about:
        raise RejectedError("comments only")
    if not any(event.action == "opened" for event in about if event.type == "pull_request"):
        ordered = in_order([opening(about[0]), *ordered])
    diffs = _diffs(about)
    _check(ordered, about, diffs, config)
    if config.sample_pull_requests:
        draw = fraction(repository, str(number), "sample", seed=config.seed)
        if draw >= _sampling_rate(num_pull_requests):
            raise RejectedError("pull request, not sampled")
    names = texts.Pseudonyms(event.user for event in ordered)
    files = base_files(list(diffs.values()), repository, number, config)
    if config.require_diff and not files:
        raise RejectedError("no diff")
    discussion = _Discussion(
        number, repository, names, {head: diff for (_, head), diff in diffs.items()}, files, config
    )
    parts, silent = _parts(ordered, discussion)
    size = length(parts)
    if size < config.min_pull_request_characters:
        raise RejectedError("short pull request")
    if size > config.max_pull_request_characters:
        raise RejectedError("long pull request")
    return Rendered("pull_request", parts, f"pull/{number}", names.users, unused | silent)


def _sampling_rate(num_pull_requests: int) -> float:
    if num_pull_requests <= 1000:
        return 0.8007 - 0.0007 * num_pull_requests
    return 100 / num_pull_requests


def _diffs(about: Sequence[Event]) -> dict[tuple[str, str], list]:
    """Files by the commits of base and head, in the order of the events."""
    return {event.commits: event.files for event in about if event.files is not None}


def _check(
    ordered: Sequence[Event], about: Sequence[Event], diffs: dict, config: RenderConfig
) -> None:
    first = next(it for it in ordered if it.type == "pull_request" and it.action == "opened")
    if first.is_bot:
        raise RejectedError("opened by a bot")
    if not first.text.strip():
        raise RejectedError("short description")
    comments = [event for event in ordered if event.type != "pull_request"]
    if comments and all(event.is_bot for event in comments):
        raise RejectedError("bots only")
    merged = any(values.at(event.subject, "merged") is True for event in about)
    approved = any(values.text(event.item, "state").lower() == "approved" for event in about)
    if config.require_approval and not (merged or approved):
        raise RejectedError("neither approved nor merged")
    # A merge moves the base once more.
    bases = {event.commits[0] for event in about if event.commits[0]}
    if len(bases) > (2 if merged else 1):
        raise RejectedError("several bases")
    if config.require_diff:
        known = [event.commits for event in about if all(event.commits)]
        if not known or known[0] not in diffs:
            raise RejectedError("no diff")


def _parts(ordered: Sequence[Event], about: _Discussion) -> tuple[list[Part], dict[int, str]]:
    parts: list[Part] = []
    unused: dict[int, str] = {}
    head, opened = "", False
    for event in ordered:
        is_opening = event.type == "pull_request" and event.action in ("opened", "reopened")
        try:
            shown = _event(event, about, first=not opened)
        except RejectedError as error:
            if event.type == "pull_request" and event.action == "opened":
                raise
            unused[event.row] = str(error)
            continue
        if is_opening and not opened:
            parts += shown
            if about.files:
                parts.append(("<pr_base>", ""))
            for path, file in about.files.items():
                parts += [("<pr_file>", path), ("<pr_base_code>", file.shown)]
            shown = []
            opened = True
        if opened and event.type != "comment" and event.commits[1] not in ("", head):
            head = event.commits[1]
            if head in about.diffs:
                parts += render_diff(
                    about.diffs[head], about.files, about.repository, about.number, about.config
                )
        parts += shown
    return parts, unused


def _event(event: Event, about: _Discussion, first: bool) -> list[Part]:
    user = about.names.of(event.user)
    if event.type == "comment":
        text = _text(event, about)
        return [("<pr_comment>", f"{user}: {text}"), *_number("<pr_event_id>", event.id)]
    if event.type == "review":
        text = _text(event, about, short=True)
        return [
            ("<pr_review>", f"{user}: {text}\n" if text else f"{user}\n"),
            *_number("<pr_event_id>", event.id),
            ("<pr_review_state>", values.text(event.item, "state").lower()),
        ]
    if event.type == "review_comment":
        return _review_comment(event, about, user)
    if event.action not in _SHOWN_ACTIONS:
        raise RejectedError("no text")
    shown = user
    if event.action != "closed":
        shown = f"Title: {_title(event, about)}\n{user}: {_text(event, about)}"
    parts = [("<pr>", shown), ("<pr_status>", event.action)]
    if first:
        parts.append(("<repo_name>", about.repository))
    if event.action == "closed":
        merged = values.at(event.subject, "merged") is True
        parts.append(("<pr_is_merged>", str(merged)))
    return parts


def _review_comment(event: Event, about: _Discussion, user: str) -> list[Part]:
    text = _text(event, about)
    path = values.text(event.item, "path")
    hunk = values.text(event.item, "diff_hunk")
    if len(hunk) > about.config.max_hunk_characters:
        hunk = _OMITTED
    return [
        ("<pr_review_comment>", ""),
        *_number("<pr_event_id>", event.id),
        *(
            part
            for token, name in (
                ("<pr_in_reply_to_review_id>", "pull_request_review_id"),
                ("<pr_in_reply_to_comment_id>", "in_reply_to_id"),
            )
            for part in _number(token, values.number(event.item, name))
        ),
        ("<pr_file>", path),
        *_number("<pr_diff_hunk_comment_line>", values.number(event.item, "original_position")),
        ("<pr_diff_hunk>", hunk),
        ("<pr_comment>", f"{user}: {text}"),
    ]


def _number(token: str, value: int | None) -> list[Part]:
    return [] if value is None else [(token, str(value))]


def _title(event: Event, about: _Discussion) -> str:
    title = event.title
    if len(title) < about.config.min_title_characters:
        raise RejectedError("short title")
    if any(keyword in title.lower() for keyword in _TITLE_KEYWORDS):
        raise RejectedError("dependency or release")
    return about.names.replaced(title[: about.config.max_title_characters])


def _text(event: Event, about: _Discussion, short: bool = False) -> str:
    text = texts.without_mail(event.text)
    if _ADVERTISEMENT in text:
        raise RejectedError("advertisement")
    if "codecov" in text.lower():
        return f"{_OMITTED}CodeCov"
    text = texts.without_comments(text).strip()
    text = texts.shortened(text, about.config.max_text_lines, _CUT)
    if len(text) < about.config.min_text_characters and not short:
        is_opening = event.type == "pull_request"
        raise RejectedError("short description" if is_opening else "short comment")
    return about.names.replaced(text[: about.config.max_text_characters])
