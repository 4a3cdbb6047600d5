"""HumanEvalPack (Muennighoff et al. 2023, arXiv:2308.07124): synthesize, fix and explain code.

Instructions, prompt formats, stop strings, and where an answer ends are those of
bigcode-evaluation-harness, by which the published figures were made.
"""

import dataclasses
import functools
from collections.abc import Sequence

from starcoder_jax.evals.problems import Problem, Row, Task

# By the first part of a task id: what the sandbox calls the language, and what prompts call it.
_LANGUAGES = {
    "Python": ("python", "Python"),
    "JavaScript": ("javascript", "JavaScript"),
    "Java": ("java", "Java"),
    "CPP": ("cpp", "C++"),
    # Their programs need a build system, and packages of others: the sandbox has neither.
    "Rust": ("rust with cargo", "Rust"),
    "Go": ("go", "Go"),
}
_PYTHON_STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert")

# What the harness puts before programs, but for its import of numpy.
_PYTHON_IMPORTS = """\
import collections, copy, datetime, functools, hashlib, heapq, itertools, math, re, statistics
import string, sys
from typing import *
from collections import *
"""
_CPP_INCLUDES = """\
#include <bits/stdc++.h>
#if __has_include(<boost/any.hpp>)
#include <boost/any.hpp>
#endif
using namespace std;
"""

_COMMIT_TOKENS = ("<commit_before>", "<commit_msg>", "<commit_after>")
_FORMATS = ("instruct", "octocoder", "commit")


def synthesize(row: Row, prompt_format: str) -> Problem:
    """Write the function, from its instruction and its documented declaration."""
    return _answer(row, prompt_format, row["instruction"].strip(), None, start=row["prompt"])


def fix(row: Row, prompt_format: str) -> Problem:
    """Mend a function, from its code and its tests (HumanEvalFix without docstrings)."""
    start = row["declaration"]
    context = f"{start}{row['buggy_solution']}\n{row['test']}"
    instruction = f"Fix bugs in {row['entry_point']}."
    return _answer(row, prompt_format, instruction, context, start=start, edits=True)


def explain(row: Row, prompt_format: str) -> Problem:
    """Describe a function, then write it from that description alone."""
    length = len(row["docstring"])
    instruction = (
        f"Provide a concise natural language description of the code using at most {length} "
        "characters."
    )
    start, solution = row["declaration"], row["canonical_solution"]
    rewrite = f"Write functional code in {_language(row)[1]} according to the description."

    def write(description: str) -> Problem:
        description = _without_code(description.strip()[:length].rstrip(), solution)
        return _answer(row, prompt_format, rewrite, description, start=start)

    question = _answer(row, prompt_format, instruction, start + solution, start="")
    return dataclasses.replace(question, before=start, cut=str, then=write)


def _answer(
    row: Row,
    prompt_format: str,
    instruction: str,
    context: str | None,
    *,
    start: str,
    edits: bool = False,
) -> Problem:
    """Asks for what goes on after `start`; `edits`: as a new version of the context."""
    language = _language(row)[0]
    return Problem(
        task_id=row["task_id"],
        # Without white space at the end, which would split the token that the answer begins with.
        prompt=_prompt(prompt_format, instruction, context, start, edits).strip(),
        before=start,
        language=language,
        program=functools.partial(_program, language, row["test"]),
        stop=_PYTHON_STOP if language == "python" else (),
        cut=functools.partial(cut_function, language=language),
        special_tokens=_COMMIT_TOKENS if prompt_format == "commit" else (),
        solutions={"canonical": row["canonical_solution"], "buggy": row["buggy_solution"]},
    )


def _prompt(
    prompt_format: str, instruction: str, context: str | None, start: str, edits: bool
) -> str:
    if prompt_format == "instruct":
        text = instruction if context is None else f"{context}\n{instruction}"
        return f"{text}\n\n{start}"
    if prompt_format == "commit" and edits:
        return f"<commit_before>{context}<commit_msg>{instruction}<commit_after>{start}"
    text = instruction if context is None else f"{instruction}\n{context}"
    if prompt_format == "commit":
        return f"<commit_before><commit_msg>{text}<commit_after>{start}"
    return f"Question: {text}\n\nAnswer:\n{start}"


def _program(language: str, test: str, code: str) -> str:
    if language == "python":
        return f"{_PYTHON_IMPORTS}{code}\n{test}\n"
    if language == "cpp":
        return f"{_CPP_INCLUDES}{code.split('int main')[0]}\n{test}\n"
    if language == "java":
        return f"{code}\n{test}\n".replace("public class Main {\n    }", "", 1)
    return f"{code}\n{test}\n"


def cut_function(text: str, language: str) -> str:
    """The text up to the end of the function that it begins inside of."""
    if language == "python":
        return _indented_lines(text.split("\n"))
    depth = 2 if language == "java" else 1  # Java's functions stand in a class.
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[: index + 1]
    return text


def _indented_lines(lines: Sequence[str]) -> str:
    # The first line goes on where the prompt ended, and may be the rest of one.
    for index, line in enumerate(lines[1:], start=1):
        if line.strip() and line[0] not in " \t":
            return "\n".join(lines[:index])
    return "\n".join(lines)


def _without_code(text: str, solution: str) -> str:
    """Takes lines of the solution out of a description of it."""
    for line in map(str.strip, solution.split("\n")):
        if len(line) > 20:
            text = text.replace(line, "")
    return text


def _language(row: Row) -> tuple[str, str]:
    name = row["task_id"].partition("/")[0]
    if name not in _LANGUAGES:
        raise KeyError(f"task_id of a known language: {row['task_id']}")
    return _LANGUAGES[name]


TASK = Task(synthesize, max_tokens=1024, prompt_formats=_FORMATS)
