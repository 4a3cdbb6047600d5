"""The benchmarks by name."""

import dataclasses

from starcoder_jax.evals.problems import Task
from starcoder_jax.evals.tasks import fim, humaneval, humanevalpack, infilling, mbpp, multipl_e

TASKS: dict[str, Task] = {
    "humaneval": humaneval.TASK,
    "humaneval-infilling": infilling.TASK,
    "humanevalpack-synthesize": dataclasses.replace(
        humanevalpack.TASK, problem=humanevalpack.synthesize
    ),
    "humanevalpack-fix": dataclasses.replace(humanevalpack.TASK, problem=humanevalpack.fix),
    "humanevalpack-explain": dataclasses.replace(humanevalpack.TASK, problem=humanevalpack.explain),
    "mbpp": mbpp.TASK,
    "mbpp-test": dataclasses.replace(mbpp.TASK, keep=mbpp.is_test),
    "multipl-e": multipl_e.TASK,
    "fim": fim.TASK,
    "fim-left-to-right": dataclasses.replace(fim.TASK, problem=fim.left_to_right),
}
