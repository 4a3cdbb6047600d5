"""Exact match of infilled lines, as of SantaCoder (Ben Allal et al. 2023, arXiv:2301.03988)."""

from starcoder_jax.evals.problems import Problem, Row, Task


def problem(row: Row) -> Problem:
    """A row with prompt, suffix and canonical_solution; or with prefix, suffix and middle.

    Nothing but a special token ends an answer: knowing where to stop is a part of infilling. Of
    rows that `corpus` made, the end of the line does: what is left to right then has no advantage.
    """
    prefix, middle = _prefix_and_middle(row)
    return Problem(
        task_id=row["task_id"],
        prompt=prefix,
        suffix=row["suffix"],
        before=prefix,
        after=row["suffix"],
        language=None,
        cut=first_line if row.get("is_line") else str,
        solutions={"canonical": middle},
        group=row.get("language", ""),
    )


def left_to_right(row: Row) -> Problem:
    """The same row for a model that is shown the prefix alone.

    The white space before the line is taken from the prompt, so that the model begins at the border
    of a token it knows; its answer ends with the line.
    """
    prefix, middle = _prefix_and_middle(row)
    shown = prefix.rstrip()
    return Problem(
        task_id=row["task_id"],
        prompt=shown,
        before=prefix,
        after=row["suffix"],
        language=None,
        cut=first_line,
        solutions={"canonical": middle},
        group=row.get("language", ""),
    )


def _prefix_and_middle(row: Row) -> tuple[str, str]:
    if "middle" in row:
        return row["prefix"], row["middle"]
    return row["prompt"], row["canonical_solution"]


def first_line(text: str) -> str:
    """The first line that is not blank, and nothing after it."""
    blank = len(text) - len(text.lstrip())
    end = text.find("\n", blank)
    return text if blank == len(text) or end < 0 else text[:end]


TASK = Task(problem, metric="exact_match", max_tokens=64)
