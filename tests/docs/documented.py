"""The code blocks of the documentation, and the commands in them."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_HEREDOC = re.compile(
    r"^cat > (?P<file>\S+) <<'(?P<end>\w+)'\n(?P<text>.*?)^(?P=end)$", re.M | re.S
)
_COMMENT = re.compile(r"(?:^|\s)#[^'\"\n]*$", re.M)
_BETWEEN = "();&|\n"  # what ends a command


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page; `mark` is the comment on the line before it."""

    page: str
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def files(self) -> dict[str, str]:
        """What a Bash block writes into files before it uses them, by their names."""
        return {found["file"]: found["text"] for found in _HEREDOC.finditer(self.text)}

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a Bash block, without variables that are set for it."""
        text = _COMMENT.sub("", _HEREDOC.sub("", self.text)).replace("\\\n", " ")
        lexer = shlex.shlex(text, posix=True, punctuation_chars=_BETWEEN)
        lexer.whitespace, lexer.commenters = " \t", ""
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "\n"]:
            if word.strip(_BETWEEN):
                words.append(word)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []


def blocks(text: str, page: str) -> list[Block]:
    return [
        Block(page, text[: found.start()].count("\n") + 1, found["mark"] or "", *found.group(2, 3))
        for found in _BLOCK.finditer(text)
    ]


def documented(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages."""
    return [
        block
        for path in PAGES
        for block in blocks(path.read_text(), str(path.relative_to(ROOT)))
        if block.language in languages
    ]
