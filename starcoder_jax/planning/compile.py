"""Compiles a recipe's training step for a machine, and reads from it what the step will need."""

import dataclasses
import math
import time
from typing import Any

import jax

from starcoder_jax.model.flops import training_flops
from starcoder_jax.parallel.mesh import mesh_sizes
from starcoder_jax.parallel.topology import Topology
from starcoder_jax.planning.compiled import Collective, CompiledProgram, Operation
from starcoder_jax.planning.roofline import (
    Roofline,
    communication_seconds,
    compute_seconds,
    kernel_flops,
    kernel_seconds,
)
from starcoder_jax.planning.traced import traced_flops
from starcoder_jax.recipes import Recipe
from starcoder_jax.training.program import Program, make_devices, make_program


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step needs on a machine. Bytes and FLOPs are those of one device.

    Attributes:
        recipe: as it was compiled.
        topology: the machine.
        mesh: size of each mesh axis.
        parameters: of the model.
        state_bytes: of parameters, optimizer and batch, which stay from step to step.
        peak_bytes: most memory in use at once; None where the compiler does not say.
        model_flops: of the whole step on all devices, by the rule of `model.flops`.
        hardware_flops: what is computed, recomputation included.
        moved_bytes: between the device and its memory; None where the compiler does not say.
        collectives: the largest on the wire first.
        compile_seconds: to compile the step, here.
        bound: lower bounds of the step time; None for machines whose figures are not known.
        unknown_loops: loops counted once as their length cannot be read.
    """

    recipe: Recipe
    topology: Topology
    mesh: dict[str, int]
    parameters: int
    state_bytes: int
    peak_bytes: int | None
    model_flops: int
    hardware_flops: float
    moved_bytes: float | None
    collectives: list[Collective]
    compile_seconds: float
    bound: Roofline | None
    unknown_loops: list[str]

    @property
    def collective_bytes(self) -> float:
        """What one device sends in a step."""
        return sum(item.wire_bytes for item in self.collectives)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over what the machine could do in the predicted time."""
        if self.bound is None:
            return None
        could = self.topology.chip.peak_flops * self.topology.num_devices * self.bound.step
        return self.model_flops / could

    @property
    def fits(self) -> bool | None:
        """Whether the step's peak fits into memory; None where that is not known."""
        if self.peak_bytes is None:
            return None
        return self.peak_bytes <= self.topology.chip.hbm_bytes

    def as_json(self, name: str) -> dict[str, Any]:
        """The object that `plan --json` prints; `name` is the recipe's."""
        per_chip = self.topology.devices_per_chip
        chip = self.topology.chip
        return {
            "recipe": name,
            "topology": self.topology.name,
            "chips": self.topology.num_chips,
            "mesh": self.mesh,
            "batch_size": self.recipe.train.batch_size,
            "sequence_length": self.recipe.train.sequence_length,
            "micro_batches": self.recipe.train.micro_batches,
            "rematerialization": self.recipe.model.rematerialization,
            "attention_backend": self.recipe.model.attention_backend,
            "parameters": self.parameters,
            "hbm_bytes_per_chip": None if self.peak_bytes is None else self.peak_bytes * per_chip,
            "hbm_limit_bytes": None if chip is None else chip.hbm_bytes * per_chip,
            "state_bytes_per_chip": self.state_bytes * per_chip,
            "fits": self.fits,
            "model_flops_per_step": self.model_flops,
            "hardware_flops_per_chip": self.hardware_flops * per_chip,
            "moved_bytes_per_chip": (
                None if self.moved_bytes is None else self.moved_bytes * per_chip
            ),
            "collective_bytes_per_chip": self.collective_bytes * per_chip,
            "collectives": [
                dataclasses.asdict(item) | {"wire_bytes": item.wire_bytes}
                for item in self.collectives
            ],
            "compile_seconds": self.compile_seconds,
            "predicted_step_seconds": None if self.bound is None else self.bound.step,
            "predicted_parts_seconds": (
                None if self.bound is None else dataclasses.asdict(self.bound)
            ),
            "predicted_mfu": self.mfu,
        }


class DoesNotFitError(ValueError):
    """The compiler gave up: the step needs more memory than the device has."""


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The step that `train` would run, compiled.

    Attributes:
        recipe: as it was compiled.
        mesh: of devices that need not exist.
        program: with the shapes of what goes into it.
        traced: before compilation.
        compiled: for one of the devices.
        seconds: that compiling took.
    """

    recipe: Recipe
    mesh: jax.sharding.Mesh
    program: Program
    traced: jax.stages.Traced
    compiled: jax.stages.Compiled
    seconds: float


def compile_step(recipe: Recipe, topology: Topology) -> CompiledStep:
    """Compiles the step that `train` would run on the machine.

    Raises:
        DoesNotFitError: the compiler found that it cannot fit; the message has its figures.
        ValueError: model, batch or sequence do not split over the machine as the recipe asks.
    """
    if not topology.is_tpu:
        # The kernels of GPUs do not compile for the devices that stand in for them.
        model = dataclasses.replace(recipe.model, attention_backend="xla")
        recipe = dataclasses.replace(recipe, model=model)
    mesh, rules = make_devices(recipe, topology.devices())
    with jax.set_mesh(mesh):
        program = make_program(recipe, mesh, rules, end_of_text=0)
        traced = program.step.trace(program.state, program.tokens, program.weights)
        start = time.perf_counter()
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError(_first_sentence(str(error))) from error
    return CompiledStep(recipe, mesh, program, traced, compiled, time.perf_counter() - start)


def make_plan(recipe: Recipe, topology: Topology) -> Plan:
    """Compiles the step that `train` would run on the machine, and reads what it needs.

    Raises:
        DoesNotFitError, ValueError: as `compile_step`.
    """
    step = compile_step(recipe, topology)
    recipe, chip, settings = step.recipe, topology.chip, step.recipe.train
    text = CompiledProgram(step.compiled.as_text(), topology.num_devices, topology.slices)
    collectives = text.collectives()
    memory = step.compiled.memory_analysis()
    hidden_flops, moved_bytes, peak_bytes = 0.0, None, None
    if topology.is_tpu:
        operations = list(text.operations())
        if recipe.model.attention_backend == "splash":
            hidden_flops = (
                kernel_flops(recipe.model, settings.batch_size, settings.sequence_length)
                / topology.num_devices
            )
        moved_bytes = sum(item.runs * item.moved_bytes for item in operations)
        peak_bytes = memory.peak_memory_in_bytes
    else:
        flops = traced_flops(step.traced.jaxpr.jaxpr) / topology.num_devices
        operations = [Operation("all products", 1, flops, 0.0)]
    bound = None
    if chip is not None:
        bound = Roofline(
            compute_seconds(chip, operations) + kernel_seconds(chip, hidden_flops),
            communication_seconds(topology, [x for x in collectives if x.is_overlapped]),
            communication_seconds(topology, [x for x in collectives if not x.is_overlapped]),
        )
    return Plan(
        recipe=recipe,
        topology=topology,
        mesh=mesh_sizes(step.mesh),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(step.program.state.params)),
        state_bytes=memory.argument_size_in_bytes,
        peak_bytes=peak_bytes,
        model_flops=training_flops(recipe.model, settings.batch_size, settings.sequence_length),
        hardware_flops=hidden_flops + sum(item.runs * item.flops for item in operations),
        moved_bytes=moved_bytes,
        collectives=collectives,
        compile_seconds=step.seconds,
        bound=bound,
        unknown_loops=text.unknown_loops,
    )


def _first_sentence(message: str) -> str:
    return " ".join(message.split(". ")[0].split())[:300]
