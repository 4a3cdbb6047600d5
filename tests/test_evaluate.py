"""The command `evaluate`, on problems of our own; `test_golden_benchmarks` has the real ones."""

import json
import pathlib
import re
import shlex
import signal
import time

import micro
import pytest

from starcoder_jax import evaluate
from starcoder_jax.evals import evaluation
from starcoder_jax.evals.requests import Request
from starcoder_jax.evals.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _sandbox():
    try:
        Sandbox(workers=1).close()
    except ValueError as error:
        # Without walls the command refuses to run programs, which the sandbox's tests show.
        pytest.skip(str(error))


@pytest.fixture
def refused(capfd):
    """Runs the command, which must exit with status 2 and one line, which it returns."""

    def call(*arguments, **options):
        capfd.readouterr()
        with pytest.raises(SystemExit) as raised:
            run(*arguments, **options)
        error = capfd.readouterr().err
        assert raised.value.code == 2, error
        lines = [line for line in error.splitlines() if not line.startswith(("usage:", " "))]
        assert len(lines) == 1, error
        return lines[0]

    return call


def run(*arguments, output="o.json"):
    """Runs the command in this process; the result, if it wrote one."""
    evaluate.main([*map(str, arguments), f"--output={output}"])
    return json.loads(pathlib.Path(output).read_text()) if pathlib.Path(output).exists() else None


def add(number):
    """A problem in the format of HumanEval: add a number."""
    return {
        "task_id": f"Add/{number}",
        "prompt": f'def add(x):\n    """ Adds {number} to x. """\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(10) == 10 + {number}\n",
        "entry_point": "add",
    }


def lines_of(path):
    """The objects of a file of JSON lines; none of a line that is not whole."""
    path = pathlib.Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def write_lines(path, rows):
    pathlib.Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data():
    return write_lines("add.jsonl", [add(number) for number in range(1, 6)])


def test_help(capsys):
    with pytest.raises(SystemExit) as raised:
        evaluate.main(["--help"])
    assert raised.value.code == 0
    output = capsys.readouterr().out
    assert "python -m starcoder_jax.evaluate" in output and "humanevalpack-fix" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=humaneval"], "required: --data"),
        (["--task=humanevil", "--data=add.jsonl"], "invalid choice: 'humanevil'"),
        (["--task=humaneval", "--data=add.jsonl"], "give one of --checkpoint"),
        (["--task=humaneval", "--data=no.jsonl", "--solutions=canonical"], "no such file"),
        (["--task=humaneval", "--data=.", "--solutions=canonical"], "must be a .jsonl"),
        (["--task=mbpp", "--data=add.jsonl", "--solutions=canonical"], "it has no 'test_list'"),
        (["--task=humaneval", "--data=add.jsonl", "--solutions=buggy"], "no buggy solution"),
        (["--task=humaneval", "--data=add.jsonl", "--samples=s.jsonl"], "cannot read s.jsonl"),
        (["--task=humaneval", "--data=add.jsonl", "--checkpoint=no"], "no checkpoint in"),
        (
            ["--task=humaneval", "--data=add.jsonl", "--solutions=canonical", "--only=x"],
            "--only=x is the name of no problem",
        ),
        (
            ["--task=humaneval", "--data=add.jsonl", "--solutions=canonical", "--k=1,2"],
            "pass@2 cannot be told from 1 sample",
        ),
        (["--task=humaneval", "--data=add.jsonl", "--k=x"], "argument --k"),
        (
            ["--task=humaneval", "--data=add.jsonl", "--checkpoint=RUN", "--temperature=-1"],
            "temperature=-1.0 is out of range",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line(refused, data, arguments, message, trained):
    arguments = [argument.replace("RUN", str(trained)) for argument in arguments]
    assert message in refused(*arguments)


@pytest.mark.usefixtures("_sandbox")
def test_the_data_s_own_solutions_are_scored(data, capsys):
    result = run("--task=humaneval", f"--data={data}", "--solutions=canonical")
    assert result["task"] == "humaneval"
    assert result["metrics"] == {"pass@1": 1.0, "pass@1_stderr": 0.0}
    assert [s["task_id"] for s in result["samples"]] == [f"Add/{n}" for n in range(1, 6)]
    assert all(s["passed"] and s["reason"] == "passed" for s in result["samples"])
    assert result["problems"] == 5 and result["outcomes"] == {"passed": 5}
    assert result["scoring"]["time_limit"] == 10.0
    assert result["scoring"]["sandbox"]["isolation"]
    assert result["data"]["file"] == "add.jsonl" and len(result["data"]["sha256"]) == 64
    assert {"python", "jax", "starcoder_jax"} <= set(result["versions"])
    printed = capsys.readouterr()
    assert "pass@1  1.0000" in printed.out and "wrote o.json and o.html" in printed.out
    assert "running 5/5" in printed.err
    assert pathlib.Path("o.html").read_text().count("<h1>") == 1
    some = run("--task=humaneval", f"--data={data}", "--solutions=canonical", "--only=*/[24]")
    assert [s["task_id"] for s in some["samples"]] == ["Add/2", "Add/4"]


@pytest.mark.usefixtures("_sandbox")
@pytest.mark.parametrize("form", ["completion", "solution", "lists"])
def test_published_formats_are_scored(data, form):
    good = {number: f"    return x + {number}\n" for number in range(1, 6)}
    bad = dict.fromkeys(good, "    return 0\n")
    rows = [good, bad, good | {2: "    while True: pass\n"}, bad | {4: good[4]}]
    if form == "completion":
        samples = [{"task_id": f"Add/{n}", "completion": row[n]} for row in rows for n in row]
        path = write_lines("s.jsonl", samples)
    elif form == "solution":
        samples = [
            {"task_id": f"Add/{n}", "solution": f"def add(x):\n{row[n]}"}
            for row in rows
            for n in row
        ]
        path = write_lines("s.jsonl", samples)
    else:
        path = pathlib.Path("generations.json")
        path.write_text(json.dumps([[f"def add(x):\n{row[n]}" for row in rows] for n in good]))
    arguments = ["--task=humaneval", f"--data={data}", f"--samples={path}"]
    result = run(*arguments, "--k=1,2", "--time_limit=0.5")
    # Of 4 samples pass 2, but of problem 2 one and of problem 4 three.
    assert result["metrics"]["pass@1"] == pytest.approx((3 * 2 + 1 + 3) / 20)
    assert result["metrics"]["pass@2"] == pytest.approx((3 * (1 - 1 / 6) + 0.5 + 1) / 5)
    assert result["outcomes"] == {"passed": 10, "failed": 9, "timeout": 1}
    assert result["source"]["samples"] == str(path)
    reasons = {(s["task_id"], s["sample"]): s["reason"] for s in result["samples"]}
    assert reasons["Add/2", 2] == "timeout" and reasons["Add/4", 3] == "passed"
    page = pathlib.Path("o.html").read_text()
    assert "timeout (1)" in page and "failed (9)" in page


def test_samples_of_too_few_problems_are_refused(refused, data):
    write_lines("s.jsonl", [{"task_id": "Add/1", "completion": "    return x + 1"}])
    arguments = ["--task=humaneval", f"--data={data}", "--samples=s.jsonl"]
    assert "no sample of 4 problem(s), such as Add/2" in refused(*arguments)


@pytest.mark.usefixtures("_sandbox")
def test_a_language_that_cannot_be_run_is_skipped_by_name(monkeypatch, capsys):
    fields = {"prompt": "p", "tests": "t", "stop_tokens": ["x"]}
    rows = [
        {"name": f"{language}_{number}", "language": language, **fields}
        for number, language in enumerate(["lua", "js", "js"])
    ]
    data = write_lines("languages.jsonl", rows)
    samples = [{"task_id": row["name"], "completion": "y"} for row in rows]
    write_lines("s.jsonl", samples)
    monkeypatch.setattr(evaluation, "missing_toolchains", lambda: {"javascript": "node"})
    result = run("--task=multipl-e", f"--data={data}", "--samples=s.jsonl")
    assert result["skipped"] == {
        "lua": "the sandbox cannot run it",
        "javascript": "node is not installed",
    }
    assert result["metrics"] == {} and result["samples"] == [] and result["problems"] == 0
    assert "lua is skipped: the sandbox cannot run it" in capsys.readouterr().err
    assert "javascript was skipped" in pathlib.Path("o.html").read_text()


def test_generating_and_scoring_can_be_apart(trained, data, refused):
    generating = [f"--checkpoint={trained}", "--task=humaneval", f"--data={data}"]
    generating += ["--num_samples=3", "--temperature=0.8", "--max_tokens=12", "--generate_only"]
    assert run(*generating, output="g.json") is None
    samples = lines_of("g.samples.jsonl")
    assert len(samples) == 15 and len({s["completion"] for s in samples}) > 5
    assert {s["task_id"] for s in samples} == {f"Add/{n}" for n in range(1, 6)}
    # Another seed, other samples; the same seed, the same.
    run(*generating, output="again.json")
    run(*generating, "--seed=1", output="other.json")
    key = {(s["task_id"], s["sample"]): s["completion"] for s in samples}
    again = {(s["task_id"], s["sample"]): s["completion"] for s in lines_of("again.samples.jsonl")}
    other = {(s["task_id"], s["sample"]): s["completion"] for s in lines_of("other.samples.jsonl")}
    assert again == key and other.keys() == key.keys() and other != key
    line = refused(*generating, "--top_p=0.9", output="g.json")
    assert "top_p 1.0 -> 0.9" in line and "give another --output" in line


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.usefixtures("_sandbox")
def test_a_killed_run_generates_and_scores_nothing_twice(trained):
    # Two groups of a problem; programs that take a while.
    slow = [add(number) for number in range(1, 10)]
    for row in slow:
        row["test"] = "import time\ntime.sleep(0.1)\n" + row["test"]
    write_lines("slow.jsonl", slow)
    arguments = [f"--checkpoint={trained}", "--task=humaneval", "--data=slow.jsonl"]
    arguments += ["--num_samples=2", "--temperature=1", "--max_tokens=16", "--slots=2"]
    whole = run(*arguments, "--workers=2", output="whole.json")

    def killed(file, count):
        process = micro.start("evaluate", *arguments, "--workers=1", "--output=o.json")
        wait_for(lambda: len(lines_of(file)) >= count, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return lines_of(file)

    samples = killed("o.samples.jsonl", 2)
    assert len(samples) < 18
    outcomes = killed("o.outcomes.jsonl", 2)
    assert lines_of("o.samples.jsonl")[: len(samples)] == samples
    assert len(lines_of("o.samples.jsonl")) == 18
    programs = {sample["completion"] for sample in lines_of("o.samples.jsonl")}
    assert len(outcomes) < len(programs)
    assert not pathlib.Path("o.json").exists()
    done = micro.run("evaluate", *arguments, "--workers=2", "--output=o.json")
    assert done.returncode == 0, done.stderr
    assert "generating 18/18" in done.stderr
    assert lines_of("o.outcomes.jsonl")[: len(outcomes)] == outcomes
    names = [outcome["program"] for outcome in lines_of("o.outcomes.jsonl")]
    assert len(set(names)) == len(names)
    result = json.loads(pathlib.Path("o.json").read_text())
    for name in ("metrics", "outcomes", "data", "source"):
        assert result[name] == whole[name]
    kept = ("task_id", "sample", "passed", "reason")
    assert [[s[name] for name in kept] for s in result["samples"]] == [
        [s[name] for name in kept] for s in whole["samples"]
    ]


def test_lines_of_a_corpus_are_filled_in(trained, micro_folder):
    arguments = [f"--checkpoint={trained}", f"--data={micro_folder / 'data'}", "--limit=12"]
    result = run(*arguments, "--task=fim", "--max_tokens=24")
    assert result["problems"] == 12 and 0 <= result["metrics"]["exact_match"] <= 1
    assert result["scoring"] == {"rule": "equal but for white space around it"}
    assert result["source"]["order"] == "psm"
    other = run(*arguments, "--task=fim-left-to-right", "--max_tokens=24", output="l.json")
    names = [sample["task_id"] for sample in result["samples"]]
    assert sorted(names) == sorted(sample["task_id"] for sample in other["samples"])
    assert other["data"]["sha256"] == result["data"]["sha256"]
    assert other["data"]["prompts_sha256"] != result["data"]["prompts_sha256"]
    # The data's own lines are right.
    arguments = ["--task=fim", f"--data={micro_folder / 'data'}", "--solutions=canonical"]
    canonical = run(*arguments, output="c.json")
    assert canonical["metrics"]["exact_match"] == 1.0 and canonical["problems"] > 12


def test_perplexity_of_a_corpus(trained, micro_folder):
    arguments = [f"--checkpoint={trained}", "--task=perplexity", "--window=64"]
    result = run(*arguments, f"--data={micro_folder / 'data'}", "--limit=4")
    trained_to = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in trained_to if "eval/loss" in record][-1]
    assert result["metrics"]["bits_per_byte"] == pytest.approx(last["eval/bits_per_byte"], rel=1e-4)
    assert result["metrics"]["loss"] == pytest.approx(last["eval/loss"], rel=1e-4)
    assert len(result["samples"]) == 4 and result["source"]["step"] == micro.STEPS
    folder = run(*arguments, f"--data={micro_folder / 'code'}", "--limit=2", output="f.json")
    assert folder["metrics"]["perplexity"] > 1 and folder["data"]["bytes"] > 0


def test_perplexity_of_lines_of_a_corpus_and_of_a_benchmark(trained, micro_folder, tmp_path):
    arguments = [f"--checkpoint={trained}", "--task=fim-perplexity", "--window=64"]
    result = run(*arguments, f"--data={micro_folder / 'data'}", "--limit=6")
    metrics = result["metrics"]
    orders = ("psm", "spm", "left-to-right")
    assert all(0 < metrics[f"{order}/bits_per_byte"] < 20 for order in orders)
    saved = metrics["left-to-right/bits_per_byte"] - metrics["spm/bits_per_byte"]
    assert metrics["spm/saved"] == pytest.approx(saved)
    assert result["problems"] == len(result["samples"]) == 6
    assert result["data"]["lines_of"] == "data" and result["data"]["bytes"] > 0
    rows = [{"prefix": "a = 1\n", "middle": "b = 2", "suffix": "\nc = 3\n"}] * 2
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = run(*arguments, f"--data={file}", "--limit=1", output="g.json")
    assert result["problems"] == 1 and result["data"]["file"] == "lines.jsonl"


def test_the_commands_of_the_documentation_are_commands():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    commands = [
        line.partition("starcoder_jax.evaluate ")[2]
        for line in text.splitlines()
        if "-m starcoder_jax.evaluate " in line
    ]
    assert len(commands) >= 7
    # Rows of the table of published settings: flags, possibly with some of one figure alone.
    settings = [" ".join(re.findall(r"(?<!, )`(--[^`]*)`", line)) for line in text.splitlines()]
    sampling = [flags for flags in settings if "--num_samples" in flags]
    assert len(sampling) == 5
    base = "--checkpoint=c --data=d.jsonl --task=humaneval "
    for command in [*commands, *(base + flags for flags in sampling)]:
        args = vars(evaluate._parser().parse_args(shlex.split(command)))
        output = args.pop("output") or pathlib.Path("o.json")
        assert Request(output=output, **args).task in command


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(request, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    with pytest.raises(SystemExit) as raised:
        run("--task=humaneval", "--data=d.jsonl", "--solutions=canonical")
    assert raised.value.code == 130
    assert capsys.readouterr().err == "evaluate: stopped; the same command goes on from here\n"
