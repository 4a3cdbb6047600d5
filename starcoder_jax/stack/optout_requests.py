"""Makes a ledger of the requests that people wrote as issues, such as bigcode-project/opt-out-v2's.

Only what is certain becomes an entry: names in the lists of the forms, where the account that wrote
the request is theirs. Everything else that was written is listed for a person to read: other
people's accounts, prose, and whole requests that make exceptions. So is what a ledger cannot say,
such as a user of Stack Overflow.

Read are JSON, or JSON Lines, of issues as GitHub's API gives them (`number`, `body`, `created_at`,
`html_url`, `user.login`), and lists that a person has decided on already (`issue`, `author`,
`optout_owners`, `optout_repos`).
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from starcoder_jax.stack.stages.optout import Entry, ledger_line, ledger_text

# What GitHub allows. Lines are matched whole, so that there is little to go back over.
_LOGIN = re.compile(r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}-?")
_REPOSITORY = re.compile(r"([A-Za-z0-9-]{1,40})/([A-Za-z0-9._-]{1,100}?)(?:\.git)?/?")
_PREFIX = re.compile(r"https?://(?:www\.)?github\.com/|@")
_BULLET = re.compile(r"[-*+•]\s*(?:\[[ xX]\]\s*)?|\d{1,4}[.)]\s+")
_LINK = re.compile(r"\[([^\[\]]{1,300})\](?:\([^()]{0,500}\))?")
_HEADING = re.compile(r"#{1,6}\s*")
_MAX_LINE = 1000

# Lists of the old forms follow a sentence, those of the new form a heading.
_OLD_LIST = re.compile(
    r"i request that the following data is removed from .{0,40}the stack.{0,40}:", re.IGNORECASE
)
_NEW_LISTS = {
    "accounts and organizations to remove entirely": "accounts",
    "specific repositories to remove": "repositories",
    "optional - your relationship to what you listed": "relationship",
    "optional - a link that helps confirm this is you/yours": "proof",
    "anything else? (optional)": "notes",
}
_EXCEPTIONS = re.compile(
    r"\b(except|exception|exclud\w{0,5}|other than|apart from|keep|unless|do not remove|"
    r"don't remove|not opt|withdraw|cancel|revoke|ignore this)\b",
    re.IGNORECASE,
)
_NOTHING = ("", "no response", "n/a", "none", "...", "…")
# A user may be called so, but whoever writes it means something else.
_NOT_NAMES = (
    "all",
    "any",
    "every",
    "everything",
    "none",
    "no",
    "na",
    "yes",
    "me",
    "mine",
    "username",
)
_RESOURCES = {
    "commits": "commits",
    "commit": "commits",
    "github issue": "issues",
    "github issues": "issues",
}
# What stands in the forms themselves.
_NOTE = re.compile(r"_?note_?: if you don't want all (resources|repositories) .*", re.IGNORECASE)
_RELATIONSHIP = re.compile(
    r"(?:[-*] \[[ x]\] )?(?:these are my own personal account|i am an owner or admin of|"
    r"i am a maintainer / core contributor of).*",
    re.IGNORECASE,
)
_STACK_OVERFLOW_FORM = "stackoverflow: <insert_stackoverflow_username_here>"


@dataclasses.dataclass(frozen=True)
class Question:
    """Something in a request that a person has to decide on.

    Attributes:
        reference: of the request.
        author: the account that wrote it.
        line: what is written there; may be of any content.
        reason: why it is not certain.
    """

    reference: str
    author: str
    line: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Request:
    """What came of a request: entries that are certain, and questions."""

    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]


def write_ledger(
    sources: Sequence[str | pathlib.Path], ledger: str | pathlib.Path, questions: str | pathlib.Path
) -> tuple[int, int]:
    """Reads requests and writes two files of JSON Lines, a ledger and the questions.

    Args:
        sources: files of requests, see above.
        ledger: written anew, sorted and without repeats.
        questions: written anew, in the order of the requests: `Question`s.

    Returns:
        How many entries and questions there are.

    Raises:
        ValueError: a source cannot be read, or has something that is no request.
    """
    requests = [request for source in sources for request in _requests(pathlib.Path(source))]
    entries = sorted({entry for request in requests for entry in request.entries}, key=ledger_line)
    asked = [question for request in requests for question in request.questions]
    pathlib.Path(ledger).write_text(ledger_text(entries), encoding="utf-8")
    lines = [json.dumps(dataclasses.asdict(question)) + "\n" for question in asked]
    pathlib.Path(questions).write_text("".join(lines), encoding="utf-8")
    return len(entries), len(asked)


def parse(row: object) -> Request:
    """Reads a request.

    Args:
        row: an issue of GitHub's API, or a line of a list that a person has decided on.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if "optout_owners" in row or "optout_repos" in row:
        return _decided(row)
    try:
        author, body = row["user"]["login"], row["body"] or ""
        reference = str(row.get("html_url") or f"issue {row['number']}")
        date = str(row["created_at"])[:10] if row.get("created_at") else None
        reader = _Reader(author.lower(), date, reference)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a request lacks a field of an issue: {error}") from error
    if row.get("pull_request"):
        return reader.refused(body, "a pull request, not a request")
    return reader.read(body)


class _Reader:
    """Goes through the lines of one request."""

    def __init__(self, author: str, date: str | None, reference: str):
        self._author = author
        self._about = {"date": date, "reference": reference}
        self._entries: list[Entry] = []
        self._questions: list[Question] = []
        self._resources: dict[str, str] = {}

    def read(self, body: str) -> Request:
        place = "before"
        for line in map(str.strip, body.split("\n")):
            text = _plain(line)
            heading = _HEADING.sub("", line, count=1).strip().rstrip(":").lower()
            if len(line) > _MAX_LINE:
                self._ask(line[:_MAX_LINE], "a very long line")
            elif heading in _NEW_LISTS:
                place = _NEW_LISTS[heading]
            elif _OLD_LIST.fullmatch(line):
                place = "list"
            elif _says_nothing(place, line, text):
                continue
            elif place == "accounts":
                self._account(text)
            elif place == "repositories":
                self._repository(text)
            elif place == "list" and _BULLET.match(line):
                self._item(text)
            else:
                place = "before" if place == "list" else place
                self._ask(text, "prose")
        self._finish_resources()
        if any(_EXCEPTIONS.search(question.line) for question in self._questions):
            return self.refused(body, "the request seems to make an exception")
        if not self._entries and not self._questions:
            return self.refused(body, "nothing is named")
        return Request(tuple(self._entries), tuple(self._questions))

    def refused(self, body: str, reason: str) -> Request:
        """Nothing is certain."""
        reference = self._about["reference"]
        return Request((), (Question(reference, self._author, body[:_MAX_LINE], reason),))

    def _account(self, text: str) -> None:
        name = _PREFIX.sub("", text, count=1).rstrip("/")
        if not _LOGIN.fullmatch(name) or name.lower() in _NOT_NAMES:
            self._ask(text, "not the name of an account")
        elif name.lower() != self._author:
            self._ask(text, "another account than the one that wrote the request")
        else:
            self._add("owner", name)

    def _repository(self, text: str) -> None:
        match = _REPOSITORY.fullmatch(_PREFIX.sub("", text, count=1))
        if text.lower() == "all" and self._has_owner():
            return
        if not match:
            self._ask(text, "not the name of a repository")
        elif match[1].lower() != self._author:
            self._ask(text, "a repository of another account than the one that wrote the request")
        else:
            self._add("repository", f"{match[1]}/{match[2]}")

    def _item(self, text: str) -> None:
        """An item of the old forms' list; they say what "all" means."""
        lower = text.lower()
        if lower == "all":
            self._add("owner", self._author)
        elif lower in _RESOURCES:
            self._resources[_RESOURCES[lower]] = text
        elif lower.endswith(" related to:") and lower[: -len(" related to:")] in _RESOURCES:
            self._resources.setdefault("related", text)
        elif lower != _STACK_OVERFLOW_FORM:
            self._repository(text)

    def _finish_resources(self) -> None:
        """What "commits" and "issues" mean is certain if both are asked for, or all is."""
        asked = {"commits", "issues"} & set(self._resources)
        repositories = any(entry.kind == "repository" for entry in self._entries)
        if self._has_owner():
            return
        if len(asked) == 2:
            self._add("author", self._author)
        elif asked:
            self._ask(self._resources[asked.pop()], "a ledger has commits and issues together")
        elif "related" in self._resources and not repositories:
            self._ask(self._resources["related"], "related to what?")

    def _has_owner(self) -> bool:
        return any(entry.kind == "owner" for entry in self._entries)

    def _add(self, kind: str, value: str) -> None:
        self._entries.append(Entry(kind, value, **self._about))

    def _ask(self, line: str, reason: str) -> None:
        self._questions.append(Question(self._about["reference"], self._author, line, reason))


def _decided(row: Mapping) -> Request:
    about = {"reference": f"issue {row.get('issue')}"}
    lists = {"owner": row.get("optout_owners"), "repository": row.get("optout_repos")}
    try:
        entries = [Entry(kind, v, **about) for kind, values in lists.items() for v in values or ()]
    except TypeError as error:
        raise ValueError(f"{about['reference']} has no list of names: {error}") from error
    return Request(tuple(entries), ())


def _says_nothing(place: str, line: str, text: str) -> bool:
    return bool(
        text.strip("`").lower() in _NOTHING
        or _NOTE.fullmatch(line)
        or (place == "relationship" and _RELATIONSHIP.fullmatch(line))
        or (place == "proof" and re.fullmatch(r"https?://\S+", line))
    )


def _plain(line: str) -> str:
    """A line without what marks it as an item, a link, code or emphasis."""
    text = _BULLET.sub("", line, count=1).strip() if _BULLET.match(line) else line
    link = _LINK.fullmatch(text)
    text = link[1].strip() if link else text
    # Only pairs: names may end with "_".
    while len(text) > 1 and text[0] == text[-1] and text[0] in "`*_\"'":
        text = text[1:-1]
    return text.strip()


def _requests(path: pathlib.Path) -> Iterator[Request]:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"requests {path} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        try:
            yield parse(row)
        except ValueError as error:
            raise ValueError(f"{path}, request {number}: {error}") from error
