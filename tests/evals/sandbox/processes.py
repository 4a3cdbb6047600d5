"""Who runs."""

import contextlib
import pathlib


def children(process: int) -> set[int]:
    found: set[int] = set()
    for path in pathlib.Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            found |= {int(number) for number in path.read_text().split()}
    return found


def descendants(process: int) -> set[int]:
    """Processes that descend from this one, in all namespaces."""
    found: set[int] = set()
    todo = [process]
    while todo:
        new = children(todo.pop())
        found |= new
        todo += new
    return found


def is_running(process: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
