"""benchmarks/gpu.py in tiny shapes on the CPU; what it would do with a GPU, with stand-ins."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from starcoder_jax.model.attention import ATTENTION
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.flops import training_flops
from starcoder_jax.model.mask import AttentionMask

pytest.importorskip("torch")
pytest.importorskip("transformers")

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
TINY = {"layers": 2, "embed": 64, "heads": 4, "kv_heads": 2, "mlp": 128, "vocab": 512}


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


gpu, sides = load("gpu"), load("gpu_sides")


TINY_JOB = {
    "gpu": False,
    "overlay": "hardware/a100-80gb.gin",
    "window": 64,
    "model": {f"model.{field}": TINY[flag] for flag, field in gpu.MODEL_FLAGS.items()},
    "length": 32,
    "batch": 2,
    "recompute": False,
}
FLAGS = [f"--{name}={value}" for name, value in TINY.items()]
FLAGS += ["--tokens=256", "--window=64", "--parity_length=128", "--steps=2", "--eager"]


def run(*flags, path="", visible=""):
    """The script, with another folder in front of PATH, and without a GPU of this machine."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": visible,
        "PATH": f"{path}:{os.environ['PATH']}",
    }
    return subprocess.run(
        [sys.executable, FOLDER / "gpu.py", *FLAGS, *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_both_sides_are_measured_and_cudnn_is_not_passed_over(tmp_path):
    results = tmp_path / "results.json"
    done = run("--lengths=128", f"--json={results}", f"--profile={tmp_path / 'profile'}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert len(re.findall("^cudnn .* not checked: needs an NVIDIA GPU$", done.stdout, re.M)) == 12
    assert "\n12 of 24 measured, 0 refused\n" in done.stdout
    report = json.loads(results.read_text())

    rows = [row for row in report["parity"]["rows"] if row["backend"] == "xla"]
    assert len({(row["heads"], row["window"], row["segments"]) for row in rows}) == 12
    for row in rows:  # more than nothing: bfloat16 beside float32
        assert min(row["forward"], row["backward"]) > 1e-4
        assert max(row["forward"], row["backward"]) < gpu.TOLERANCE

    assert [row["side"] for row in report["training"]] == ["starcoder_jax", "transformers"]
    flops = training_flops(DecoderConfig(512, 2, 64, 4, 2, 128, 128, sliding_window=64), 2, 128)
    for row, attention in zip(report["training"], ("xla", "sdpa"), strict=True):
        assert (row["batch"], row["flops"]) == (2, flops)
        assert row["computes"] == f"{attention}, keeps layer inputs"
        assert len(row["step_s"]) == 2 and len(row["losses"]) == 4
        assert row["losses"][0] == pytest.approx(math.log(512), rel=0.1)
    ratio = r"^128 tokens: starcoder_jax is \d+\.\d\d times as fast as transformers$"
    assert re.search(ratio, done.stdout, re.M)
    assert list((tmp_path / "profile" / "128").rglob("*.xplane.pb"))


@pytest.fixture
def stand_in(tmp_path):
    """A folder whose nvidia-smi knows a GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--id=1\\ *) '
        'echo "NVIDIA H200, 580.159.03, 143771 MiB, 700.00 W, 1980 MHz";; *) exit 6;; esac\n'
    )
    program.chmod(0o755)
    return tmp_path


def test_a_gpu_that_jax_does_not_see_is_no_cpu_benchmark(stand_in):
    done = run("--lengths=64", "--sides=starcoder_jax,parity", path=stand_in, visible="1")
    assert "NVIDIA H200, 143771 MiB, 700.00 W, at most 1980 MHz; driver 580" in done.stdout
    assert "MFU over 989 TFLOP/s (NVIDIA's data sheet" in done.stdout
    assert done.stdout.count("; JAX sees no GPU but a cpu: pip install 'jax[cuda13]'") == 2
    assert done.returncode == 1  # of parity


def test_without_time_nothing_hangs_and_everything_is_told(tmp_path):
    start = time.monotonic()
    done = run("--limit_s=1", "--lengths=64", f"--json={tmp_path / 'results.json'}")
    assert time.monotonic() - start < 20
    assert done.returncode == 3, done.stderr
    assert len(re.findall("; not run: no time left$", done.stdout, re.M)) == 3
    report = json.loads((tmp_path / "results.json").read_text())
    assert [row["side"] for row in report["training"]] == ["starcoder_jax", "transformers"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sides=parity,torch", "--sides: 'torch' is none of parity, starcoder_jax, transfo"),
        ("--lengths=64,many", "--lengths=64,many must be numbers of tokens"),
        ("--steps=0", "--steps: invalid positive_number value: '0'"),
        ("--json=nowhere/results.json", "--json=nowhere/results.json: make the folder first"),
    ],
)
def test_bad_flags_get_one_line(flag, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", flag])
    with pytest.raises(SystemExit) as stop:
        gpu.parse_arguments()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def is_running(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


CHILDREN = {
    "stops": (
        "import subprocess, time\nsleeper = subprocess.Popen(['sleep', '60'])\n"
        'print(\'{"step_s": [1.0]}\')\nprint(\'{"step_s": [2.0], "pid": %d}\' % sleeper.pid)\n'
        "print('{\"step_s\": [3', end='', flush=True)\ntime.sleep(60)",
        {"step_s": [1.0, 2.0], "unfinished": "stopped after 2 s"},
    ),
    "crashes": (
        "import os, sys\nprint('{\"compile_s\": 5}', flush=True)\n"
        "print('who knows why', file=sys.stderr, flush=True)\nos.abort()",
        {"compile_s": 5, "failed": "status -6: who knows why"},
    ),
    "ends": ("print('chatter\\n{\"rows\": [{}]}')", {"rows": [{}]}),
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_what_a_child_made_known_counts_however_it_ends(kind, tmp_path, monkeypatch):
    program, expected = CHILDREN[kind]
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(gpu, "CHILD", tmp_path / "child.py")
    outcome = gpu.run_child({}, 2, str(tmp_path))
    started = outcome.pop("pid", None)
    assert outcome == expected
    deadline = time.monotonic() + 10
    while started is not None and is_running(started):  # what it had started ends with it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_first_try_is_what_the_memory_allows(monkeypatch):
    args = types.SimpleNamespace(tokens=16384, window=4096)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)

    def first(side, length, memory):
        found = gpu.first_attempt(side, length, args, memory)
        return found.batch, found.recompute, found.attention

    assert first("starcoder_jax", 4096, 140.4) == (4, False, None)
    assert first("starcoder_jax", 16384, 79.6) == (1, True, None)
    assert first("transformers", 4096, 79.6) == (4, True, "sdpa")
    assert first("transformers", 16384, 140.4) == (1, False, "flex_attention")
    assert first("transformers", 16384, 0) == (1, True, "sdpa")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    assert first("transformers", 16384, 140.4)[2] == "flash_attention_2"


def test_what_does_not_fit_is_tried_once_more():
    full = {"failed": "...", "out_of_memory": True}
    first = gpu.Attempt("transformers", 16384, 4, False, "flex_attention")
    second = first.after(full)
    assert (second.recompute, second.batch, second.attention) == (True, 4, "flex_attention")
    assert second.after(full) is None
    halved = gpu.Attempt("starcoder_jax", 4096, 4, True).after(full)
    assert (halved.recompute, halved.batch) == (True, 2)
    assert halved.after(full) is None
    assert gpu.Attempt("starcoder_jax", 16384, 1, True).after(full) is None
    # Flex attention that fails leaves SDPA, which has no window.
    other = first.after({"failed": "no kernel"})
    assert (other.attention, other.keep_window, other.recompute) == ("sdpa", False, False)
    assert other.after({"failed": "no kernel"}) is None
    assert first.after({"unfinished": "..."}) is first.after({}) is None


@pytest.fixture
def emitted(monkeypatch):
    """What a side run in this process makes known."""
    found = []
    monkeypatch.setattr(sides, "emit", lambda **fields: found.append(fields))
    return found


def test_attention_across_documents_would_show(monkeypatch, emitted):
    original = ATTENTION["xla"]

    def careless(query, key, value, mask, **options):
        return original(query, key, value, AttentionMask(mask.window), **options)

    monkeypatch.setitem(ATTENTION, "xla", careless)
    monkeypatch.setattr(sides, "HEADS", {"grouped": (1, 2)})
    sides.parity({"gpu": False, "length": 64})
    rows = [fields["rows"][0] for fields in emitted]
    errors = {row["segments"]: row["forward"] for row in rows if "forward" in row}
    assert errors[True] > 10 * gpu.TOLERANCE and errors[False] < gpu.TOLERANCE


def test_each_length_has_its_recipe_and_each_gpu_its_overlay():
    small = sides.recipe_of(TINY_JOB)
    long = sides.recipe_of(TINY_JOB | {"length": 128, "recompute": True})
    assert (small.model.sliding_window, long.model.sliding_window) == (None, 64)
    assert (small.model.rope_theta, long.model.rope_theta) == (1e5, 999999.4420358813)
    assert {small.model.attention_backend, long.model.attention_backend} == {"xla"}
    whole = {"gpu": True, "overlay": "hardware/h200.gin", "model": {}, "length": 4096}
    large = sides.recipe_of(TINY_JOB | whole)
    assert (large.model.attention_backend, large.model.rematerialization) == ("cudnn", "dots")
    assert (large.model.num_layers, large.model.sliding_window) == (30, 64)
    settings = large.train
    assert (settings.batch_size, settings.micro_batches, settings.sequence_length) == (2, 1, 4096)
    again = sides.recipe_of(TINY_JOB | whole | {"recompute": True})
    assert again.model.rematerialization == "full"


def test_the_peer_trains(monkeypatch, emitted):
    """Gradients reach the float32 masters, and what they learn the bfloat16 weights."""
    job = TINY_JOB | {"steps": 15, "eager": True, "attention": "sdpa", "keep_window": True}
    original, batch = sides.recipe_of, sides.draw

    def eager_to_learn(job):
        recipe = original(job)
        optimizer = dataclasses.replace(recipe.optimizer, warmup_steps=0, peak_learning_rate=1e-2)
        return dataclasses.replace(recipe, optimizer=optimizer)

    monkeypatch.setattr(sides, "recipe_of", eager_to_learn)
    monkeypatch.setattr(sides, "draw", lambda recipe, number: batch(recipe, 0))
    losses = {}
    for recompute in (False, True):
        emitted.clear()
        sides.train_torch(job | {"recompute": recompute})
        losses[recompute] = [fields["losses"][0] for fields in emitted if "losses" in fields]
    assert len(losses[True]) == 17 and losses[True][-1] < 0.5 * losses[True][0]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


GOOD = {"segments": False, "forward": 3e-3, "backward": 1.9e-2}


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({}, 0),
        ({"backward": 2.1e-2}, 1),
        ({"failed": "not finite"}, 1),
        ({"refused": "...", "segments": True}, 0),
        ({"refused": "..."}, 1),
        ({"not_checked": "..."}, 3),
        (None, 3),
    ],
)
def test_the_status_tells_what_the_kernels_did(row, status):
    rows = [GOOD] * 23 + ([] if row is None else [GOOD | row])
    assert gpu.parity_verdict({"rows": rows}) == status
    assert gpu.parity_verdict({"rows": rows, "failed": "..."}) == 1


def test_an_error_that_is_not_a_number_is_no_small_one():
    expected = np.array([2.0, -4.0])
    assert sides.relative_error(np.array([1.0, -4.0]), expected) == 0.25
    with pytest.raises(ArithmeticError, match="not finite"):
        sides.relative_error(np.array([np.nan, -4.0]), expected)


def test_kernels_are_those_of_the_gpu():
    def line(name, *events):
        named = [types.SimpleNamespace(name=n, duration_ns=ns) for n, ns in events]
        return types.SimpleNamespace(name=name, events=named)

    streams = [line("Stream #1(Compute)", ("gemm", 2e9), ("norm", 1e9)), line("Steps", ("0", 9e9))]
    streams.append(line("Stream #2(Memcpy)", ("gemm", 5e8), ("copy", 2e8)))
    host = types.SimpleNamespace(name="/host:CPU", lines=[line("Stream #3", ("python", 1e9))])
    planes = [types.SimpleNamespace(name="/device:GPU:0", lines=streams), host]
    found = [(kernel["name"], kernel["seconds"]) for kernel in sides.kernel_times(planes)]
    assert found == [("gemm", 2.5), ("norm", 1.0), ("copy", pytest.approx(0.2))]
