import dataclasses
import io

import pytest

from starcoder_jax.evals import scoring
from starcoder_jax.evals.passk import mean_and_error
from starcoder_jax.evals.problems import Problem, Task
from starcoder_jax.evals.samples import Journal, Sample
from starcoder_jax.evals.sandbox import Outcome
from starcoder_jax.progress import Progress

PROBLEMS = {
    name: Problem(name, "p", "before ", "python", program=lambda code: f"{code} tests")
    for name in ("a", "b")
}
TASK = Task(lambda row: None)


class FakeSandbox:
    """Passes what holds "good"; ends, as a killed process does, before program number `die`."""

    def __init__(self, die=None):
        self.programs, self.die = [], die

    def run(self, programs):
        for key, program in programs:
            if len(self.programs) == self.die:
                raise KeyboardInterrupt
            self.programs.append(program)
            passed = "good" in program.source
            yield key, Outcome(passed, "passed" if passed else "failed", "why", 0.5)


def samples(*texts):
    return [Sample("a" if i % 2 else "b", i // 2, text) for i, text in enumerate(texts)]


def run(path, given, sandbox, time_limit=2.0):
    with Journal(path, {}) as journal:
        return scoring.run(PROBLEMS, given, time_limit, sandbox, journal, Progress(io.StringIO()))


def test_nothing_is_run_twice(tmp_path):
    path = tmp_path / "o.jsonl"
    given = samples("good", "bad", "good", "good 2", "bad 2", "good")
    first = FakeSandbox(die=2)
    with pytest.raises(KeyboardInterrupt):
        run(path, given, first)
    second = FakeSandbox()
    scored = run(path, given, second)
    sources = [program.source for program in first.programs + second.programs]
    assert sorted(sources) == sorted({f"before {sample.text} tests" for sample in given})
    assert len(first.programs) == 2
    assert [item.outcome.passed for item in scored] == ["good" in s.text for s in given]
    assert [item.sample for item in scored] == given
    assert {program.time_limit for program in second.programs} == {2.0}
    third = FakeSandbox()
    assert run(path, given, third) == scored and third.programs == []
    # What another time limit said does not hold for this one.
    run(path, given, third, time_limit=1.0)
    assert len(third.programs) == 4


def test_pass_at_k_over_problems(tmp_path):
    given = samples("good", "bad", "bad", "bad 2", "good 3", "good 4", "bad 5")
    scored = run(tmp_path / "o.jsonl", given, FakeSandbox())
    # b: 2 of 4, a: 1 of 3.
    values = scoring.metrics(TASK, scored, (1, 2))
    assert set(values) == {"pass@1", "pass@1_stderr", "pass@2", "pass@2_stderr"}
    expected = mean_and_error([1 / 2, 1 / 3])
    assert (values["pass@1"], values["pass@1_stderr"]) == pytest.approx(expected)
    expected = mean_and_error([1 - 1 / 6, 1 - 1 / 3])
    assert (values["pass@2"], values["pass@2_stderr"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="pass@4 cannot be told from 3"):
        scoring.check_counts(TASK, given, (1, 4))
    scoring.check_counts(TASK, given, (1, 3))
    scoring.check_counts(dataclasses.replace(TASK, metric="exact_match"), given, (9,))
    assert scoring.metrics(TASK, [], (1,)) == {}


def test_exact_match_over_problems_and_groups():
    problems = {
        f"{group}/{number}": Problem(
            f"{group}/{number}", "", "", None, group=group, solutions={"canonical": " x = 1\n"}
        )
        for group, number in (("py", 0), ("py", 1), ("js", 0))
    }
    given = [
        Sample("py/0", 0, "x = 1"),
        Sample("py/0", 1, "x  = 1"),
        Sample("py/1", 0, "\tx = 1  \n"),
        Sample("js/0", 0, "x = 1;"),
    ]
    scored = scoring.compare(problems, given)
    assert [item.outcome.passed for item in scored] == [True, False, True, False]
    assert {item.outcome.reason for item in scored} == {"passed", "different"}
    values = scoring.metrics(dataclasses.replace(TASK, metric="exact_match"), scored, (1,))
    mean, error = mean_and_error([0.5, 1, 0])
    assert values == {
        "exact_match": mean,
        "exact_match_stderr": error,
        "exact_match/js": 0.0,
        "exact_match/py": 0.75,
    }
