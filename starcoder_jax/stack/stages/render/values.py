"""JSON of others: whatever it says, the values have the types that are asked for."""

import json
from collections.abc import Mapping

from starcoder_jax.stack.stages.render.result import RejectedError


def parsed(content: bytes) -> dict:
    """The JSON object that the content is.

    Raises:
        RejectedError: it is none.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RejectedError("not a JSON object")
    return value


def at(value: object, *names: str) -> object:
    """What stands under these names, one within the other; None: nothing does."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def text(value: object, *names: str) -> str:
    """A string, with lines that end in a line feed; empty where there is none."""
    found = at(value, *names)
    if not isinstance(found, str):
        return ""
    return found.replace("\r\n", "\n").replace("\r", "\n")


def lines(value: object, *names: str) -> str:
    """As `text`, of a string or of a list of strings to be joined."""
    found = at(value, *names)
    if isinstance(found, list):
        found = "".join(part for part in found if isinstance(part, str))
    return text(found)


def number(value: object, *names: str) -> int | None:
    """An integer, also if a string spells it."""
    found = at(value, *names)
    if isinstance(found, str) and len(found) < 20 and found.removeprefix("-").isdecimal():
        found = int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
