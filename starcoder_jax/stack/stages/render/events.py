"""Events of GitHub: rows of GHArchive, and payloads of webhooks, in one form.

GHArchive writes `{"type", "actor", "repo", "payload", "created_at"}`; a payload on its own has
`action`, `repository`, `sender` and what it is about. Beside these, an event of a pull request may
carry what GitHub does not send: the files that differ between the commits `pull_request.base.sha`
and `pull_request.head.sha`, as

    "files": [{"path": "a.py", "base": "old text", "head": "new text", "language": "Python"}, ...]

where `language` may be missing, and `base` or `head` is null for a file that there was not.
"""

import dataclasses
from collections.abc import Mapping

from starcoder_jax.stack.stages.render import texts, values
from starcoder_jax.stack.stages.render.result import RejectedError

# What GitHub calls users whose account is gone.
_NOBODY = "ghost"


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that somebody did to an issue or a pull request.

    Attributes:
        row: of the table it was read from; -1: of none.
        type: "issue", "comment", "pull_request", "review" or "review_comment".
        action: such as "opened", "created" or "closed".
        user: who did it, or wrote what it is about.
        is_bot: whether that is a program.
        time: as ISO 8601, all in the same zone.
        number: of the issue or pull request.
        subject: the issue or pull request, as it was then.
        item: the comment or review; empty if it is about none.
        files: see above; None if there are none.
    """

    row: int
    type: str
    action: str
    user: str
    is_bot: bool
    time: str
    number: int
    subject: Mapping
    item: Mapping
    files: list | None

    @property
    def text(self) -> str:
        """The comment or review; else what the issue or pull request says."""
        return values.text(self.item if self.item else self.subject, "body")

    @property
    def title(self) -> str:
        """Of the issue or pull request."""
        return values.text(self.subject, "title").replace("\n", " ")

    @property
    def id(self) -> int | None:
        """Of the comment or review."""
        return values.number(self.item, "id")

    @property
    def in_pull_request(self) -> bool:
        """Whether it belongs to a pull request: those have an issue, too."""
        is_issue = self.type in ("issue", "comment")
        return not is_issue or values.at(self.subject, "pull_request") is not None

    @property
    def commits(self) -> tuple[str, str]:
        """SHA-1 of a pull request's base and head; empty where not said."""
        return (
            values.text(self.subject, "base", "sha"),
            values.text(self.subject, "head", "sha"),
        )


def parsed(content: bytes, row: int) -> Event:
    """The event that a JSON object says.

    Raises:
        RejectedError: it is no event of an issue or pull request.
    """
    whole = values.parsed(content)
    payload = values.at(whole, "payload")
    payload = payload if isinstance(payload, Mapping) else whole
    type, subject, item = _about(payload)
    number = values.number(subject, "number")
    if type is None or number is None:
        raise RejectedError("not an event of an issue or pull request")
    action = values.text(payload, "action").lower()
    if type == "review" and action in ("", "submitted"):
        action = "created"
    actor = values.at(whole, "actor") or values.at(whole, "sender")
    author = values.at(item or subject, "user")
    user = author if item or action in ("opened", "") else actor or author
    return Event(
        row=row,
        type=type,
        action=action,
        user=values.text(user, "login") or _NOBODY,
        is_bot=_is_bot(user),
        time=values.text(whole, "created_at") or _time(action, subject, item),
        number=number,
        subject=subject,
        item=item,
        files=_files(whole, payload),
    )


def opening(event: Event) -> Event:
    """The opening of an issue or pull request of which only a later event is known; row -1."""
    user = values.at(event.subject, "user")
    return dataclasses.replace(
        event,
        row=-1,
        type="pull_request" if event.type.startswith(("pull", "review")) else "issue",
        action="opened",
        user=values.text(user, "login") or _NOBODY,
        is_bot=_is_bot(user),
        time=values.text(event.subject, "created_at"),
        item={},
    )


def in_order(events: list[Event]) -> list[Event]:
    """By time; of those at the same time the opening is first and the closing last."""
    ranks = {"opened": 0, "closed": 2}
    return sorted(
        events,
        key=lambda event: (event.time, ranks.get(event.action, 1), event.id or 0, event.row),
    )


def without_edits(events: list[Event]) -> tuple[list[Event], dict[int, str]]:
    """Comments and reviews once each, where they were first made and as they were last.

    Args:
        events: in order.

    Returns:
        The events, and why rows are unused.
    """
    last = {(event.type, event.id): event for event in events if event.id is not None}
    kept, seen, unused = [], set(), {}
    for event in events:
        key = (event.type, event.id)
        if event.id is None:
            kept.append(event)
        elif last[key].action == "deleted":
            unused[event.row] = "deleted"
        else:
            if key not in seen:
                kept.append(dataclasses.replace(last[key], time=event.time))
            if event is not last[key]:
                unused[event.row] = "edited"
            seen.add(key)
    return kept, unused


def _about(payload: Mapping) -> tuple[str | None, Mapping, Mapping]:
    pull_request, issue, comment, review = (
        found if isinstance(found := payload.get(name), Mapping) else {}
        for name in ("pull_request", "issue", "comment", "review")
    )
    if pull_request and review:
        return "review", pull_request, review
    if pull_request:
        return "review_comment" if comment else "pull_request", pull_request, comment
    if issue:
        return "comment" if comment else "issue", issue, comment
    return None, {}, {}


def _is_bot(user: object) -> bool:
    kind = values.text(user, "type")
    return kind not in ("", "User", "Organization") or texts.is_bot(values.text(user, "login"))


def _time(action: str, subject: Mapping, item: Mapping) -> str:
    if item:
        names = ("updated_at",) if action == "edited" else ("submitted_at", "created_at")
        return next(filter(None, (values.text(item, name) for name in names)), "")
    name = {"opened": "created_at", "closed": "closed_at"}.get(action, "updated_at")
    return values.text(subject, name)


def _files(whole: Mapping, payload: Mapping) -> list | None:
    found = whole.get("files", payload.get("files"))
    return (
        [file for file in found if isinstance(file, Mapping)] if isinstance(found, list) else None
    )
