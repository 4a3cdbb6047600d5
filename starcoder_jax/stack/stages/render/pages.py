"""Pages of documentation: the text of HTML, other texts as they are.

HTML is read by lxml, whose time is linear in what it is given and which stops at a depth of 256
elements; other parsers take minutes for a megabyte of opened elements.
"""

import re
from collections.abc import Iterator

import lxml.etree
import lxml.html

from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.result import RejectedError, Rendered

_SKIPPED = frozenset(
    (
        *("aside", "button", "canvas", "footer", "form", "head", "iframe", "input"),
        *("math", "nav", "noscript", "object", "script", "select", "style", "svg", "template"),
        "textarea",
    )
)
_BLOCKS = frozenset(
    (
        *("address", "article", "blockquote", "body", "br", "caption", "center", "dd", "details"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5"),
        *("h6", "hr", "html", "li", "main", "ol", "p", "pre", "section", "summary", "table"),
        *("tbody", "tfoot", "thead", "tr", "ul"),
    )
)
_PARAGRAPHS = frozenset(
    (
        *("article", "blockquote", "dl", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "main"),
        *("ol", "p", "pre", "section", "table", "ul"),
    )
)
# Outside of the main content they are the site's.
_OF_SITE = _SKIPPED | {"header"}
_MAIN = "//main | //*[@role='main']"
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--[^>]{0,1000}-->\s*)?<(?:!doctype\s+html|html)\b", re.I
)
_ANCHORS = ("#", "\u00b6", "\u00a7")
_SPACE = re.compile(r"[ \t\n\r\f\v\xa0]+")
_NUL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")


def render_page(content: bytes, path: str, config: RenderConfig) -> Rendered:
    """A page of documentation.

    Raises:
        RejectedError: it has no text.
    """
    del config
    text = content.decode("utf-8", "replace")
    if path.lower().endswith((".html", ".htm", ".xhtml")) or _HTML.match(content):
        text = html_text(text)
    if not text.strip():
        raise RejectedError("no text")
    return Rendered("documentation", [(None, text)])


def html_text(html: str) -> str:
    """The text that a reader of HTML sees, without navigation, headers and footers.

    Preformatted text keeps its lines; otherwise blocks stand on lines of their own, paragraphs
    apart. If there is an element for the main content, only that is taken.
    """
    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = lxml.html.document_fromstring(_NUL.sub("", html).encode("utf-8", "replace"), parser)
    except lxml.etree.LxmlError:
        return ""
    mains = root.xpath(_MAIN) or root.xpath("//article")
    walk = _walk(mains[0], _SKIPPED) if len(mains) == 1 else _walk(root, _OF_SITE)
    lines: list[str] = []
    line = ""
    for kind, text in walk:
        if kind == "text":
            text = _SPACE.sub(" ", text)
            line += text.lstrip(" ") if not line or line.endswith(" ") else text
        elif kind == "verbatim":
            *whole, line = (line + text).split("\n")
            lines += whole
        elif line.strip():
            lines.append(line.rstrip())
            line = ""
        if kind == "paragraph" and lines and lines[-1]:
            lines.append("")
    return "\n".join([*lines, line.rstrip()]).strip("\n")


def _walk(root: lxml.html.HtmlElement, left_out: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Pieces of text, and the ends of lines and paragraphs, in the order of the document."""
    skipped = verbatim = 0
    for event, element in lxml.etree.iterwalk(root, events=("start", "end")):
        tag, start = element.tag, event == "start"
        step = 1 if start else -1
        skipped += step * (tag in left_out or (tag == "a" and _is_anchor(element)))
        if not skipped and tag in _BLOCKS:
            yield ("paragraph" if tag in _PARAGRAPHS else "line"), ""
        elif not skipped and tag in ("td", "th") and not start:
            yield "text", " "
        verbatim += step * (tag == "pre")
        # What follows the root is no part of it.
        text = element.text if start else element.tail if element is not root else None
        if text and not skipped:
            yield ("verbatim" if verbatim else "text"), text


def _is_anchor(element: lxml.html.HtmlElement) -> bool:
    """Whether a link is only there for readers to copy, beside a heading."""
    return len(element) == 0 and (element.text or "").strip() in _ANCHORS
