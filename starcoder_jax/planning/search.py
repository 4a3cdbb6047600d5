"""Looks for the mesh, rematerialisation and micro-batches with which a recipe runs fastest."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import jax

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.flops import attention_flops, forward_flops
from starcoder_jax.parallel.mesh import MeshConfig
from starcoder_jax.parallel.topology import Topology
from starcoder_jax.planning.compile import DoesNotFitError, Plan, make_plan
from starcoder_jax.planning.compiled import Collective
from starcoder_jax.planning.roofline import (
    MATMUL_EFFICIENCY,
    Roofline,
    communication_seconds,
    kernel_flops,
    kernel_seconds,
)
from starcoder_jax.recipes import Recipe
from starcoder_jax.training.parameters import parameter_shapes
from starcoder_jax.training.program import make_devices

_TENSOR = (1, 2, 4, 8)
_SEQUENCE = (1, 2, 4, 8, 16)
_MIN_SHARD = 1024  # tokens of a sequence on a device, below which its attention is inefficient
_POLICIES = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run a recipe, and bounds that need no compiler.

    Attributes:
        recipe: with mesh, policy and micro-batches.
        bound: lower bounds of the step time: products and collectives that cannot be avoided.
        state_bytes: parameters and optimizer of a device.
        saved_bytes: what a device keeps for the backward pass, at least.
    """

    recipe: Recipe
    bound: Roofline
    state_bytes: float
    saved_bytes: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a search found.

    Attributes:
        plans: compiled and fitting, the fastest first.
        too_large: compiled, but they do not fit.
        waiting: not compiled: those that might be as fast, the most promising first.
    """

    plans: list[Plan]
    too_large: list[Candidate]
    waiting: list[Candidate]


def search(
    recipe: Recipe,
    topology: Topology,
    max_compiles: int,
    show: Callable[[str], None] = lambda line: None,
) -> Ranking:
    """Compiles the most promising candidates first, until none could be faster than the best.

    Args:
        recipe: its batch, sequence length and attention backend stay as they are.
        topology: of TPUs: fit is known there only.
        max_compiles: stop after so many.
        show: takes a line of progress.

    Raises:
        ValueError: no mesh splits model and batch over the machine, or nothing fits.
    """
    waiting = sorted(candidates(recipe, topology), key=_promise)
    if not waiting:
        raise ValueError(
            f"no mesh splits the model and train.batch_size={recipe.train.batch_size} over "
            f"{topology.name}: choose a batch that is a multiple of {topology.num_devices}"
        )
    show(f"{len(waiting)} candidates that may fit")
    plans: list[Plan] = []
    too_large: list[Candidate] = []
    for _ in range(max_compiles):
        best = min((plan.bound.step for plan in plans), default=float("inf"))
        waiting = [x for x in waiting if x.bound.step < best and not _is_too_large(x, too_large)]
        if not waiting:
            break
        candidate = waiting.pop(0)
        show(f"compiling {describe(candidate.recipe)}: at best {candidate.bound.step:.3f} s")
        try:
            plan = make_plan(candidate.recipe, topology)
        except DoesNotFitError:
            plan = None
        if plan is None or not plan.fits:
            too_large.append(candidate)
            show("  does not fit")
        else:
            plans.append(plan)
            show(
                f"  {plan.bound.step:.3f} s, MFU {plan.mfu:.1%}, {plan.peak_bytes / 2**30:.1f} GiB"
            )
    if not plans:
        raise ValueError(
            f"none of {len(too_large)} candidates fits {topology.name}: choose a smaller "
            "train.batch_size, a larger machine, or more compiles"
        )
    best = min(plan.bound.step for plan in plans)
    waiting = [x for x in waiting if x.bound.step < best and not _is_too_large(x, too_large)]
    return Ranking(sorted(plans, key=lambda plan: plan.bound.step), too_large, waiting)


def candidates(recipe: Recipe, topology: Topology) -> Iterator[Candidate]:
    """All ways to split a recipe over a machine whose bounds do not exceed its memory."""
    devices = topology.devices()
    settings = recipe.train
    for tensor, sequence in itertools.product(_TENSOR, _SEQUENCE):
        if sequence > 1 and settings.sequence_length // sequence < _MIN_SHARD:
            continue
        rest, remainder = divmod(len(devices), tensor * sequence)
        if remainder:
            continue
        for replica in _powers_of_two(rest):
            mesh = MeshConfig(replica, rest // replica, sequence, tensor)
            per_device, remainder = divmod(settings.batch_size, rest)
            if remainder or not per_device or not _splits(recipe, mesh, devices):
                continue
            for micro_batches in _powers_of_two(per_device):
                for policy in _POLICIES:
                    candidate = _candidate(recipe, topology, mesh, micro_batches, policy)
                    needed = candidate.state_bytes + candidate.saved_bytes
                    if needed <= topology.chip.hbm_bytes:
                        yield candidate


def describe(recipe: Recipe) -> str:
    """Mesh, micro-batches and policy in a few words."""
    mesh = " x ".join(
        f"{name} {size}" for name, size in dataclasses.asdict(recipe.mesh).items() if size > 1
    )
    return (
        f"{mesh or 'one device'}, {recipe.train.micro_batches} micro-batch(es), "
        f"{recipe.model.rematerialization}"
    )


def overlay(plan: Plan, header: str) -> str:
    """A hardware overlay recipe that runs a recipe as planned."""
    recipe = plan.recipe
    lines = [f"# {line}" for line in header.splitlines()] + [""]
    lines += [f"mesh.{name} = {size}" for name, size in dataclasses.asdict(recipe.mesh).items()]
    lines += [
        f"train.micro_batches = {recipe.train.micro_batches}",
        f'model.rematerialization = "{recipe.model.rematerialization}"',
        f'model.attention_backend = "{recipe.model.attention_backend}"',
    ]
    return "\n".join(lines) + "\n"


def _promise(candidate: Candidate) -> tuple:
    """The fastest bound first; among equals what needs least."""
    mesh = candidate.recipe.mesh
    return (
        candidate.bound.step,
        candidate.recipe.train.micro_batches,
        mesh.tensor * mesh.sequence,
        candidate.state_bytes + candidate.saved_bytes,
    )


def _is_too_large(candidate: Candidate, too_large: list[Candidate]) -> bool:
    """Whether one that needs no more of anything did not fit."""
    return any(
        candidate.recipe.model.rematerialization == other.recipe.model.rematerialization
        and candidate.state_bytes >= other.state_bytes
        and candidate.saved_bytes >= other.saved_bytes
        for other in too_large
    )


def _candidate(
    recipe: Recipe, topology: Topology, mesh: MeshConfig, micro_batches: int, policy: str
) -> Candidate:
    model = dataclasses.replace(recipe.model, rematerialization=policy)
    train = dataclasses.replace(recipe.train, micro_batches=micro_batches)
    recipe = dataclasses.replace(recipe, mesh=mesh, model=model, train=train)
    matrices = sum(math.prod(shape) for shape in parameter_shapes(model).values() if len(shape) > 2)
    tokens = train.batch_size * train.sequence_length // topology.num_devices * mesh.tensor
    shards = mesh.fsdp * mesh.tensor
    compute = _flops(model, train.batch_size, train.sequence_length) / topology.num_devices
    seconds = compute / (topology.chip.peak_flops * MATMUL_EFFICIENCY)
    if model.attention_backend == "splash":
        hidden = kernel_flops(model, train.batch_size, train.sequence_length)
        # The device with the last part of a sequence sees the most keys, and all wait for it.
        uneven = 2 - 1 / mesh.sequence
        seconds += kernel_seconds(topology.chip, uneven * hidden / topology.num_devices)
    gathered = 2 * matrices / mesh.tensor  # bfloat16
    gathers = Collective("all-gather", 2 * micro_batches, mesh.fsdp, gathered, True)
    scatters = Collective("reduce-scatter", micro_batches, mesh.fsdp, gathered / mesh.fsdp, False)
    part = gathered / mesh.fsdp
    if mesh.replica % topology.slices == 0 and topology.slices > 1:
        sums = Collective("slice-all-reduce", micro_batches, topology.slices, part, True)
    else:
        sums = Collective("all-reduce", micro_batches, mesh.replica, part, False)
    activation = 2 * tokens * model.embed_dim
    passes = 3 if policy == "full" else 2
    # Of what attention and MLP put out, and of the gradients of what they take in.
    tensors = Collective(
        "all-reduce", 2 * passes * model.num_layers, mesh.tensor, activation, False
    )
    keys = 4 * tokens * mesh.sequence * model.num_kv_heads * model.head_dim / mesh.tensor
    exchanges = Collective(
        "all-gather", (passes + 1) * model.num_layers, mesh.sequence, keys, False
    )
    collectives = [gathers, scatters, sums, tensors, exchanges]
    return Candidate(
        recipe=recipe,
        bound=Roofline(
            seconds,
            communication_seconds(topology, [x for x in collectives if x.is_overlapped]),
            communication_seconds(topology, [x for x in collectives if not x.is_overlapped]),
        ),
        state_bytes=12 * matrices / shards,
        saved_bytes=_saved_bytes(model, tokens / micro_batches, mesh.tensor),
    )


def _flops(config: DecoderConfig, batch_size: int, length: int) -> float:
    """Of all products outside of attention kernels, at least."""
    attention = attention_flops(config, length)
    products = forward_flops(config, length) - attention
    head = 2 * config.vocab_size * config.embed_dim * length
    again = products - head if config.rematerialization == "full" else 0
    return batch_size * (3 * products + again)


def _saved_bytes(config: DecoderConfig, tokens: float, tensor: int) -> float:
    """What the layers keep of a micro-batch for the backward pass, bfloat16, at least."""
    per_token = config.embed_dim
    if config.rematerialization != "full":
        heads = 2 * config.embed_dim + 2 * config.num_kv_heads * config.head_dim
        per_token += (heads + config.mlp_dim) / tensor
    if config.rematerialization == "none":
        per_token += config.mlp_dim / tensor + 2 * config.embed_dim
    return 2 * config.num_layers * tokens * per_token


def _splits(recipe: Recipe, mesh: MeshConfig, devices: list[jax.Device]) -> bool:
    try:
        make_devices(dataclasses.replace(recipe, mesh=mesh), devices)
    except ValueError:
        return False
    return True


def _powers_of_two(number: int) -> Iterator[int]:
    """Those that divide the number."""
    power = 1
    while number % power == 0:
        yield power
        power *= 2
