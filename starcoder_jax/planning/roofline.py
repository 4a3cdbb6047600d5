"""How long a step takes at best, from what it computes and sends."""

import dataclasses
from collections.abc import Iterable

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.flops import attention_flops
from starcoder_jax.parallel.hardware import Chip
from starcoder_jax.parallel.topology import Topology
from starcoder_jax.planning.compiled import Collective, Operation

# Share of the peak that large bfloat16 matrix products reach on these chips.
MATMUL_EFFICIENCY = 0.85
# Share of the peak that attention kernels reach.
KERNEL_EFFICIENCY = 0.5
# Share of the bandwidth of memory and of links that large transfers reach.
TRANSFER_EFFICIENCY = 0.8
# Forward passes of attention's FLOPs in a kernel's backward pass: five products instead of two.
_KERNEL_BACKWARD = 2.5
GPUS_PER_HOST = 8

ASSUMPTIONS = (
    f"matrix products reach {MATMUL_EFFICIENCY:.0%} of peak bfloat16 FLOP/s, attention kernels "
    f"{KERNEL_EFFICIENCY:.0%}",
    f"memory and links reach {TRANSFER_EFFICIENCY:.0%} of their bandwidth; collectives use rings "
    "along as few axes of the torus as their groups need",
    "an operation takes as long as its products or its memory traffic, whichever is longer",
    "collectives that the compiler runs beside operations overlap with them (the longer of the two "
    "counts), all others come on top",
    "start-up of kernels, the loader and checkpoints cost nothing",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step, in seconds.

    Attributes:
        compute: of its operations, one after the other.
        overlapped: of the collectives that go on beside them.
        exposed: of all other collectives.
    """

    compute: float
    overlapped: float
    exposed: float

    @property
    def step(self) -> float:
        """The predicted step time."""
        return max(self.compute, self.overlapped) + self.exposed


def compute_seconds(chip: Chip, operations: Iterable[Operation]) -> float:
    """How long a device takes for the operations of a program."""
    flops = chip.peak_flops * MATMUL_EFFICIENCY
    bandwidth = chip.hbm_bandwidth * TRANSFER_EFFICIENCY
    return sum(
        item.runs * max(item.flops / flops, item.moved_bytes / bandwidth) for item in operations
    )


def kernel_seconds(chip: Chip, flops: float) -> float:
    """How long a device takes for attention inside kernels."""
    return flops / (chip.peak_flops * KERNEL_EFFICIENCY)


def communication_seconds(topology: Topology, collectives: Iterable[Collective]) -> float:
    """How long a device sends and receives; the machine's figures are known."""
    return sum(
        item.wire_bytes / (_bandwidth(topology, item) * TRANSFER_EFFICIENCY) for item in collectives
    )


def _bandwidth(topology: Topology, collective: Collective) -> float:
    """Bytes/s that a device sends over the links that a collective uses."""
    chip = topology.chip
    if not topology.is_tpu:
        return (
            chip.link_bandwidth if collective.group_size <= GPUS_PER_HOST else chip.host_bandwidth
        )
    if collective.kind == "collective-permute":
        return chip.link_bandwidth / len(topology.shape)
    if collective.kind.startswith("slice-"):
        return chip.host_bandwidth
    # A group of few lies along few axes of the torus, and leaves the links of the others idle.
    axes, reach = 0, topology.devices_per_chip
    for size in sorted(topology.shape, reverse=True):
        if axes == 0 or reach < collective.group_size:
            axes, reach = axes + 1, reach * size
    return chip.link_bandwidth * axes / len(topology.shape)


def kernel_flops(config: DecoderConfig, batch_size: int, length: int) -> float:
    """Of attention inside kernels, which the text of a program does not show, over all devices.

    Forward once, once more where a layer is rematerialised whole, and backward.
    """
    forwards = 2 if config.rematerialization == "full" else 1
    one = batch_size * attention_flops(config, length)
    return one * (forwards + _KERNEL_BACKWARD)
