"""MultiPL-E (Cassano et al. 2022, arXiv:2208.08227): HumanEval in other languages."""

from starcoder_jax.evals.problems import Problem, Row, Task
from starcoder_jax.evals.tasks import humaneval

_LANGUAGES = {
    "py": "python",
    "js": "javascript",
    "cpp": "cpp",
    "java": "java",
    "sh": "bash",
    "rs": "rust",
}


def problem(row: Row) -> Problem:
    """A row of humaneval-LANGUAGE.jsonl; one without a language is of Python, as HumanEval."""
    if "language" not in row:
        return humaneval.problem(row)
    # One that the sandbox does not know is left out there, by the name it has here.
    language = _LANGUAGES.get(row["language"], row["language"])
    tests = row["tests"]

    return Problem(
        task_id=row["name"],
        prompt=row["prompt"].strip(),
        before=row["prompt"],
        language=language,
        program=lambda code: f"{code}\n{tests}\n",
        stop=tuple(row["stop_tokens"]),
    )


TASK = Task(problem, time_limit=15.0)
