"""Tells which samples are right: by running their programs, or by comparing them."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from starcoder_jax.evals.passk import mean_and_error, pass_at_k
from starcoder_jax.evals.problems import Problem, Task, fingerprint
from starcoder_jax.evals.samples import Journal, Sample
from starcoder_jax.evals.sandbox import Outcome, Program, Sandbox
from starcoder_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Scored:
    """A sample and what became of it."""

    problem: Problem
    sample: Sample
    outcome: Outcome


def compare(problems: Mapping[str, Problem], samples: Sequence[Sample]) -> list[Scored]:
    """Exact match with the canonical solution, but for white space at both ends."""
    scored = []
    for sample in samples:
        problem = problems[sample.task_id]
        wanted = problem.solutions["canonical"].strip()
        passed = sample.text.strip() == wanted
        outcome = Outcome(passed, "passed" if passed else "different", f"wanted: {wanted}", 0.0)
        scored.append(Scored(problem, sample, outcome))
    return scored


def run(
    problems: Mapping[str, Problem],
    samples: Sequence[Sample],
    time_limit: float,
    sandbox: Sandbox,
    journal: Journal,
    progress: Progress,
) -> list[Scored]:
    """Runs the program of each sample; one that several samples share, once.

    Args:
        problems: by task id, of languages that the sandbox can run.
        samples: of these problems.
        time_limit: seconds on the sandbox's reference machine.
        sandbox: in use.
        journal: holds the outcomes of earlier runs, and gets those of this one as they come.
        progress: shows how it goes.
    """
    programs: dict[str, Program] = {}
    keys = []
    for sample in samples:
        problem = problems[sample.task_id]
        source = problem.program(sample.code(problem))
        key = fingerprint([problem.language, source, time_limit])
        programs[key] = Program(problem.language, source, time_limit)
        keys.append(key)
    outcomes = {}
    for line in journal.lines:
        fields = {name: value for name, value in line.items() if name != "program"}
        outcomes[line["program"]] = Outcome(**fields)
    missing = {key: program for key, program in programs.items() if key not in outcomes}
    with progress.stage("running", len(programs), len(programs) - len(missing)) as advance:
        for key, outcome in sandbox.run(missing.items()):
            journal.write([{"program": key, **dataclasses.asdict(outcome)}])
            outcomes[key] = outcome
            advance(1)
    return [
        Scored(problems[sample.task_id], sample, outcomes[key])
        for sample, key in zip(samples, keys, strict=True)
    ]


def check_counts(task: Task, samples: Sequence[Sample], ks: Sequence[int]) -> None:
    """Refuses pass@k before anything is run.

    Raises:
        ValueError: a problem has fewer samples than a k.
    """
    if task.metric == "pass":
        for count in set(collections.Counter(sample.task_id for sample in samples).values()):
            for k in ks:
                pass_at_k(count, 0, k)


def metrics(task: Task, scored: Sequence[Scored], ks: Sequence[int]) -> dict[str, float]:
    """What is published of a benchmark: means over problems, and their standard errors."""
    if not scored:
        return {}
    by_problem = collections.defaultdict(list)
    groups = collections.defaultdict(set)
    for item in scored:
        by_problem[item.problem.task_id].append(item.outcome.passed)
        groups[item.problem.group].add(item.problem.task_id)
    values = {}
    if task.metric == "pass":
        for k in ks:
            estimates = [pass_at_k(len(o), sum(o), k) for o in by_problem.values()]
            values[f"pass@{k}"], values[f"pass@{k}_stderr"] = mean_and_error(estimates)
    else:
        shares = {task_id: sum(o) / len(o) for task_id, o in by_problem.items()}
        values["exact_match"], values["exact_match_stderr"] = mean_and_error([*shares.values()])
        for group, members in sorted(groups.items()):
            if group:
                values[f"exact_match/{group}"] = mean_and_error([shares[m] for m in members])[0]
    return values
