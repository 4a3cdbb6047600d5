"""`python -m starcoder_jax.stack`: stages, opt-outs, runs that are killed, and bad input."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import micro
import pytest
from corpus_fixture import SHARDS, arguments, files, prepare

import starcoder_jax.stack
from starcoder_jax.data import published
from starcoder_jax.data.loader import Loader
from starcoder_jax.data.store import TokenStore
from starcoder_jax.stack import __main__ as command
from starcoder_jax.stack import accounting
from starcoder_jax.stack.record import part_of
from starcoder_jax.stack.runner.lock import exclusive_run

KILLS, STEPS = 5, 6
# An owner with a repository of its own, and a file beside others.
LEDGER = [
    {"kind": "owner", "value": "Grace", "date": "2026-01-31", "reference": "issue 7"},
    {"kind": "path", "value": "ada/parser:parser.py"},
]


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished / "corpus", tmp_path / "corpus")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in LEDGER))
    return path


@pytest.fixture
def stack(capfd):
    """Runs the command; returns its exit status, and the lines of its output and errors."""

    def run(*argv):
        status = 0
        try:
            command.main([str(argument) for argument in argv])
        except SystemExit as end:
            status = end.code
        output, errors = capfd.readouterr()
        return status, output.splitlines(), errors.splitlines()

    return run


def start(finished, corpus, *more):
    return micro.start(
        *("stack", "run", *arguments(finished, corpus), *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_when(run, condition):
    end = time.monotonic() + 60
    while not condition():
        assert run.poll() is None and time.monotonic() < end, "it was not to be killed in time"
        time.sleep(0.002)
    assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def test_killed_five_times_a_run_ends_with_the_same_bytes(finished, tmp_path):
    corpus, order = tmp_path / "corpus", random.Random(6)

    def shards(folder):
        return len(list(folder.glob("*/shard-*.json")))

    total = shards(finished / "corpus")
    assert total > 100
    for target in sorted(order.sample(range(1, total), KILLS)):
        run = start(finished, corpus)
        kill_when(run, lambda target=target: shards(corpus) >= target)
        assert target <= shards(corpus) and not (corpus / "published" / "corpus.json").exists()
    # What a run leaves if it is killed just before it gives a file its name.
    for name in ("step.json.0123", "shard-00000-of-00004.parquet.0123"):
        (corpus / "filter" / name).touch()
    assert start(finished, corpus).wait() == 0
    assert files(corpus) == files(finished / "corpus")


def test_killed_while_it_publishes_a_run_ends_with_the_same_bytes(finished, copy, ledger):
    """Even if what it was publishing is something else than what is wanted then."""
    component = copy / "published" / published.DATASET / "python"
    version, partial = (component / f"{published.VERSION}{end}" for end in ("", ".partial"))
    before = version.stat().st_ino
    run = start(finished, copy, f"--gin.optout.ledgers=('{ledger}',)")
    # While it is written, or soon after that if that was too quick to be seen.
    kill_when(
        run, lambda: partial.exists() or (version.exists() and version.stat().st_ino != before)
    )
    assert start(finished, copy).wait() == 0
    assert files(copy) == files(finished / "corpus")


def test_what_is_published_by_halves_is_published_anew(finished, copy, ledger, stack, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(published, "write_manifest", full)
        more = f"--gin.optout.ledgers=('{ledger}',)"
        status, _, errors = stack("run", *arguments(finished, copy), more)
        assert status == 2 and errors[-1] == "stack: no space left"
    assert stack("run", *arguments(finished, copy))[0] == 0
    assert files(copy) == files(finished / "corpus")


def times(folder):
    """When shards and published files were written, by path."""
    paths = [*folder.glob("*/shard-*"), *folder.glob("published/stack/*/*/*")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def test_an_opt_out(finished, prepared, copy, ledger, stack, tmp_path):
    # Somebody trains on the corpus.
    done = micro.run(
        *("train", f"--gin_file={prepared / 'recipe.gin'}", f"--workdir={tmp_path / 'run'}"),
        *(f"--gin.data.directory={prepared / 'data'}", f"--gin.train.total_steps={STEPS}"),
    )
    assert done.returncode == 0, done.stderr
    asked = ("lookup", f"--folder={copy}", "--owner=grace")
    status, lines, errors = stack(*asked, f"--workdir={tmp_path / 'run'}")
    assert status == 0 and len(lines) == 2 and errors[-1] == "1 found"
    document = re.fullmatch(r"grace/memoir:engine\.go  unknown  go  (\w{64})", lines[0])[1]
    loader = Loader(
        TokenStore(prepared / "data"),
        rates={"code": 1.0},
        batch_size=micro.BATCH,
        sequence_length=micro.LENGTH,
        seed=0,
        fim=None,
    )
    places = [
        f"{step}:{row}"
        for step in range(STEPS)
        for row in range(micro.BATCH)
        if document in {span.id for span in loader.trace(step, row).spans}
    ]
    assert 0 < len(places) < STEPS * micro.BATCH
    assert lines[1] == f"  in {len(places)} rows of batches {' '.join(places)}"

    # Then the owner asks for something else.
    verify = ("verify", f"--folder={copy}", f"--ledger={ledger}")
    status, lines, _ = stack(*verify)
    assert status == 1 and any("LEFT: " in line and "issue 7" in line for line in lines)
    before = times(copy)
    more = f"--gin.optout.ledgers=('{ledger}',)"
    status, lines, _ = stack("run", *arguments(finished, copy), more)
    assert status == 0 and lines[-1].startswith("published 9 documents, 0.0 MB, in 5 components")
    after = times(copy)
    again = {path for path in after if after[path] != before.get(path)}
    stages = accounting.STAGES[: accounting.STAGES.index("optout")]
    assert not {path for path in again if path.split("/")[0].split(".")[0] in stages}
    touched = {part_of(name, SHARDS) for name in ("grace/memoir", "ada/parser")}
    assert len(touched) < SHARDS
    names = {f"format/shard-{part:05}-of-{SHARDS:05}.parquet" for part in touched}
    assert {path for path in again if re.fullmatch(r"format/.*\d\.parquet", path)} == names
    components = {path.split("/")[2] for path in again if path.startswith("published/")}
    assert components == {"python"}
    gone = {path.split("/")[2] for path in before.keys() - after.keys() if "published" in path}
    assert gone == {"go"}
    assert stack(*asked) == (0, [], ["0 found"])
    asked = (*asked[:2], "--repository=ada/parser", "--path=parser.py")
    assert stack(*asked) == (0, [], ["0 found"])
    assert len(stack(*asked[:3])[1]) == 6

    # Nothing is left of it, but in the old store.
    prepare(copy, tmp_path / "new")
    status, lines, errors = stack(*verify, f"--store={tmp_path / 'new' / 'data'}")
    assert (status, errors) == (0, []) and lines[-1].startswith("nothing of the opt-outs is left")
    assert all(line.startswith("before the opt-out: ") for line in lines[:-1]) and lines[:-1]
    status, lines, _ = stack(*verify, f"--store={prepared / 'data'}")
    left = [line for line in lines if line.startswith("LEFT: ")]
    assert status == 1 and all(str(prepared / "data") in line for line in left)
    assert any("rows of issue 7 in" in line for line in left)
    assert any("2 documents of unknown in" in line for line in left)


@pytest.mark.parametrize("name", [*command.STAGES, "lookup", "requests", "verify", None])
def test_help(name, stack):
    status, lines, errors = stack(*([name] if name else []), "--help")
    assert (status, errors) == (0, [])
    text = "\n".join(lines)
    assert f"python -m starcoder_jax.stack {name or ''}".strip() in text
    if name in command.STAGES:
        assert command.STAGES[name] in text and "--gin.SECTION.FIELD=VALUE" in text
    assert name or all(f"\n    {stage}" in text for stage in command.STAGES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["filtr"], "invalid choice: 'filtr' (choose from 'collect'"),
        (["filter", "--gin_file=stack/local.gin"], "required: --folder"),
        (["run", "--folder={}"], "required: --gin_file"),
        (["run", "{recipe}", "--folder={}", "--worker=3"], "unknown argument '--worker=3'"),
        (["run", "--gin_file=stack/locl.gin", "--folder={}"], "did you mean 'stack/local.gin'?"),
        (["run", "{recipe}", "--folder={}", "--gin.collect.source=1"], "'collect.sources'?"),
        (["run", "{recipe}", "--folder={}", "--gin.colect.shards=1"], "did you mean 'collect'?"),
        (["run", "{recipe}", "--folder={}", "--gin.collect.shards=0"], "must be at least 1, is 0"),
        (["run", "{recipe}", "--folder={}", "{nothing}"], "nothing to collect"),
        (["run", "{recipe}", "--folder={}", "{absent}"], "there is no folder /no/such/folder"),
        (["run", "{recipe}", "--folder={}", "{benchmark}"], "cannot read /no/such.jsonl"),
        (["run", "{recipe}", "--folder={}", "{ledgers}"], "ledger /no/such.jsonl cannot be read"),
        (["run", "{recipe}", "--folder={}", "{detector}"], "'nowhere:find' cannot be imported"),
        (["run", "{recipe}", "--folder={sources}/corpus.gin"], "corpus.gin"),
        (["lookup", "--folder={}", "--owner=ada"], "has no complete index: publish the corpus"),
        (["lookup", "--folder={}", "--owner=ada", "--gin.a.b=1"], "takes no --gin overrides"),
        (["verify", "--folder={}", "--ledger=/no/such.jsonl"], "/no/such.jsonl cannot be read"),
        (["verify", "--folder={}", "--ledger={sources}/empty"], "there is no folder"),
        (["verify", "--folder={sources}", "--ledger={sources}/empty"], "has no step publish"),
        (["requests", "/no/such", "--ledger=a", "--questions=b"], "/no/such"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, finished, tmp_path, stack):
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "empty").touch()
    (sources / "corpus.gin").touch()
    values = {
        "recipe": f"--gin_file={finished / 'sources' / 'corpus.gin'}",
        "sources": sources,
        "nothing": "--gin.collect.sources=()",
        "absent": "--gin.collect.sources=('folder:/no/such/folder',)",
        "benchmark": "--gin.decontaminate.benchmarks={'humaneval': '/no/such.jsonl'}",
        "ledgers": "--gin.optout.ledgers=('/no/such.jsonl',)",
        "detector": "--gin.redact.detectors=('email', 'nowhere:find')",
    }
    status, output, errors = stack(
        *(argument.format(tmp_path / "corpus", **values) for argument in argv)
    )
    lines = [line for line in errors if not line.startswith(("usage:", " "))]
    assert (status, output, len(lines)) == (2, [], 1), errors
    assert message in lines[0]
    assert not (tmp_path / "corpus" / "collect").exists()


def test_without_the_extra_it_says_what_to_install(finished, tmp_path, stack, monkeypatch):
    # Stands for a package of the extra, which other tests have long imported.
    monkeypatch.delattr(starcoder_jax.stack, "pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "starcoder_jax.stack.pipeline", None)
    status, output, errors = stack("run", *arguments(finished, tmp_path / "corpus"))
    assert (status, output, len(errors)) == (2, [], 1)
    assert errors[0].endswith("is not installed: pip install 'starcoder_jax[stack]'")


def test_a_folder_in_which_another_run_is_at_work(finished, tmp_path, stack):
    with exclusive_run(tmp_path / "corpus"):
        status, output, errors = stack("run", *arguments(finished, tmp_path / "corpus"))
    assert (status, output, len(errors)) == (2, [], 1)
    assert "another run is at work in" in errors[0]


def test_a_stage_goes_as_far_as_itself_and_a_failing_step_is_named(finished, tmp_path, stack):
    given = arguments(finished, tmp_path / "corpus")
    status, output, _ = stack("filter", *given)
    assert (status, output) == (0, [])
    stages = accounting.STAGES[: 1 + accounting.STAGES.index("filter")]
    folders = {path.name for path in (tmp_path / "corpus").iterdir() if path.is_dir()}
    assert folders == set(stages)
    for stage in stages:
        for path in (tmp_path / "corpus" / stage).iterdir():
            same = finished / "corpus" / stage / path.name
            assert path.read_bytes() == same.read_bytes()

    # A detector that takes something else than texts.
    given.append("--gin.redact.detectors=('email', 'math:floor')")
    status, output, errors = stack("redact", *given)
    assert (status, output) == (1, [])
    pattern = r"stack: step redact, shard \d of 4: TypeError: must be real number, not list"
    assert re.fullmatch(pattern, errors[-1])
    assert sum(line.startswith("stack: ") for line in errors) == 1
    assert (tmp_path / "corpus" / "decontaminate" / "step.json").exists()
    assert not (tmp_path / "corpus" / "redact" / "step.json").exists()


def test_requests_become_a_ledger(tmp_path, stack):
    (tmp_path / "decided.json").write_text(
        json.dumps([{"issue": 7, "author": "grace", "optout_owners": ["grace"]}])
    )
    status, lines, _ = stack(
        *("requests", tmp_path / "decided.json"),
        *(f"--ledger={tmp_path / 'ledger'}", f"--questions={tmp_path / 'questions'}"),
    )
    assert status == 0 and lines == ["1 entries, 0 questions for a person"]
    entry = json.loads(pathlib.Path(tmp_path / "ledger").read_text())
    assert (entry["kind"], entry["value"]) == ("owner", "grace")
