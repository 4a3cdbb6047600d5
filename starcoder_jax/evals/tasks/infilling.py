"""HumanEval-Infilling (Bavarian et al. 2022, arXiv:2207.14255): single-line, multi-line, spans."""

from starcoder_jax.evals.problems import Problem, Row, Task


def problem(row: Row) -> Problem:
    """A row of HumanEval-{SingleLine,MultiLine,RandomSpan}Infilling.jsonl.

    Nothing but a special token ends an answer: knowing where to stop is a part of infilling.
    """
    tests = f"{row['test']}\ncheck({row['entry_point']})"
    return Problem(
        task_id=row["task_id"],
        prompt=row["prompt"],
        suffix=row["suffix"],
        before=row["prompt"],
        after=row["suffix"],
        language="python",
        program=lambda code: f"{code}\n{tests}\n",
        solutions={"canonical": row["canonical_solution"]},
    )


TASK = Task(problem, max_tokens=256)
