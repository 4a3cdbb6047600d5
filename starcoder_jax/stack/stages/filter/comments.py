"""How much of a source file is comments."""

import re2

# Strings and comments, told apart so that neither is looked for within the other; group 1 is a
# comment. What is not closed ends with the line or the file, hence one pass over the content.
_STRING = rb"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_BLOCK = rb"/\*(?s:.*?)(?:\*/|\z)"
_TRIPLE = rb"\"\"\"(?s:(?:[^\\]|\\.)*?)(?:\"\"\"|\z)|'''(?s:(?:[^\\]|\\.)*?)(?:'''|\z)"
_PATTERNS = {
    "c": rb"`(?s:(?:[^`\\]|\\.)*)(?:`|\z)|" + _STRING + rb"|(//[^\n]*|" + _BLOCK + rb")",
    "php": _STRING + rb"|(//[^\n]*|#[^\n]*|" + _BLOCK + rb")",
    "css": _STRING + rb"|(" + _BLOCK + rb")",
    "hash": _STRING + rb"|(?:^|[\s;])(#[^\n]*)",
    # A string that is a statement of its own is documentation.
    "python": rb"(?:^[ \t]*[rRuU]?("
    + _TRIPLE
    + rb"))|"
    + _TRIPLE
    + rb"|"
    + _STRING
    + rb"|(#[^\n]*)",
    "sql": _STRING + rb"|(--[^\n]*|" + _BLOCK + rb")",
    "lua": _STRING + rb"|(--\[\[(?s:.*?)(?:\]\]|\z)|--[^\n]*)",
    "haskell": rb"\"(?:[^\"\\\n]|\\.)*\"|(\{-(?s:.*?)(?:-\}|\z)|--[^\n]*)",
    "percent": rb"\\%|(%[^\n]*)",
    "semicolon": rb"\"(?s:(?:[^\"\\]|\\.)*)(?:\"|\z)|(;[^\n]*)",
}
_LANGUAGES = {
    "c": (
        *("C", "C++", "C#", "Cuda", "D", "Dart", "Go", "Groovy", "Java", "JavaScript", "Kotlin"),
        *("Objective-C", "Objective-C++", "OpenCL", "Rust", "Scala", "Solidity", "Swift"),
        *("SystemVerilog", "TSX", "TypeScript", "Vala", "Verilog", "Zig"),
    ),
    "php": ("PHP",),
    "css": ("CSS",),
    "hash": (
        *("Awk", "CMake", "Crystal", "Dockerfile", "Elixir", "Julia", "Makefile", "Nim", "Nix"),
        *("Perl", "PowerShell", "R", "Raku", "Ruby", "Shell", "TOML", "Tcl", "YAML"),
    ),
    "python": ("Cython", "Python", "Starlark"),
    "sql": ("PLSQL", "PLpgSQL", "SQL", "TSQL"),
    "lua": ("Lua",),
    "haskell": ("Agda", "Elm", "Haskell", "Idris", "PureScript"),
    "percent": ("Erlang", "MATLAB", "Prolog", "TeX"),
    "semicolon": ("Clojure", "Common Lisp", "Emacs Lisp", "Racket", "Scheme"),
}
_STYLE_OF = {language: style for style, names in _LANGUAGES.items() for language in names}
_COMPILED = {style: re2.compile(b"(?m)" + pattern) for style, pattern in _PATTERNS.items()}


def comment_fraction(language: str | None, content: bytes) -> float | None:
    """The fraction of a file's bytes that is in comments and docstrings.

    None for the languages whose comments are not known, and for an empty file. Strings are told
    from comments by one linear pass; this is no parser.
    """
    style = _STYLE_OF.get(language or "")
    if style is None or not content:
        return None
    size = 0
    for match in _COMPILED[style].finditer(content):
        size += sum(len(comment) for comment in match.groups() if comment)
    return size / len(content)
