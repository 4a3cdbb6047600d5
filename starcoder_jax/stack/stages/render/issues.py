"""Issues: title, posts and closings, as StarCoder and StarCoder2 read them.

<issue_start>Title: ...
username_0: ...<issue_comment>username_1: ...<issue_closed>
"""

import dataclasses
from collections.abc import Sequence

from starcoder_jax.stack.stages.render import texts
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.events import Event, in_order, opening, without_edits
from starcoder_jax.stack.stages.render.result import Part, RejectedError, Rendered

_CUT = "[Truncated]"
_WITH_TEXT = ("opened", "edited", "reopened")


@dataclasses.dataclass(frozen=True)
class _Post:
    """A post, or a closing, whose text is None."""

    event: Event
    text: str | None


def render_issue(events: Sequence[Event], config: RenderConfig) -> Rendered:
    """An issue from its events.

    The steps and their order are StarCoder's: text of mail programs goes, long texts are cut, bots
    and calls of bots go, short issues and monologues are dropped, names of users are replaced.

    Raises:
        RejectedError: it is dropped.
    """
    ordered, unused = without_edits(in_order(list(events)))
    first = ordered[0] if ordered else events[0]
    if not (first.type == "issue" and first.action == "opened"):
        first = opening(first)
    versions = [it for it in ordered if it.type == "issue" and it.action in _WITH_TEXT]
    latest = versions[-1] if versions else first
    posts = [_Post(first, _cleaned(latest.text, config))]
    for event in ordered:
        if event.type == "comment" and (text := _cleaned(event.text, config)):
            posts.append(_Post(event, text))
        elif event.type == "issue" and event.action == "closed":
            posts.append(_Post(event, None))
        elif event is not first and event is not latest:
            unused[event.row] = "no text"
    posts, bots = _without_bots(posts)
    unused |= bots
    said = [post for post in posts if post.text is not None]
    if not said:
        raise RejectedError("bots only")
    size = sum(len(post.text) for post in said)
    if size < config.min_issue_characters:
        raise RejectedError("short issue")
    if len({post.event.user for post in posts}) < 2 and (
        size > config.max_single_user_characters or len(posts) > config.max_single_user_events
    ):
        raise RejectedError("monologue")
    names = texts.Pseudonyms(post.event.user for post in posts)
    parts: list[Part] = []
    for post in posts:
        if post.text is None:
            parts.append(("<issue_closed>", ""))
            continue
        text = f"{names.of(post.event.user)}: {names.replaced(post.text)}"
        if post is said[0]:
            title = f"Title: {names.replaced(latest.title)}\n"
            parts.insert(0, ("<issue_start>", title + text))
        else:
            parts.append(("<issue_comment>", text))
    return Rendered("issue", parts, f"issues/{first.number}", names.users, unused)


def _cleaned(text: str, config: RenderConfig) -> str:
    return texts.shortened(texts.without_mail(text), config.max_text_lines, _CUT)


def _without_bots(posts: Sequence[_Post]) -> tuple[list[_Post], dict[int, str]]:
    kept: list[_Post] = []
    unused = {}
    for index, post in enumerate(posts):
        if not post.event.is_bot:
            kept.append(post)
            continue
        unused[post.event.row] = "bot"
        # The opening is no call: without it, there would be no issue.
        before = posts[index - 1] if index > 1 else None
        is_kept = bool(kept) and kept[-1] is before
        text = before.text if before is not None and is_kept else None
        if text is not None and (text.startswith("/") or post.event.user in text):
            unused[kept.pop().event.row] = "call of a bot"
    return kept, unused
