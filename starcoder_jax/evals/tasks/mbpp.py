"""MBPP (Austin et al. 2021, arXiv:2108.07732), in full or sanitized: write a Python function."""

from starcoder_jax.evals.problems import Problem, Row, Task

# Those of bigcode-evaluation-harness.
STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")


def problem(row: Row) -> Problem:
    """A row of mbpp.jsonl or of sanitized-mbpp.json.

    The prompt is InCoder's (arXiv:2204.05999): the task and its first test in a docstring.
    """
    text = row["text"] if "text" in row else row["prompt"]
    # The setup after the code: two problems define there what needs a class of the answer.
    setup = [*row.get("test_imports", ()), row.get("test_setup_code", "")]
    tests = "\n".join([*setup, *row["test_list"]])
    prompt = f'"""\n{text}\n{row["test_list"][0]}\n"""\n'
    return Problem(
        task_id=str(row["task_id"]),
        prompt=prompt,
        before=prompt,
        language="python",
        program=lambda code: f"{code}\n{tests}\n",
        stop=STOP,
        solutions={"canonical": row["code"]},
    )


def is_test(row: Row) -> bool:
    """Whether it is one of the 500 problems that published figures are over."""
    return 11 <= int(row["task_id"]) <= 510


TASK = Task(problem)
