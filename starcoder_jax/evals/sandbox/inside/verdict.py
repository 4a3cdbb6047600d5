"""What became of a program, read from what its processes left."""

import dataclasses
import re
import signal

PASSED = "passed"
# Patterns on standard error by language, in the order in which they decide.
_SIGNS = {
    "python": (),
    "javascript": (
        ("memory", re.compile(r"heap out of memory|Array buffer allocation failed")),
        ("failed", re.compile(r"Assertion failed|AssertionError")),
        # A program that does not parse has no frame of its own in the trace.
        ("exception", re.compile(r"^ +at .*main\.js:", re.M)),
        ("syntax", re.compile(r"^SyntaxError", re.M)),
    ),
    "java": (
        ("memory", re.compile(r"java\.lang\.OutOfMemoryError")),
        ("failed", re.compile(r"java\.lang\.AssertionError")),
    ),
    "cpp": (
        ("memory", re.compile(r"std::bad_alloc")),
        ("failed", re.compile(r"Assertion [`'].* failed")),
    ),
    "bash": (
        ("syntax", re.compile(r"syntax error|unexpected EOF")),
        ("exception", re.compile(r"command not found|: No such file or directory")),
        ("failed", re.compile("")),
    ),
    "rust": (
        ("memory", re.compile(r"memory allocation of \d+ bytes failed")),
        ("failed", re.compile(r"panicked at .*\s*assertion ")),
    ),
}
_CLAIMS = ("syntax", "failed", "exception", "memory", "exited")
# Of traces that put the message first.
_FRAME = re.compile(r"\s+at |Node\.js v|note: run with")
_SIGNS_CHARACTERS = 8192  # of the end: what a program prints could keep a pattern busy for long
_DETAIL_LINES, _DETAIL_CHARACTERS = 6, 600


@dataclasses.dataclass
class Evidence:
    """What is left of a program.

    Attributes:
        stopped: why the sandbox ended it: "timeout", "memory", "output", or "".
        statuses: exit status of each step that ended, minus the signal if one ended it.
        compiling: whether the step that is, or would be, next is one of a compiler.
        report: what a Python program's process said; its word, if it ended.
        errors: standard error.
    """

    stopped: str = ""
    statuses: list[int] = dataclasses.field(default_factory=list)
    compiling: bool = False
    report: bytes = b""
    errors: bytes = b""


def judge(language: str, evidence: Evidence, word: bytes) -> tuple[str, str]:
    """The reason of an `Outcome`, and its detail."""
    at_end = evidence.report == word if language == "python" else word in evidence.errors
    errors = evidence.errors.replace(word, b"").decode(errors="replace")
    reason = _reason(language, evidence, errors, at_end)
    lines = [line for line in errors.splitlines() if line.strip() and not _FRAME.match(line)]
    first = reason == "syntax" and evidence.compiling  # compilers say the most important first
    some = lines[:_DETAIL_LINES] if first else lines[-_DETAIL_LINES:]
    detail = "\n".join(some)
    return reason, detail[:_DETAIL_CHARACTERS] if first else detail[-_DETAIL_CHARACTERS:]


def _reason(language: str, evidence: Evidence, errors: str, at_end: bool) -> str:
    if evidence.stopped:
        return evidence.stopped
    if not evidence.statuses:
        return "killed"
    status = evidence.statuses[-1]
    if status and evidence.compiling:
        return "syntax" if status > 0 else "killed"
    if language == "python" and not at_end:
        claim = evidence.report.decode(errors="replace")
        if claim in _CLAIMS:
            return claim
    if status == 0:
        # console.assert prints, and goes on.
        if language == "javascript" and re.search("^Assertion failed", errors, re.M):
            return "failed"
        return PASSED if at_end else "exited"
    if status == -signal.SIGXCPU:
        return "timeout"
    if status == -signal.SIGXFSZ:
        return "output"
    if status == -signal.SIGKILL:
        return "killed"
    end = errors[-_SIGNS_CHARACTERS:]
    signs = (reason for reason, pattern in _SIGNS[language] if pattern.search(end))
    return next(signs, "exited" if language == "python" and status > 0 else "exception")
