"""The device mesh of a run."""

import dataclasses
import math

import jax

# Outermost first: replicas are the farthest apart (slices, islands of hosts), tensor the closest.
AXES = ("replica", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many ways each kind of parallelism splits the devices.

    At most one size may be -1: it takes the devices that the others leave.
    """

    replica: int = 1  # copies of the parameters, each with its share of the batch
    fsdp: int = -1  # shards of the parameters, each with its share of the batch
    sequence: int = 1  # shards of the sequence length
    tensor: int = 1  # shards of heads, MLP and vocabulary

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """The size of each of AXES on this many devices.

        Raises:
            ValueError: the sizes do not multiply to the number of devices.
        """
        sizes = [getattr(self, axis) for axis in AXES]
        text = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"{text}: sizes must be at least 1, and one of them may be -1")
        fixed = math.prod(size for size in sizes if size != -1)
        if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
            raise ValueError(
                f"{text} make a mesh of {fixed} devices, which does not divide the {num_devices} "
                "here: change the sizes, or give one of them as -1"
            )
        return tuple(num_devices // fixed if size == -1 else size for size in sizes)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh with the axes AXES and explicit axis types, over all devices unless told otherwise.

    Raises:
        ValueError: the mesh does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    types = (jax.sharding.AxisType.Explicit,) * len(AXES)
    return jax.make_mesh(config.sizes(len(devices)), AXES, axis_types=types, devices=devices)
