"""The plan command, on simulated devices and, where libtpu is installed, for a TPU."""

import json
import re

import jax
import micro
import pytest

from starcoder_jax.parallel.topology import parse_topology
from starcoder_jax.planning.compile import compile_step
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training.program import make_devices, make_program

SMALL = [
    "--gin_file=tiny.gin",
    "--gin.model.num_layers=3",
    "--gin.model.embed_dim=128",
    "--gin.model.mlp_dim=256",
    "--gin.model.vocab_size=512",
    "--gin.train.sequence_length=256",
    "--gin.train.batch_size=8",
]
# The contract with scripts.
KEYS = {
    "recipe", "topology", "chips", "parameters", "hbm_bytes_per_chip", "hbm_limit_bytes", "fits",
    "model_flops_per_step", "collective_bytes_per_chip", "compile_seconds",
    "predicted_step_seconds", "predicted_mfu",
}  # fmt: skip


def test_simulated_devices():
    done = micro.run("plan", *SMALL, "--topology=cpu:4", "--gin.mesh.tensor=2", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan.keys() >= KEYS
    assert (plan["recipe"], plan["topology"], plan["chips"]) == ("tiny", "cpu:4", 4)
    assert plan["mesh"] == {"replica": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert plan["fits"] is plan["predicted_mfu"] is plan["hbm_limit_bytes"] is None
    assert plan["collective_bytes_per_chip"] > 0 and plan["compile_seconds"] > 0
    # Parameters, gradients' two moments, in float32, over four devices but for the vectors.
    state = 12 * plan["parameters"] / 4
    assert state < plan["state_bytes_per_chip"] < 1.2 * state


def test_a_tpu_that_is_not_there(libtpu):
    done = micro.run("plan", *SMALL, "--topology=v5e-4", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["fits"] is True and plan["chips"] == 4
    assert plan["state_bytes_per_chip"] < plan["hbm_bytes_per_chip"] < plan["hbm_limit_bytes"]
    assert 0 < plan["predicted_mfu"] < 1
    # Rematerialisation and masked blocks add to the model's own FLOPs.
    per_chip = plan["model_flops_per_step"] / 4
    assert per_chip < plan["hardware_flops_per_chip"] < 2 * per_chip
    done = micro.run("plan", *SMALL, "--topology=v5e-4", "--gin.model.vocab_size=520")
    assert done.returncode == 0 and "fits" in done.stdout and "assuming" in done.stdout
    huge = ["--gin.train.batch_size=262144", "--gin.model.rematerialization=none"]
    done = micro.run("plan", *SMALL, "--topology=v5e-4", *huge)
    assert done.returncode == 2 and "HBM" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [("3b", 3_030_371_328), ("7b", 7_173_923_840), ("15b", 15_957_889_024)],
)
def test_the_models_fit_a_pod(libtpu, recipe, parameters):
    """As published, for 128 chips of v5p, in the batch that fits all three."""
    flags = [f"--gin_file={recipe}.gin", "--gin_file=hardware/v5p-256.gin", "--topology=v5p-256"]
    done = micro.run("plan", *flags, "--gin.train.batch_size=1024", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["parameters"], plan["chips"], plan["fits"]) == (parameters, 128, True)
    assert plan["predicted_mfu"] > 0.5
    # Gathered twice for each of two micro-batches, in bfloat16, and summed up once: the gradients
    # are scattered, or it would be twice. What is left to all-reduces are tables and vectors.
    sent = plan["collective_bytes_per_chip"] / (2 * parameters * 2)
    assert 2.7 < sent < 3.3
    sums = sum(x["wire_bytes"] for x in plan["collectives"] if x["kind"] == "all-reduce")
    assert sums < 0.1 * plan["collective_bytes_per_chip"]


def test_search_ranks_what_it_compiled_and_writes_the_best(libtpu, tmp_path):
    output = tmp_path / "best.gin"
    done = micro.run(
        "plan", *SMALL, "--topology=v5e-4", "--search=2", f"--output={output}", "--json"
    )
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout)
    steps = [plan["predicted_step_seconds"] for plan in plans]
    assert 1 <= len(plans) <= 2 and steps == sorted(steps)
    # The bounds that chose them are bounds.
    bounds = re.findall(r"compiling .*: at best ([0-9.]+) s", done.stderr)
    assert len(bounds) == 2 and float(bounds[0]) <= steps[0]
    best = load_recipe(["tiny.gin", str(output)])
    assert best.mesh.sizes(4) == tuple(plans[0]["mesh"].values())
    assert best.train.micro_batches == plans[0]["micro_batches"]
    assert best.model.rematerialization == plans[0]["rematerialization"]


def test_bad_input_is_one_line():
    for flags, message in (
        (["--topology=v5p"], "write v5p:4x4x8"),
        (["--topology=cpu:3"], "mesh.fsdp=3"),
        (["--topology=cpu:8", "--gin.mesh.tensor=3"], "mesh.tensor=3"),
        (["--topology=cpu:16"], "train.batch_size=8"),
        (["--topology=cpu:8", "--search"], "--search compiles"),
        (["--topology=cpu:8", "--output=x.gin"], "--output is written by --search"),
    ):
        done = micro.run("plan", *SMALL, *flags)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]


def test_it_is_the_step_that_train_runs():
    """Text for text, the program planned is the one that the loop makes of the same recipe."""
    overrides = [flag.removeprefix("--gin.") for flag in SMALL[1:]]
    recipe = load_recipe(["tiny.gin"], overrides)
    topology = parse_topology("cpu:8")
    planned = compile_step(recipe, topology)
    mesh, rules = make_devices(recipe)
    with jax.set_mesh(mesh):
        program = make_program(recipe, mesh, rules, end_of_text=0)
        state = jax.jit(program.fresh_state)()
        tokens, weights = (
            jax.device_put(jax.numpy.ones(x.shape, x.dtype), x.sharding)
            for x in (program.tokens, program.weights)
        )
        trained = program.step.lower(state, tokens, weights).as_text()
        _, metrics = program.step(state, tokens, weights)
    assert planned.traced.lower().as_text() == trained
    assert float(metrics["loss"]) > 0
