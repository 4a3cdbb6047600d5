import fcntl
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import pytest

from starcoder_jax.ablation import run as runs
from starcoder_jax.ablation.grid import make_grid
from starcoder_jax.data.prepare import prepare
from starcoder_jax.data.published import components
from starcoder_jax.data.store import FORMAT_VERSION, read_manifest
from starcoder_jax.evals.corpus import read_corpus
from starcoder_jax.stack import __main__ as stack
from starcoder_jax.training.metrics import read_metrics

# Stands for Python: says which module it was asked to run, and does what WHAT says.
STAND_IN = """#!/bin/bash
echo "$2" >> "$CALLS"
eval "$WHAT"
"""


@pytest.fixture
def grid(tmp_path, micro_folder):
    """The micro recipe, with what evaluations there shall be."""

    def make(evaluations=None, **more):
        path = tmp_path / "ablation.gin"
        fields = {
            "base": (str(micro_folder / "micro.gin"),),
            "overrides": (f"data.directory={micro_folder / 'data'}",),
            "arms": {"first": (), "wide": ("model.mlp_dim=128",)},
            "seeds": (0,),
            "evaluations": evaluations or {},
        } | more
        path.write_text("".join(f"ablation.{name} = {value!r}\n" for name, value in fields.items()))
        return make_grid([str(path)], [], tmp_path)

    return make


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Sets what a child does; and gives the modules that were asked for."""
    script = tmp_path / "python"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def prepare(what):
        (tmp_path / "calls").write_text("")
        monkeypatch.setenv("WHAT", what)
        return lambda: (tmp_path / "calls").read_text().split()

    return prepare


def perform(grid, tmp_path, run=None):
    lines, steps = [], []
    runs.perform(run or grid.runs[0], grid, tmp_path, lines.append, steps.append)
    return lines, steps


def preparing(held_out):
    """What stands for Python does as `prepare` would: leaves a store that holds out so many."""
    counts = {"train": {"documents": 9}, "validation": {"documents": held_out}}
    store = json.dumps({"format_version": FORMAT_VERSION, "tasks": {"code": counts}})
    return f"""
    [ $2 != starcoder_jax.prepare ] || for a in "$@"; do case $a in
        --directory=*) mkdir -p "${{a#*=}}"; echo '{store}' > "${{a#*=}}/store.json";;
    esac; done
    """


def put_trained(run, trained, tmp_path):
    folder = runs.run_folder(run, tmp_path)
    shutil.copytree(trained, folder)
    return folder


def test_a_trained_model_is_evaluated(grid, trained, tmp_path):
    evaluations = {
        "same": {"task": "perplexity", "limit": 4, "window": 64},
        "speed": {"task": "decoding", "sequences": 2, "prompt_tokens": 16, "new_tokens": 16},
    }
    grid = grid(evaluations)
    folder = put_trained(grid.runs[0], trained, tmp_path)
    runs.check_folders(grid, tmp_path)
    assert runs.read_result(grid.runs[0], grid.config, tmp_path) is None
    (folder / "outcome.json").write_text('{"diverged": null}')
    assert runs.read_result(grid.runs[0], grid.config, tmp_path) is None
    perform(grid, tmp_path)
    result = runs.read_result(grid.runs[0], grid.config, tmp_path)
    last = read_metrics(trained)[-1]
    assert {name for name in result.metrics if name.startswith("eval/")} == {
        "eval/loss",
        "eval/bits_per_byte",
        "eval/infill_loss",
    }
    assert result.metrics["eval/loss"] == last["eval/loss"]
    # The same held-out files, in the same windows.
    assert result.metrics["same/bits_per_byte"] == pytest.approx(last["eval/bits_per_byte"], 1e-5)
    # Keys and values: 2 layers, 2 sequences of 32 tokens, 1 head of 4 numbers of 4 bytes.
    assert result.metrics["speed/cache_bytes"] == 2 * 2 * 2 * 32 * 4 * 4
    assert result.metrics["speed/tokens_per_second"] > 0
    assert [tokens for tokens, _ in result.curve] == [20 * 8 * 64, 40 * 8 * 64]


def test_a_finished_run_starts_no_process(grid, trained, tmp_path, calls):
    grid = grid()
    folder = put_trained(grid.runs[0], trained, tmp_path)
    called = calls("exit 0")
    assert perform(grid, tmp_path) == ([], [40])
    assert called() == ["starcoder_jax.train"]
    assert perform(grid, tmp_path) == ([], [40])
    assert called() == ["starcoder_jax.train"]
    assert json.loads((folder / "outcome.json").read_text()) == {"diverged": None}
    assert runs.read_result(grid.runs[0], grid.config, tmp_path).metrics["eval/loss"] > 0


@pytest.mark.parametrize("given", [None, "/elsewhere"])
def test_runs_share_a_compilation_cache_and_are_alone(grid, tmp_path, calls, monkeypatch, given):
    grid = grid()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if given is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "8")
    called = calls('echo "$JAX_COMPILATION_CACHE_DIR $JAX_NUM_PROCESSES" >> "$CALLS"')
    for run in grid.runs:
        perform(grid, tmp_path, run)
    place = given or str(tmp_path / "compiled")
    assert called() == ["starcoder_jax.train", place, "1"] * 2


def test_other_settings_are_another_evaluation(grid, trained, tmp_path, calls):
    write = """for a in "$@"; do case $a in --output=*) file=${a#*=};; esac; done
    [ -z "$file" ] || echo '{"metrics": {"exact_match": 0.5, "exact_match_stderr": 1}}' > "$file"
    """
    called = calls(write)
    for limit, expected in ((4, ["train", "evaluate"]), (8, ["train", "evaluate", "evaluate"])):
        changed = grid({"fill": {"task": "fim", "limit": limit}})
        if limit == 4:
            put_trained(changed.runs[0], trained, tmp_path)
        assert runs.read_result(changed.runs[0], changed.config, tmp_path) is None
        perform(changed, tmp_path)
        assert called() == [f"starcoder_jax.{name}" for name in expected]
        metrics = runs.read_result(changed.runs[0], changed.config, tmp_path).metrics
        assert metrics["fill/exact_match"] == 0.5 and "fill/exact_match_stderr" not in metrics


def test_a_diverged_run_is_a_result(grid, tmp_path, calls):
    grid = grid({"fill": {"task": "fim"}})
    called = calls("echo 'train: loss was not finite at step 3' >&2; exit 3")
    lines, _ = perform(grid, tmp_path)
    assert lines == ["first-40-steps-seed-0: train: loss was not finite at step 3"]
    result = runs.read_result(grid.runs[0], grid.config, tmp_path)
    assert result.diverged == "train: loss was not finite at step 3" and result.metrics == {}
    perform(grid, tmp_path)
    assert called() == ["starcoder_jax.train"]


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (2, ValueError, "^run first-40-steps-seed-0: train: what is wrong$"),
        (
            1,
            runs.RunError,
            r"seed-0 ended with status 1: train: what is wrong \(all of it in .*log",
        ),
        (143, runs.StoppedError, "^$"),
    ],
)
def test_how_the_trainer_ends_is_told(grid, tmp_path, calls, status, error, message):
    grid = grid()
    calls(f"echo greetings; echo 'train: what is wrong' >&2; exit {status}")
    with pytest.raises(error, match=message):
        perform(grid, tmp_path)
    assert runs.read_result(grid.runs[0], grid.config, tmp_path) is None


def test_sigterm_reaches_the_trainer_and_waits_for_it(grid, tmp_path, calls):
    grid = grid()
    saved = tmp_path / "saved"
    calls(
        f"trap 'kill $!; sleep 0.3; touch {saved}; exit 143' TERM; touch {tmp_path}/up; "
        "sleep 60 & wait"
    )

    def send():
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(runs.StoppedError), runs.sigterm_stops():
        perform(grid, tmp_path)
    assert saved.exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_that_is_being_done_is_waited_for(grid, tmp_path, calls):
    grid = grid()
    called = calls("exit 0")
    folder = runs.run_folder(grid.runs[0], tmp_path)
    folder.mkdir(parents=True)
    has_it = threading.Event()

    def do_it():
        with open(folder / ".ablate.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            has_it.set()
            time.sleep(0.3)
            (folder / "outcome.json").write_text('{"diverged": null}')

    threading.Thread(target=do_it).start()
    has_it.wait()
    lines, _ = perform(grid, tmp_path)
    assert lines == ["first-40-steps-seed-0: waiting for the process that is at work on it"]
    assert called() == []


def test_a_run_of_another_recipe_is_not_taken_for_this(grid, trained, tmp_path):
    grid = grid()
    first, wide = grid.runs
    put_trained(first, trained, tmp_path)
    runs.check_folders(grid, tmp_path)
    put_trained(wide, trained, tmp_path)
    with pytest.raises(ValueError, match=r"another recipe, .* model.mlp_dim: 64 -> 128: give anot"):
        runs.check_folders(grid, tmp_path)
    shutil.rmtree(runs.run_folder(wide, tmp_path))
    config = runs.run_folder(first, tmp_path) / "config.gin"
    config.write_text(config.read_text() + "evaluation.max_files = 9\n")
    with pytest.raises(ValueError, match=r"max_files=9.* -> .*max_files=4"):
        runs.check_folders(grid, tmp_path)


def test_a_run_without_its_last_evaluation_is_not_guessed_at(grid, trained, tmp_path):
    grid = grid()
    folder = put_trained(grid.runs[0], trained, tmp_path)
    (folder / "outcome.json").write_text('{"diverged": null}')
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="no held-out metrics of step 40: remove it"):
        runs.read_result(grid.runs[0], grid.config, tmp_path)


@pytest.fixture
def curated(grid):
    """Two arms of the micro recipe whose corpora differ."""
    return grid(
        {"fill": {"task": "fim"}},
        overrides=(),
        curation=("stack/santacoder.gin",),
        arms={
            "all": ("collect.sources=('environment:',)", "dedup.threshold=None"),
            "near": ("collect.sources=('environment:',)",),
        },
    )


def test_corpora_are_curated_and_prepared_once(curated, tmp_path, calls):
    called = calls(preparing(1))
    first, second = curated.runs
    made = ["stack", "prepare"]
    perform(curated, tmp_path, first)
    assert called() == [f"starcoder_jax.{name}" for name in (*made, "train", "evaluate")]
    (runs.run_folder(first, tmp_path) / "outcome.json").unlink()
    perform(curated, tmp_path, first)
    assert called()[4:] == [f"starcoder_jax.{name}" for name in ("train", "evaluate")]
    perform(curated, tmp_path, second)
    assert called()[6:] == [f"starcoder_jax.{name}" for name in (*made, "train", "evaluate")]


def test_a_job_that_comes_first_makes_what_the_first_arm_holds_out(curated, tmp_path, calls):
    called = calls(preparing(1) + 'echo "$@" >> "$CALLS.all"')
    perform(curated, tmp_path, curated.runs[1])
    made = ["stack", "prepare"]
    names = [f"starcoder_jax.{name}" for name in (*made, "train", *made, "evaluate")]
    assert called() == names
    lines = (tmp_path / "calls.all").read_text().splitlines()
    assert f"--folder={curated.runs[0].corpus.folder}" in lines[3]
    assert f"--data={curated.runs[0].recipe.data.directory}" in lines[5]


def test_a_curation_that_fails_is_done_again(curated, tmp_path, calls):
    called = calls("echo 'stack: no' >&2; exit 2")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^run all-40-steps-seed-0: stack: no$"):
            perform(curated, tmp_path)
    assert called() == ["starcoder_jax.stack"] * 2


def test_where_nothing_is_held_out_nothing_is_trained(curated, tmp_path, calls):
    called = calls(preparing(0))
    with pytest.raises(ValueError, match=r"'all': of its 9 documents none is held out"):
        perform(curated, tmp_path)
    assert called() == ["starcoder_jax.stack", "starcoder_jax.prepare"]


def test_documents_of_two_corpora_are_held_out_alike(grid, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    for number in range(40):
        lines = [f"def double_{number}_{n}(x):\n    return {n} * x\n" for n in range(9)]
        lines[0] = "# says what it does, at some length\n" * (number % 2) + lines[0]
        (folder / f"m{number}.py").write_text("".join(lines))
    found = grid(
        overrides=(f"collect.sources=('folder:{folder}',)", "filter.license_types=None"),
        curation=("stack/santacoder.gin",),
        arms={
            "all": ("dedup.threshold=None",),
            "some": ("dedup.threshold=None", "filter.comment_fractions={'Python': (0.01, 1.0)}"),
        },
    )
    held_out = []
    for run in found.runs:
        stack.main(["run", *run.corpus.arguments])
        data = run.recipe.data
        (part,) = components(data.sources["stack"].removeprefix("stack:")).values()
        prepare(data, run.recipe.tokenizer, data.directory)
        counts = read_manifest(data.directory)["tasks"]["stack"]
        assert counts["train"]["documents"] + counts["validation"]["documents"] == part.documents
        held_out.append(
            {document.id for document in read_corpus(pathlib.Path(data.directory)).documents}
        )
    assert 0 < len(held_out[1]) < len(held_out[0]) and held_out[1] < held_out[0]
