"""HumanEval (Chen et al. 2021, arXiv:2107.03374): complete a Python function."""

from starcoder_jax.evals.problems import Problem, Row, Task

# Those of bigcode-evaluation-harness, by which the StarCoder papers' figures were made; special
# tokens end an answer by themselves.
STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")


def problem(row: Row) -> Problem:
    """A row of HumanEval.jsonl, or of HumanEval in the form of HumanEvalPack."""
    test = row["test"]
    if "entry_point" in row:
        test += f"\ncheck({row['entry_point']})"
    return Problem(
        task_id=row["task_id"],
        # Most models never saw a token that ends where the prompt's last newline does: it begins
        # the token of the next line's indentation.
        prompt=row["prompt"].strip(),
        before=row["prompt"],
        language="python",
        program=lambda code: f"{code}\n{test}\n",
        stop=STOP,
        solutions={"canonical": row["canonical_solution"]},
    )


TASK = Task(problem)
