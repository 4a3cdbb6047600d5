import importlib
import io
import json
import pathlib
import re
import shlex
import signal
import sys

import micro
import pytest

import starcoder_jax as sj
from starcoder_jax.inference.engine import Engine
from starcoder_jax.inference.infilling import Repository, infill_prompt

# By its name: `starcoder_jax.generate` is the function.
command = importlib.import_module("starcoder_jax.generate")

PROMPT = "def read_line(line, limit="
LINE = "def read_line(line, limit=3):\n"
DRAWN = ("--temperature=1.5", "--top_k=90", "--top_p=0.95", "--min_p=0.01")


@pytest.fixture(scope="module")
def loaded(trained):
    return sj.load_model(trained)


@pytest.fixture
def file(tmp_path) -> pathlib.Path:
    path = tmp_path / "project" / "file.py"
    path.parent.mkdir()
    path.write_bytes(LINE.encode() + b"    for item in line:\r\n        return\r\n")
    return path


@pytest.fixture
def generate(trained, capsys):
    """Runs the command on the trained model, and returns what it wrote."""

    def call(*arguments, status=0):
        with pytest.raises(SystemExit) as raised:
            command.main([f"--checkpoint={trained}", *map(str, arguments)])
        output = capsys.readouterr()
        assert (raised.value.code, output.err) == (status, "")
        return output.out

    return call


@pytest.fixture
def objects(generate):
    """Runs the command with --json, and returns the objects."""

    def call(*arguments, status=0):
        output = generate(*arguments, "--json", status=status)
        assert output.endswith("\n")
        return [json.loads(line) for line in output.splitlines()]

    return call


@pytest.fixture
def steps(monkeypatch):
    """Calls a function with the number of each step of an engine, once the step is done."""

    def at_each(function):
        step, count = Engine.step, 0

        def counted(engine):
            nonlocal count
            count += 1
            step(engine)
            function(count)

        monkeypatch.setattr(Engine, "step", counted)

    return at_each


def test_completes_a_prompt(generate, loaded, monkeypatch):
    expected = PROMPT + sj.generate(*loaded, [PROMPT], max_tokens=20)[0] + "\n"
    assert len(expected) > len(PROMPT) + 10
    assert generate(f"--prompt={PROMPT}", "--max_tokens=20") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode())))
    assert generate("--prompt=-", "--max_tokens=20") == expected


def test_text_is_written_as_it_comes(generate, steps, loaded, capsys):
    expected = PROMPT + sj.generate(*loaded, [PROMPT], max_tokens=20)[0] + "\n"
    seen = []
    steps(lambda count: seen.append(capsys.readouterr().out))
    rest = generate(f"--prompt={PROMPT}", "--max_tokens=20")
    # By the end of a step, all that came of the steps before was written.
    assert seen[0] == PROMPT and sum(map(bool, seen)) > 10
    assert "".join(seen) + rest == expected


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_fills_in_at_the_cursor(generate, objects, loaded, file, order):
    arguments = (f"--file={file}", "--cursor=1:27", f"--order={order}", "--max_tokens=9")
    # Line ends are those of the file.
    prefix, suffix = LINE[:26], LINE[26:] + "    for item in line:\r\n        return\r\n"
    expected = sj.infill(*loaded, prefix, suffix, order=order, max_tokens=9)
    assert generate(*arguments) == expected + "\n"
    (found,) = objects(*arguments)
    marks = {
        "psm": f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>",
        "spm": f"<fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}",
    }
    assert (found["prompt"], found["text"]) == (marks[order], expected)


def test_prefix_first_is_the_default(objects, file):
    arguments = (f"--file={file}", "--cursor=1:27", "--max_tokens=1")
    assert objects(*arguments) == objects(*arguments, "--order=psm")
    assert objects(*arguments) != objects(*arguments, "--order=spm")


def test_a_long_file_is_cut_to_what_the_model_takes(objects, loaded, file):
    model, tokenizer = loaded
    text = LINE * 60
    file.write_text(text)
    (found,) = objects(f"--file={file}", "--cursor=30:27", "--max_tokens=40")
    prefix, suffix = text[: 29 * len(LINE) + 26], text[29 * len(LINE) + 26 :]
    prompt = infill_prompt(tokenizer, prefix, suffix, max_tokens=88)
    assert found["prompt"] == tokenizer.decode(prompt)
    assert found["prompt_tokens"] == 88 == model.config.max_length - 40


def test_the_repository_of_the_file(objects, loaded, file):
    (file.parent / "other.py").write_text("name = 'other'\n")
    (file.parent / "large.py").write_text("name = 'large'\n" * 99)
    arguments = [f"--file={file}", "--cursor=1:27", f"--context={file.parent}", "--max_tokens=2"]
    (found,) = objects(*arguments)
    suffix = LINE[26:] + "    for item in line:\r\n        return\r\n"
    context = Repository("project", "file.py", (("other.py", "name = 'other'\n"),))
    prompt = infill_prompt(loaded[1], LINE[:26], suffix, context=context)
    assert found["prompt"] == loaded[1].decode(prompt)
    assert found["prompt_tokens"] == len(prompt) < 126


def test_json_is_one_object_a_completion(objects, loaded):
    found = objects(f"--prompt={PROMPT}", "--max_tokens=5", "--samples=3")
    text = sj.generate(*loaded, [PROMPT], max_tokens=5)[0]
    prompt_tokens = len(loaded[1].encode(PROMPT))
    assert found == [
        {
            "index": index,
            "prompt": PROMPT,
            "text": text,
            "finish_reason": "length",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 5,
        }
        for index in range(3)
    ]


def test_samples_are_those_of_their_seed(generate, objects, loaded):
    arguments = (f"--prompt={PROMPT}", "--max_tokens=8", "--samples=3", *DRAWN)
    texts = [sample["text"] for sample in objects(*arguments, "--seed=7")]
    fields = {"temperature": 1.5, "top_k": 90, "top_p": 0.95, "min_p": 0.01, "seed": 7}
    assert texts == sj.generate(*loaded, [PROMPT], samples=3, max_tokens=8, **fields)
    assert len(set(texts)) == 3
    assert texts[:1] == [
        sample["text"] for sample in objects(*arguments[:2], *DRAWN, "--seed=7", "--samples=1")
    ]
    assert texts != [sample["text"] for sample in objects(*arguments, "--seed=8")]
    assert generate(*arguments, "--seed=7") == "".join(
        f"=== {number} of 3 ===\n{PROMPT}{text}\n" for number, text in enumerate(texts, start=1)
    )


def test_stop_strings_and_penalties(objects, loaded):
    (free,) = objects(f"--prompt={PROMPT}", "--max_tokens=20")
    later, earlier = free["text"][9:12], free["text"][4:6]
    (found,) = objects(
        f"--prompt={PROMPT}", "--max_tokens=20", f"--stop={later}", f"--stop={earlier}"
    )
    assert found["text"] == free["text"][: free["text"].index(earlier)]
    assert found["finish_reason"] == "stop"
    (found,) = objects(f"--prompt={PROMPT}", "--max_tokens=20", "--repetition_penalty=3")
    expected = sj.generate(*loaded, [PROMPT], max_tokens=20, repetition_penalty=3.0)
    assert [found["text"]] == expected != [free["text"]]


def test_dtype(generate, monkeypatch):
    load = importlib.import_module("starcoder_jax.training.load")
    opened, load_model = [], load.load_model
    monkeypatch.setattr(load, "load_model", lambda *a, **k: opened.append(k) or load_model(*a, **k))
    generate("--prompt=x", "--max_tokens=1", "--dtype=bfloat16")
    assert opened == [{"dtype": "bfloat16"}]


@pytest.mark.parametrize("samples", [1, 2])
def test_interrupted_it_writes_what_it_has(generate, objects, steps, loaded, samples):
    text = sj.generate(*loaded, [PROMPT], max_tokens=6)[0]
    steps(lambda count: count % 6 or signal.raise_signal(signal.SIGINT))
    arguments = (f"--prompt={PROMPT}", "--max_tokens=30", f"--samples={samples}")
    found = objects(*arguments, status=command.INTERRUPTED)
    assert [(f["text"], f["finish_reason"], f["completion_tokens"]) for f in found] == [
        (text, "cancelled", 6)
    ] * samples
    output = generate(*arguments, status=command.INTERRUPTED)
    heads = [""] if samples == 1 else ["=== 1 of 2 ===\n", "=== 2 of 2 ===\n"]
    assert output == "".join(f"{head}{PROMPT}{text}\n" for head in heads)


# Slow enough to be interrupted.
SLOW = """
import sys, time
from starcoder_jax.inference.engine import Engine
from starcoder_jax.generate import main
step = Engine.step
def slow(engine):
    time.sleep(0.5)
    return step(engine)
Engine.step = slow
main(sys.argv[1:])
"""


def test_ctrl_c(trained, loaded):
    whole = PROMPT + sj.generate(*loaded, [PROMPT], max_tokens=90)[0]
    assert len(whole) > 100
    arguments = (f"--checkpoint={trained}", f"--prompt={PROMPT}", "--max_tokens=90")
    process = micro.start("generate", *arguments, program=SLOW)
    try:
        # Through a pipe too, text comes when it is there.
        first = process.stdout.read(len(PROMPT) + 1)
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, error, rest[-1:]) == (130, "", "\n")
    written = (first + rest)[:-1]
    assert whole.startswith(written) and len(written) < len(whole) / 2


def test_whoever_reads_it_may_stop(trained):
    process = micro.start("generate", f"--checkpoint={trained}", "--prompt=x", "--max_tokens=1")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == -signal.SIGPIPE


def test_a_terminal_that_cannot_show_every_character(trained):
    arguments = (f"--checkpoint={trained}", "--prompt=# naïve", "--max_tokens=1")
    done = micro.run("generate", *arguments, environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("# na?ve") and done.stdout.endswith("\n")


def test_the_documentation(trained, tmp_path, monkeypatch, capsys):
    text = (pathlib.Path(__file__).parents[1] / "docs" / "generation.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(trained)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "module.py").write_text("def read(line):\n    return line\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 4
    for line in commands:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "starcoder_jax.generate"]
        with pytest.raises(SystemExit) as raised:
            command.main(words[3:])
        assert raised.value.code == 0, capsys.readouterr().err
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command.main(["--help"])
    flags = set(re.findall(r"--[a-z_]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z_]+", text)) == flags - {"--help"}
