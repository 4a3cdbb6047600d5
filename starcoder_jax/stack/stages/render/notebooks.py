"""Jupyter notebooks, as scripts and as sequences of text, code and output.

    <jupyter_script>code
    <jupyter_start><jupyter_text>text<jupyter_code>code<jupyter_output>output<jupyter_text>...

StarCoder has no token for scripts: there they are plain code.

The formats of all versions are read here, and not by nbformat: that validates what it converts
against a JSON schema, and takes the level of an old heading for the length of a string.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

from starcoder_jax.stack.stages.render import values
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.result import Part, RejectedError, Rendered

_MAX_HEADING = 6
_CUT = "[...]"
_SLASHES = (
    *("c", "c++", "c++11", "c++14", "c++17", "c#", "csharp", "d", "f#", "fsharp", "go", "groovy"),
    *("java", "javascript", "kotlin", "node", "php", "rust", "scala", "swift", "typescript"),
)
_COMMENTS = {
    **dict.fromkeys(_SLASHES, "//"),
    **dict.fromkeys(("ada", "haskell", "lua", "sql"), "--"),
    **dict.fromkeys(("erlang", "matlab", "octave", "prolog", "tex"), "%"),
    **dict.fromkeys(("clojure", "common-lisp", "lisp", "racket", "scheme"), ";"),
}
_TAG = re.compile(r"<[^<>\n]*>")
_LINE_FEEDS = re.compile(r"\n+")
# Commands of IPython and of the shell, which are no Python.
_COMMAND = re.compile(r"\s*(?:%{1,2}[A-Za-z]|!{1,2}\s*[A-Za-z./~])")
_MEASURING = ("%%time", "%%capture", "%%prun")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell with text: "code" or "markdown"; and its output, None if there is none."""

    type: str
    source: str
    output: str | None


def parsed(content: bytes) -> tuple[list[Cell], str]:
    """The cells of a notebook of any version, and the name of its language.

    Raises:
        RejectedError: it is no notebook.
    """
    return cells_of(values.parsed(content))


def cells_of(notebook: Mapping) -> tuple[list[Cell], str]:
    """As `parsed`, of what the JSON says.

    Raises:
        RejectedError: it is no notebook.
    """
    found = notebook.get("cells")
    if not isinstance(found, list):
        sheets = notebook.get("worksheets")
        sheets = sheets if isinstance(sheets, list) else []
        found = [cell for sheet in sheets for cell in _list(sheet, "cells")]
        if not sheets:
            raise RejectedError("not a notebook")
    cells = [cell for cell in map(_cell, found) if cell is not None]
    metadata = values.at(notebook, "metadata")
    names = (
        values.text(metadata, "language_info", "name"),
        values.text(metadata, "kernelspec", "language"),
        *(values.text(cell, "language") for cell in found),
    )
    return cells, next(filter(None, names), "python").lower()


def script(cells: Sequence[Cell], language: str) -> str:
    """The code of a notebook; its text becomes comments, and so do IPython's commands.

    Raises:
        RejectedError: there is no code.
    """
    if not any(cell.type == "code" for cell in cells):
        raise RejectedError("no code")
    comment = _COMMENTS.get(language, "#")
    blocks = []
    for cell in cells:
        lines = cell.source.strip("\n").split("\n")
        if cell.type == "markdown":
            lines = [f"{comment} {line}".rstrip() for line in lines]
        elif "python" in language:
            whole = lines[0].startswith("%%") and not lines[0].startswith(_MEASURING)
            lines = [f"# {line}" if whole or _COMMAND.match(line) else line for line in lines]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def render_script(content: bytes, config: RenderConfig) -> Rendered:
    """A notebook as a script.

    Raises:
        RejectedError: it is dropped.
    """
    token = "<jupyter_script>" if config.style == "starcoder2" else None
    return Rendered("notebook_script", [(token, script(*parsed(content)))])


def render_structured(content: bytes, config: RenderConfig) -> Rendered:
    """A notebook as text, code and output in turn.

    Cells of a type that follow on each other are one, with the output of the last. Code before
    the first text, and text after the last code, are left out.

    Raises:
        RejectedError: it is dropped.
    """
    cells, _ = parsed(content)
    blocks = [(type, list(group)) for type, group in itertools.groupby(cells, lambda it: it.type)]
    if blocks and blocks[0][0] == "code":
        blocks = blocks[1:]
    if blocks and blocks[-1][0] == "markdown":
        blocks = blocks[:-1]
    if not blocks:
        raise RejectedError("no text with code")
    parts: list[Part] = [("<jupyter_start>", "")]
    for type, group in blocks:
        if type == "markdown":
            parts.append(("<jupyter_text>", _text(group, config)))
            continue
        parts.append(("<jupyter_code>", "\n".join(cell.source for cell in group)))
        output = group[-1].output
        if output and len(output) > config.max_output_characters:
            output = output[: config.max_output_characters] + _CUT
        parts.append(("<jupyter_output>", output or ""))
        if not output:
            parts.append(("<empty_output>", ""))
    return Rendered("notebook_structured", parts)


def _text(group: Sequence[Cell], config: RenderConfig) -> str:
    if config.style == "starcoder2":
        return "\n".join(cell.source for cell in group)
    cleaned = (_LINE_FEEDS.sub("", _TAG.sub("", cell.source)) for cell in group)
    return " ".join(cleaned).replace("#", "")


def _cell(cell: object) -> Cell | None:
    type = values.text(cell, "cell_type")
    source = values.lines(cell, "source") or values.lines(cell, "input")
    if type == "heading":
        level = min(max(values.number(cell, "level") or 1, 1), _MAX_HEADING)
        type, source = "markdown", f"{'#' * level} {source}"
    if type not in ("code", "markdown") or not source.strip():
        return None
    return Cell(type, source, _output(cell) if type == "code" else None)


def _output(cell: object) -> str | None:
    """The first output that is text; pictures and errors are none."""
    for output in _list(cell, "outputs"):
        data = values.at(output, "data")
        for found in (values.lines(output, "text"), values.lines(data, "text/plain")):
            if found.strip():
                return found
    return None


def _list(value: object, name: str) -> list:
    found = values.at(value, name)
    return found if isinstance(found, list) else []
