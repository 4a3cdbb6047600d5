"""What people and programs write in issues: who is a bot, what is left of a text."""

import re
from collections.abc import Iterable

from starcoder_jax.stack.stages.render.config import TAIL_LINES

# Authors whose comments StarCoder took for those of programs.
BOT_AUTHORS = frozenset(
    (
        *("Apache-HBase", "AutorestCI", "CLAassistant", "cmsbuild", "codecov-io"),
        *("codecov-commenter", "coveralls", "danger-public", "dnfclas", "msftclas", "PyDocTeur"),
        *("SparkQA", "karma-pr-reporter", "claassistantio", "probot-stale"),
    )
)
BOT_KEYWORDS = ("[bot]", "botmanager", "bors-", "jenkins", "k8s-", "-test-", "travis")
BOT_SUFFIXES = (
    *("-automaton", "-automation", "-benchmark", "-build", "-deployer", "-cloud", "bot", "-ci"),
    *("-linter", "-teamcity", "-test", "-testing", "-service-account"),
)

_MAIL_ADDRESS = "notifications@github.com"
_MAIL_LINK = "reply to this email directly"
_MAIL_DATE = re.compile(r"\d{1,4}/\d{1,4}/\d{1,4} \d{2}:\d{2} [AP]M.{0,300}wrote")
_MAIL_FROM = re.compile(r"(?:From|Sent|To|Cc|Subject): ")
_SIGNATURE = re.compile(r"Signed-off-by: [^<]+<[^>]+>\s*$")
_RULE = re.compile(r"_{20,}")
# A name as a whole: that of the user "ann" is neither in "annotation" nor in "ann-b".
_NAME = re.compile(r"[A-Za-z0-9]+(?:[-_]+[A-Za-z0-9]+)*")


def is_bot(name: str) -> bool:
    """Whether the name of a GitHub account is that of a program."""
    lower = name.lower()
    return (
        name in BOT_AUTHORS
        or lower.endswith(BOT_SUFFIXES)
        or any(keyword in lower for keyword in BOT_KEYWORDS)
    )


def without_mail(text: str) -> str:
    """A text without what mail programs add: headers, the quoted text, signatures.

    Of an answer sent by mail, what stands from the header of the quotation to GitHub's link is
    left out, and so are quoted lines elsewhere, "Signed-off-by:" lines and rules of underscores.
    """
    kept: list[str] = []
    header: int | None = None
    for line in text.strip().split("\n"):
        stripped = line.strip()
        if _MAIL_LINK in stripped.lower():
            if header is not None:
                del kept[header:]
            header = None
        elif _MAIL_ADDRESS in stripped or _MAIL_DATE.search(stripped):
            header = len(kept) if header is None else header
        elif not stripped.startswith(">") and not _SIGNATURE.match(stripped):
            if header is None and _MAIL_FROM.match(stripped):
                header = len(kept)
            kept.append(line)
    return _RULE.sub("", "\n".join(kept)).strip()


def without_comments(text: str) -> str:
    """A Markdown text without HTML comments, as pull request templates have them."""
    first, *others = text.split("<!--")
    return first + "".join(other.rpartition("-->")[2] for other in others)


def shortened(text: str, max_lines: int, note: str) -> str:
    """A text of that many lines at most: where it has more, a note stands for its middle."""
    lines = text.split("\n")
    if len(lines) <= max_lines:
        return text
    return "\n".join([*lines[: max_lines - TAIL_LINES], note, *lines[-TAIL_LINES:]])


class Pseudonyms:
    """Names of users become username_0, username_1, ... in the order in which they appear."""

    def __init__(self, users: Iterable[str]):
        self._names = {user: f"username_{index}" for index, user in enumerate(dict.fromkeys(users))}
        # Names of several words; if one is a part of another, the longer one goes first.
        odd = [user for user in self._names if not _NAME.fullmatch(user)]
        self._phrases = sorted((user for user in odd if _NAME.search(user)), key=len, reverse=True)

    @property
    def users(self) -> list[str]:
        """The names that they had."""
        return list(self._names)

    def of(self, user: str) -> str:
        """What a user is called."""
        return self._names[user]

    def replaced(self, text: str) -> str:
        """The text with every user's name replaced, where it stands as a name of its own."""
        for phrase in self._phrases:
            text = text.replace(phrase, self._names[phrase])
        return _NAME.sub(self._replacement, text)

    def _replacement(self, match: re.Match) -> str:
        name = match[0]
        if name in self._names or "_" not in name:
            return self._names.get(name, name)
        return "_".join(self._names.get(part, part) for part in name.split("_"))
