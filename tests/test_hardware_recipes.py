"""Overlays of gin/hardware: what they say they need beside a recipe is what fits."""

import dataclasses
import functools
import math
import pathlib
import re

import jax
import pytest
from flax import nnx

from starcoder_jax.gin_files import packaged_recipes
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.parallel.hardware import CHIPS
from starcoder_jax.parallel.mesh import AXES, make_mesh
from starcoder_jax.parallel.sharding import check_batch, sharding_rules
from starcoder_jax.parallel.topology import parse_topology
from starcoder_jax.recipes import load_recipe

GIN = pathlib.Path(__file__).parent.parent / "gin"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What an overlay is for: machines, devices as JAX counts them, and the chip's name."""

    hosts: int
    devices: int
    chip: str
    chips: int


MACHINES = {
    "v5litepod-256": Machine(64, 256, "v5e", 256),
    "v5p-128": Machine(16, 64, "v5p", 64),
    "v5p-256": Machine(32, 128, "v5p", 128),
    "v5p-512": Machine(64, 256, "v5p", 256),
    "v6e-256": Machine(64, 256, "v6e", 256),
    "tpu7x-256": Machine(32, 256, "tpu7x", 128),
    "8xh100": Machine(1, 8, "h100", 8),
    "8xh200": Machine(1, 8, "h200", 8),
    "64xh100": Machine(8, 64, "h100", 64),
    "h200": Machine(1, 1, "h200", 1),
    "a100-80gb": Machine(1, 1, "a100", 1),
}
RECIPES = ("3b", "7b", "15b")
TPUS = [name for name, machine in MACHINES.items() if machine.chip.startswith(("v", "tpu"))]
# What "nothing" or "does not fit" may be followed by explains it.
_NEED = re.compile(
    r"^#   (\S+): (nothing|does not fit|--gin\.\S+(?: --gin\.\S+)*)(?:[,:] .*)?$", re.M
)


@functools.cache
def needs(overlay: str) -> dict[str, list[str] | None]:
    """Recipe to the overrides it needs beside the overlay, by its header; None: does not fit."""
    found = _NEED.findall((GIN / "hardware" / f"{overlay}.gin").read_text())
    return {
        recipe: None
        if need == "does not fit"
        else [flag.rstrip(",").removeprefix("--gin.") for flag in need.split() if flag != "nothing"]
        for recipe, need in found
    }


def load(recipe: str, overlay: str, overrides=()):
    files = [f"{recipe}.gin", f"hardware/{overlay}.gin"]
    if recipe.startswith("finetune"):  # the architecture is that of the checkpoint
        files.insert(0, "model/starcoder2_3b.gin")
        overrides = [*overrides, "train.initial_checkpoint=somewhere"]
    return load_recipe(files, overrides)


def mesh_of(recipe, overlay: str) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh(recipe.mesh.sizes(MACHINES[overlay].devices), AXES)


@functools.cache
def num_parameters(config) -> int:
    state = nnx.state(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def state_bytes(recipe, overlay: str) -> float:
    """On a device, in float32: parameters, moments, gradients and, if accumulated, their sum."""
    copies = 5 if recipe.train.micro_batches > 1 else 4
    mesh = mesh_of(recipe, overlay)
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    return copies * 4 * num_parameters(recipe.model) / ways


def memory_bytes(overlay: str) -> float:
    return CHIPS[MACHINES[overlay].chip].hbm_bytes


def test_every_overlay_is_here():
    packaged = {name for name in packaged_recipes() if name.startswith("hardware/")}
    assert packaged == {f"hardware/{name}.gin" for name in MACHINES}


@pytest.mark.parametrize("overlay", MACHINES)
@pytest.mark.parametrize("name", RECIPES)
def test_with_what_it_needs_a_recipe_fits(overlay, name):
    """Batch and model divide over the mesh, and state and gradients leave room for activations."""
    overrides = needs(overlay)[name]
    recipe = load(name, overlay, overrides or ())
    mesh = mesh_of(recipe, overlay)
    assert mesh.size == MACHINES[overlay].devices
    if overrides is None:
        assert state_bytes(recipe, overlay) > 0.9 * memory_bytes(overlay)
        return
    sharding_rules(recipe.model, mesh)
    check_batch(recipe.train.batch_size, recipe.train.micro_batches, mesh)
    assert recipe.train.sequence_length % mesh.shape["sequence"] == 0
    assert state_bytes(recipe, overlay) < 0.8 * memory_bytes(overlay)
    # Every host feeds whole rows of its own, or shares them with its neighbors.
    batch_ways = mesh.shape["replica"] * mesh.shape["fsdp"]
    hosts = MACHINES[overlay].hosts
    assert batch_ways % hosts == 0 or hosts % batch_ways == 0
    for override in overrides:
        field, _, value = override.partition("=")
        section, _, field = field.partition(".")
        before = getattr(getattr(load(name, overlay), section), field)
        assert str(before) != value, f"{override} is what {overlay} says already"


@pytest.mark.parametrize("overlay", TPUS)
def test_the_mesh_can_be_laid_on_the_torus(overlay, libtpu):
    """On as many devices and hosts as the overlay says."""
    name = "tpu7x:4x4x8" if overlay == "tpu7x-256" else overlay
    devices = parse_topology(name).devices()
    machine = MACHINES[overlay]
    assert len(devices) == machine.devices
    assert len({device.process_index for device in devices}) == machine.hosts
    assert make_mesh(load("15b", overlay).mesh, devices).devices.size == machine.devices


@pytest.mark.parametrize("overlay", MACHINES)
def test_what_an_overlay_says_it_needs_is_needed(overlay):
    """Where the batch must be another, the recipe's own does not divide."""
    for name, overrides in needs(overlay).items():
        if any(override.startswith("train.batch_size=") for override in overrides or ()):
            recipe = load(name, overlay, [o for o in overrides if "batch_size" not in o])
            with pytest.raises(ValueError, match="does not divide over"):
                check_batch(recipe.train.batch_size, 1, mesh_of(recipe, overlay))


@pytest.mark.parametrize("overlay", MACHINES)
def test_tuning_divides_where_it_is_promised(overlay):
    needed = needs(overlay)
    assert set(RECIPES) <= needed.keys() <= {*RECIPES, "finetune/full"}
    assert ("finetune/full" in needed) == (MACHINES[overlay].hosts == 1)
    if "finetune/full" in needed:
        recipe = load("finetune/full", overlay, needed["finetune/full"])
        mesh = mesh_of(recipe, overlay)
        check_batch(recipe.train.batch_size, recipe.train.micro_batches, mesh)
        assert state_bytes(recipe, overlay) < 0.8 * memory_bytes(overlay)


@pytest.mark.parametrize("overlay", MACHINES)
def test_an_overlay_says_where_to_compute_and_nothing_else(overlay):
    text = (GIN / "hardware" / f"{overlay}.gin").read_text()
    bound = set(re.findall(r"^([\w.]+) = ", text, re.M))
    assert {"mesh.fsdp", "train.micro_batches"} < bound
    assert {"model.rematerialization", "model.attention_backend"} < bound
    backend = load("3b", overlay).model.attention_backend
    assert backend == ("splash" if overlay in TPUS else "cudnn")
    # What may change when a run goes on, so that it may go on on other machines.
    free = r"mesh\.\w+|train\.micro_batches|model\.(rematerialization|attention_backend)"
    assert all(re.fullmatch(free, name) for name in bound)


@pytest.mark.parametrize("overlay", MACHINES)
def test_an_overlay_opens_with_its_machine(overlay):
    text = (GIN / "hardware" / f"{overlay}.gin").read_text()
    header = " ".join(line.lstrip("# ") for line in text.partition("\n\n")[0].splitlines())
    machine = MACHINES[overlay]
    assert f"--gin_file=hardware/{overlay}.gin" in header
    devices = "one device" if machine.devices == 1 else f"{machine.devices} devices"
    assert f"{devices} in JAX" in header
    if overlay in TPUS:
        assert f"{machine.chips} chips" in header and f"{machine.hosts} machines of 4" in header
    chip = CHIPS[machine.chip]
    per_chip = machine.devices // machine.chips
    flops = float(re.search(r"(\d+) TFLOP/s in bfloat16", header)[1]) * 1e12
    assert flops == pytest.approx(per_chip * chip.peak_flops, rel=2e-3)
    size, unit = re.search(r"(\d+) (Gi?B) of memory", header).groups()
    total = int(size) * (2**30 if unit == "GiB" else 1e9)
    assert total == pytest.approx(per_chip * chip.hbm_bytes, rel=0.08)
    assert re.search(r"cloud\.google\.com/tpu/docs/|NVIDIA's .* data sheet", header)
    flags = re.search(r"launch/flags/(\w+)\.env", header)[1]
    assert (GIN.parent / "launch" / "flags" / f"{flags}.env").exists()
    assert all(len(line) <= 100 for line in text.splitlines())
