"""The programming language of a file, by the rules of GitHub's Linguist.

go-enry, a port of Linguist to Go, decides, as it did for The Stack v2 (arXiv:2402.19173, section
2): by modeline, file name, interpreter line, extension, XML and manual page headers, and, where an
extension is shared, by heuristics and a classifier over the content. Its patterns are run by Go's
engine, in time linear in the content.
"""

import functools
import os
import types

import re2

# As many bytes as Linguist's heuristics look at.
_CONSIDERED_BYTES = 50 * 1024

# Languages that share an extension, have no heuristic that tells them apart, and are equally likely
# to the classifier: without a known word in the content it draws one at random. The first is taken.
_TIES = (
    ("Apex", "Visual Basic 6.0"),
    ("Assembly", "NASL"),
    ("FreeBASIC", "BASIC"),
    ("Brainfuck", "Befunge"),
    ("BitBake", "Motorola 68K Assembly"),
    ("CUE", "Cue Sheet"),
    ("OpenCL", "Cool"),
    ("Debian Package Control File", "DenizenScript"),
    ("Eiffel", "E"),
    ("ECL", "ECLiPSe"),
    ("HiveQL", "q"),
    ("JSONiq", "jq"),
    ("KCL", "KFramework"),
    ("KerboScript", "Kickstart"),
    ("Linear Programming", "Lambdapi"),
    ("MQL5", "MQL4"),
    ("Monkey C", "Win32 Message File"),
    ("Unix Assembly", "Motorola 68K Assembly"),
    ("Odin", "Object Data Instance Notation"),
    ("Pascal", "SQL"),
    ("Q#", "Qt Script"),
    ("SubRip Text", "SRecode Template"),
    ("SaltStack", "Scheme"),
    ("TypeSpec", "TSPLIB data"),
)

# Without any of these, go-enry calls a header C: they are its signs of Objective-C, C++ and
# modelines, and a little more. Headers are many, and this is twenty times as fast.
_NOT_C = re2.compile(
    rb"(?m)^\s*(?:@|#\s*import|#\s*include\s*<[a-z_]+>|template|try|constexpr|catch|class|using"
    rb"|namespace|private|public|protected)|__has_cpp_attribute|__cplusplus >|std::"
    rb"|-\*-|\b(?:vi|Vi|ex)[a-z0-9<=>]*:|^#!|<\?xml"
)


def language_of(path: str, content: bytes) -> str | None:
    """The Linguist name of a file's language; None if it has none that is known.

    Args:
        path: Of the file, within its repository.
        content: UTF-8. The first 50 KiB are looked at.

    Raises:
        ValueError: enry-python is not installed.
        RuntimeError: this process was forked from one that had found a language.
    """
    head = content[:_CONSIDERED_BYTES]
    if path.endswith(".h") and head and not _NOT_C.search(head):
        return "C"
    found = enry().get_languages(path, head)
    if len(found) > 1:
        for first, second in _TIES:
            if found[0] in (first, second) and first in found and second in found:
                return first
    return found[0] or None if found else None


def enry() -> types.ModuleType:
    """The go-enry library.

    Raises:
        ValueError: enry-python is not installed.
        RuntimeError: this process was forked from one that had loaded it.
    """
    library, process = _load()
    if process != os.getpid():
        # The threads of Go's runtime do not survive a fork: a call would wait for them forever.
        raise RuntimeError(
            "go-enry was loaded before this process was forked: "
            "start workers by spawn or forkserver"
        )
    return library


@functools.cache
def _load() -> tuple[types.ModuleType, int]:
    try:
        import enry
    except ImportError as error:
        raise ValueError(
            f"identify and filter need go-enry: pip install 'enry-python>=0.2,<0.3' ({error})"
        ) from None
    return enry, os.getpid()
