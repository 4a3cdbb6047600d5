"""Each benchmark on problems of its format, and what becomes of answers to them."""

import subprocess
import sys

import pytest

from starcoder_jax.evals.problems import make_problems
from starcoder_jax.evals.tasks import TASKS
from starcoder_jax.evals.tasks.humanevalpack import cut_function

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": '\ndef twice(x):\n    """ Doubles. """\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "\ndef check(candidate):\n    assert candidate(4) == 8\n",
    "entry_point": "twice",
}
PACK = {
    "task_id": "Python/0",
    "prompt": 'def twice(x):\n    """ Doubles. """\n',
    "declaration": "def twice(x):\n",
    "canonical_solution": "    return math.floor(2 * x)  # in words\n",
    "buggy_solution": "    return 3 * x\n",
    "test": "\ndef check(twice):\n    assert twice(4) == 8\n\ncheck(twice)",
    "entry_point": "twice",
    "docstring": "Doubles a number.",
    "instruction": "Write a Python function `twice(x)` to solve the following problem:\nDoubles.\n",
}
MBPP = {
    "task_id": 12,
    "text": "Write a function to double.",
    "code": "def twice(p):\r\n  return 2 * p.x",
    "test_setup_code": "p = Point(4)",
    "test_list": ["assert twice(p) == 8", "assert twice(Point(1)) == 2"],
}
POINT = "class Point:\n  def __init__(self, x): self.x = x\n"
FIM = {"prompt": "a = 1\n\n", "suffix": "\nc = 3\n", "canonical_solution": "b = 2"}


def only(task, row, prompt_format=None):
    (problem,) = make_problems(TASKS[task], [row], prompt_format)
    return problem


def passes(problem, code):
    """Whether the program ends well. What these tests hold needs no sandbox."""
    command = [sys.executable, "-I", "-c", problem.program(code)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_humaneval():
    problem = only("humaneval", HUMANEVAL)
    assert problem.prompt == 'def twice(x):\n    """ Doubles. """'
    assert problem.language == "python" and "\ndef" in problem.stop
    assert passes(problem, problem.code(problem.solutions["canonical"]))
    assert passes(problem, problem.code("\n    return x + x"))  # as a model goes on
    assert not passes(problem, problem.code("    return x\n"))
    assert not passes(problem, problem.code("    return x +"))


def test_mbpp_has_its_setup_after_the_code():
    problem = only("mbpp", MBPP)
    assert problem.prompt == '"""\nWrite a function to double.\nassert twice(p) == 8\n"""\n'
    assert problem.task_id == "12"
    assert passes(problem, POINT + problem.solutions["canonical"])
    assert passes(problem, problem.code(POINT + problem.solutions["canonical"]))
    assert not passes(problem, problem.solutions["canonical"])
    assert not passes(problem, POINT + "def twice(p): return 8")


def test_sanitized_mbpp_brings_its_imports():
    row = {k: v for k, v in MBPP.items() if k not in ("text", "test_setup_code")}
    row |= {"prompt": "Double.", "test_imports": ["import math"]}
    row["test_list"] = ["assert math.isclose(twice(2), 4)"]
    problem = only("mbpp", row)
    assert problem.prompt == '"""\nDouble.\nassert math.isclose(twice(2), 4)\n"""\n'
    assert passes(problem, "def twice(x): return 2 * x")


def test_the_test_split_of_mbpp_has_500_problems():
    rows = [MBPP | {"task_id": number} for number in range(1, 975)]
    ids = [int(p.task_id) for p in make_problems(TASKS["mbpp-test"], rows, None)]
    assert ids == list(range(11, 511))


def test_humaneval_infilling():
    row = HUMANEVAL | {
        "prompt": "def twice(x):\n    y = 2",
        "suffix": "x\n    return y\n",
        "canonical_solution": " * ",
    }
    problem = only("humaneval-infilling", row)
    assert (problem.prompt, problem.suffix) == (row["prompt"], row["suffix"])
    assert problem.stop == ()
    assert passes(problem, problem.code(" * "))
    assert not passes(problem, problem.code(" + "))


@pytest.mark.parametrize(
    ("name", "language"),
    [("js", "javascript"), ("sh", "bash"), ("rs", "rust"), ("cpp", "cpp"), ("lua", "lua")],
)
def test_multipl_e(name, language):
    row = {
        "name": "HumanEval_0_twice",
        "language": name,
        "prompt": "// Doubles.\ntwice() {\n",
        "tests": "}\ncheck();",
        "stop_tokens": ["\n}"],
    }
    problem = only("multipl-e", row)
    assert problem.prompt == "// Doubles.\ntwice() {" and problem.stop == ("\n}",)
    assert problem.language == language and problem.task_id == "HumanEval_0_twice"
    program = problem.program(problem.code("\n  return 1;"))
    assert program == "// Doubles.\ntwice() {\n\n  return 1;\n}\ncheck();\n"


def test_multipl_e_of_python_is_humaneval():
    problem = only("multipl-e", {k: v for k, v in PACK.items() if k != "entry_point"})
    assert passes(problem, "def twice(x): return 2 * x")
    assert not passes(problem, "def twice(x): return x")


@pytest.mark.parametrize("task", ["synthesize", "fix", "explain"])
def test_humanevalpack_tells_right_from_wrong(task):
    problem = only(f"humanevalpack-{task}", PACK)
    if problem.then is not None:
        problem = problem.then("It doubles.")
    # The published harness lends programs its imports.
    assert passes(problem, problem.code(problem.solutions["canonical"]))
    assert not passes(problem, problem.code(problem.solutions["buggy"]))
    assert "\n#" in problem.stop


def test_prompts_of_humanevalpack():
    fixing = only("humanevalpack-fix", PACK, "instruct").prompt
    code = f"def twice(x):\n    return 3 * x\n\n{PACK['test']}"
    assert fixing == f"{code}\nFix bugs in twice.\n\ndef twice(x):"
    assert only("humanevalpack-fix", PACK).prompt == fixing
    fixing = only("humanevalpack-fix", PACK, "octocoder").prompt
    assert fixing == f"Question: Fix bugs in twice.\n{code}\n\nAnswer:\ndef twice(x):"
    fixing = only("humanevalpack-fix", PACK, "commit")
    assert fixing.prompt == (
        f"<commit_before>{code}<commit_msg>Fix bugs in twice.<commit_after>def twice(x):"
    )
    assert fixing.special_tokens == ("<commit_before>", "<commit_msg>", "<commit_after>")
    writing = only("humanevalpack-synthesize", PACK, "octocoder").prompt
    instruction = PACK["instruction"].strip()
    assert writing == f"Question: {instruction}\n\nAnswer:\n{PACK['prompt'].strip()}"
    writing = only("humanevalpack-synthesize", PACK, "commit").prompt
    assert writing.startswith(f"<commit_before><commit_msg>{instruction}<commit_after>def twice")


def test_an_explanation_is_cut_to_length_and_rid_of_code():
    explaining = only("humanevalpack-explain", PACK)
    ask = "Provide a concise natural language description of the code using at most 17 characters."
    code = PACK["declaration"] + PACK["canonical_solution"]
    assert explaining.prompt == f"{code}\n{ask}"
    rewrite = "Write functional code in Python according to the description.\n\ndef twice(x):"
    assert explaining.then("  Doubles and more than that").prompt == f"Doubles and more\n{rewrite}"
    long = only("humanevalpack-explain", PACK | {"docstring": "x" * 99})
    told = f"Code: {PACK['canonical_solution'].strip()}!"
    assert long.then(told).prompt == f"Code: !\n{rewrite}"


def test_humanevalpack_in_other_languages():
    row = PACK | {"task_id": "CPP/0", "prompt": "int twice(int x) {\n"}
    problem = only("humanevalpack-synthesize", row)
    program = problem.program("int twice(int x) { return sqrt(x); }\nint main() { return 0; }\n")
    assert program.startswith("#include") and "return 0" not in program
    assert program.count("sqrt(x)") == 1
    row = PACK | {"task_id": "Java/0"}
    problem = only("humanevalpack-synthesize", row)
    assert problem.language == "java"
    assert (
        problem.program("public class Main {\n    }\nclass S {}")
        == f"\nclass S {{}}\n{row['test']}\n"
    )
    languages = {
        name: only("humanevalpack-fix", PACK | {"task_id": f"{name}/0"}).language
        for name in ("JavaScript", "Rust", "Go")
    }
    assert languages == {"JavaScript": "javascript", "Rust": "rust with cargo", "Go": "go"}
    with pytest.raises(ValueError, match="task_id of a known language"):
        only("humanevalpack-fix", PACK | {"task_id": "Lua/0"})


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("python", "\n    return 1\n\n\nprint()", "\n    return 1\n\n"),
        ("python", " # note\n\treturn 1\n  \nx = 1", " # note\n\treturn 1\n  "),
        ("python", "\n    return 1\n", "\n    return 1\n"),
        ("javascript", "\n  if (x) {\n  }\n}\n\nf() {}", "\n  if (x) {\n  }\n}"),
        ("javascript", "\n  if (x) {\n  }\n", "\n  if (x) {\n  }\n"),
        ("java", "\n  }\n}\nclass Main {}", "\n  }\n}"),
    ],
)
def test_a_function_ends_where_its_code_does(language, text, expected):
    assert cut_function(text, language) == expected


def test_fim():
    for row in (FIM, {"prefix": FIM["prompt"], "suffix": FIM["suffix"], "middle": "b = 2"}):
        problem = only("fim", row | {"language": "py"})
        assert (problem.prompt, problem.suffix, problem.group) == ("a = 1\n\n", "\nc = 3\n", "py")
        assert problem.language is None and problem.solutions == {"canonical": "b = 2"}
        assert problem.cut("b = 2\nc") == "b = 2\nc"
    assert only("fim", FIM | {"is_line": True}).cut("\n b = 2\nc") == "\n b = 2"


def test_left_to_right_sees_no_suffix_and_gives_one_line():
    problem = only("fim-left-to-right", FIM)
    assert problem.prompt == "a = 1" and problem.suffix is None
    assert problem.task_id == only("fim", FIM).task_id
    assert problem.cut("\n\n  b = 2\nc = 3") == "\n\n  b = 2"
    assert problem.cut("\n\n  b =") == "\n\n  b =" and problem.cut("\n\n ") == "\n\n "
