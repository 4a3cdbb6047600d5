"""The published benchmarks, where their files lie beside the repository."""

import json
import pathlib

import pytest

from starcoder_jax.evals.evaluation import evaluate
from starcoder_jax.evals.requests import Request
from starcoder_jax.evals.sandbox import Sandbox, missing_toolchains
from starcoder_jax.progress import Progress

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
PACK, TRANSLATED = DATA / "humanevalpack", DATA / "multipl-e-humaneval"
INSTRUCT = "evalplus-starcoder2-15b-instruct-v0.1-humaneval"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_and_sandbox():
    if not DATA.is_dir():
        # Other people's data is not committed; `test_benchmark_tasks` has problems of our own.
        pytest.skip(f"there is no {DATA}")
    try:
        Sandbox(workers=1).close()
    except ValueError as error:
        pytest.skip(str(error))  # nothing can be scored without walls


@pytest.fixture
def score(tmp_path):
    """Runs an evaluation; the result."""

    def call(task, data, **fields):
        output = tmp_path / "o.json"
        evaluate(Request(task=task, data=pathlib.Path(data), output=output, **fields), Progress())
        return json.loads(output.read_text())

    return call


def passed(result):
    """How many samples passed, of how many."""
    return sum(sample["passed"] for sample in result["samples"]), len(result["samples"])


@pytest.mark.parametrize(
    ("task", "file", "count"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164),
        ("mbpp", "mbpp/mbpp.jsonl", 974),
        ("mbpp", "mbpp/sanitized-mbpp.json", 427),
        ("humaneval-infilling", "HumanEval-SingleLineInfilling.jsonl.gz", 1033),
        ("humaneval-infilling", "HumanEval-MultiLineInfilling.jsonl.gz", 5815),
        ("humaneval-infilling", "HumanEval-RandomSpanInfillingLight.jsonl.gz", 164),
        ("humanevalpack-synthesize", "humanevalpack/python.jsonl", 164),
        ("multipl-e", "multipl-e-humaneval/humaneval-python.jsonl", 164),
    ],
)
def test_canonical_solutions_pass(score, task, file, count):
    folder = DATA / task if task == "humaneval-infilling" else DATA
    result = score(task, folder / file, solutions="canonical")
    assert passed(result) == (count, count), result["outcomes"]


def test_buggy_python_fails(score):
    # What loops for ever fails at any limit.
    result = score("humanevalpack-fix", PACK / "python.jsonl", solutions="buggy", time_limit=1.0)
    assert passed(result) == (0, 164)


# node is no Python package.
@pytest.mark.skipif("javascript" in missing_toolchains(), reason="node is not installed")
def test_javascript_tells_buggy_from_canonical(score):
    # console.assert prints and goes on: by their exit status, 153 of the buggy ones pass.
    buggy = score("humanevalpack-fix", PACK / "js.jsonl", solutions="buggy", time_limit=1.5)
    assert passed(buggy) == (0, 164)
    canonical = score("humanevalpack-fix", PACK / "js.jsonl", solutions="canonical")
    assert passed(canonical)[0] >= 163  # one needs a package


def test_published_samples_get_their_published_statuses(score):
    samples = DATA / "selfcodealign" / f"{INSTRUCT}.jsonl"
    result = score("humaneval", DATA / "humaneval" / "HumanEval.jsonl.gz", samples=samples)
    assert passed(result) == (119, 164)
    results = DATA / "selfcodealign" / f"{INSTRUCT}_eval_results.json"
    recorded = json.loads(results.read_text())["eval"]
    for sample in result["samples"]:
        (entry,) = recorded[sample["task_id"]]
        assert sample["passed"] == (entry["base_status"] == "pass"), sample


# MultiPL-E has no solutions: bodies of three problems, and one that is wrong, as a model ends them.
BODIES = {
    "cpp": ("cpp", "\n    return string.length();", "\n    return x + y;", "\n    return x - y;"),
    "java": (
        "java",
        "\n        return (long)string.length();",
        "\n        return x + y;",
        "\n        return x - y;",
    ),
    "js": (
        "javascript",
        "\n  return string.length;\n}\n",
        "\n  return x + y;\n}",
        "\n  return x;\n}",
    ),
    "rs": (
        "rust",
        "\n    string.len() as isize",
        "\n    x + y",
        "\n    x - y",
    ),
    "sh": ("bash", '\n    echo "${#1}"', "\n    echo $(($1 + $2))", "\n    echo $(($1 - $2))"),
}


@pytest.mark.parametrize("name", BODIES)
def test_translated_problems_are_run(score, tmp_path, name):
    language, length, total, wrong = BODIES[name]
    if language in missing_toolchains():
        # Compilers are no Python packages.
        pytest.skip(f"{missing_toolchains()[language]} is not installed")
    pairs = [
        ("HumanEval_23_strlen", length),
        ("HumanEval_53_add", total),
        ("HumanEval_53_add", wrong),
    ]
    path = tmp_path / "s.jsonl"
    path.write_text(
        "".join(json.dumps({"task_id": n, "completion": text}) + "\n" for n, text in pairs)
    )
    data = TRANSLATED / f"humaneval-{name}.jsonl"
    result = score("multipl-e", data, samples=path, only="HumanEval_[25]3_*")
    reasons = [sample["passed"] for sample in result["samples"]]
    assert reasons == [True, True, False], result["samples"]
