"""The device mesh of a run."""

import dataclasses
import math

import jax
from jax.experimental import mesh_utils

# Outermost first: replicas are the farthest apart (slices, islands of hosts), tensor the closest.
AXES = ("replica", "fsdp", "sequence", "tensor")
# The outer part of fsdp, an axis of meshes on a three-dimensional torus whose fsdp spans all of it:
# the compiler for TPUs can sum up and scatter along two axes of the torus, but not along three.
FSDP_FAR = "fsdp_far"


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

    On TPUs the order of devices follows the torus. An axis of the mesh is laid along whole axes of
    the torus where sizes allow it, else along parts of them, whose ends have no direct link. Slices
    of TPUs are split among the outermost axes that can take them.

    Raises:
        ValueError: the mesh does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    # GPUs have slice numbers too, of hosts: there the order by host is the mesh's order already.
    is_tpu = devices[0].platform == "tpu"
    slices = {getattr(device, "slice_index", 0) for device in devices} if is_tpu else {0}
    over = []  # of each size, the part that counts slices
    for size in sizes:
        over.append(math.gcd(size, len(slices) // math.prod(over)))
    within = [size // part for size, part in zip(sizes, over, strict=True)]
    names = list(AXES)
    if is_tpu and over[1] == 1 and (far := _fsdp_far(devices, within[1])) > 1:
        names.insert(1, FSDP_FAR)
        within[1:2], over[1:2] = (far, within[1] // far), (1, 1)
    if len(slices) == 1:
        array = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_hybrid_device_mesh(
            within, over, devices, allow_split_physical_axes=True
        )
    types = (jax.sharding.AxisType.Explicit,) * len(names)
    return jax.sharding.Mesh(array, names, axis_types=types)


def mesh_sizes(mesh: jax.sharding.Mesh) -> dict[str, int]:
    """The size of each of AXES, as a `MeshConfig` would give it."""
    sizes = {axis: mesh.shape[axis] for axis in AXES}
    sizes["fsdp"] *= mesh.shape.get(FSDP_FAR, 1)
    return sizes


def _fsdp_far(devices: list[jax.Device], fsdp: int) -> int:
    """The size of the outer part of fsdp, along two axes of the torus; 1: there is none."""
    axes = zip(*(device.coords for device in devices), strict=True)
    first, second, longest = sorted(len(set(axis)) for axis in axes)
    if first == 1 or fsdp <= second * longest:  # it lies in a plane
        return 1
    return fsdp // math.gcd(fsdp, longest)
