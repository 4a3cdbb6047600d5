"""Machines by name, and as devices to compile for without having them."""

import dataclasses
import math
import re

import jax

from starcoder_jax.parallel.hardware import CHIPS, Chip

# Of the product names, which count cores (v4, v5p) or chips (the others).
_CORES_PER_CHIP = {"v4": 2, "v5p": 2}
_ALIASES = {"v5litepod": "v5e"}
# How libtpu calls them, and the setting that makes the two cores of a chip one device.
_LIBTPU = {
    "v4": ("v4", "megacore"),
    "v5p": ("v5", "megacore"),
    "v5e": ("v5e", "default"),
    "v6e": ("v6e", "default"),
    "tpu7x": ("tpu7x", "default"),
}
_TORUS_3D = ("v4", "v5p", "tpu7x")
_CHIPS_PER_HOST = (2, 2, 1)
_FORMS = (
    "v5p:4x4x8, v5p-256, v5litepod-256, v6e-256, tpu7x:4x4x8, 2*v5p-256 (slices), h100:64 (GPUs) "
    "or cpu:8"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine.

    Attributes:
        name: as it was asked for.
        chip: its accelerator; None: CPUs.
        shape: chips of one slice along each axis of its torus; (number,) where there is none.
        slices: number of slices.
        devices_per_chip: as JAX counts.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]
    slices: int = 1
    devices_per_chip: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it."""
        return self.chip is not None and self.chip.name in _LIBTPU

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """As JAX counts."""
        return self.num_chips * self.devices_per_chip

    def devices(self) -> list[jax.Device]:
        """What a program can be compiled for; on TPUs devices that need not exist.

        GPUs are stood in for by simulated CPU devices, of which the process must have as many
        (`JAX_NUM_CPU_DEVICES`).

        Raises:
            ValueError: libtpu is not installed or knows no such machine, or there are too few
                simulated devices.
        """
        if not self.is_tpu:
            devices = jax.devices("cpu")
            if len(devices) < self.num_devices:
                raise ValueError(
                    f"{self.name} needs {self.num_devices} simulated devices, and there are "
                    f"{len(devices)}: set JAX_NUM_CPU_DEVICES={self.num_devices}"
                )
            return devices[: self.num_devices]
        from jax.experimental import topologies

        name, chip_config = _LIBTPU[self.chip.name]
        size = "x".join(map(str, self.shape))
        # An axis of the torus is closed where it is made of whole racks, or as long as the pod.
        closed = 4 if self.chip.name in _TORUS_3D else 16
        wrap = [axis % closed == 0 for axis in self.shape] + [False] * (3 - len(self.shape))
        if self.chip.name in _TORUS_3D and not all(wrap):
            wrap = [False] * 3
        bounds = tuple(min(*pair) for pair in zip(_CHIPS_PER_HOST, (*self.shape, 1), strict=False))
        try:
            description = topologies.get_topology_desc(
                f"{name}:{size}",
                "tpu",
                chip_config_name=chip_config,
                chips_per_host_bounds=bounds,
                num_slices=self.slices,
                wrap=tuple(wrap),
            )
        except Exception as error:  # whatever the plugin makes of a name or of its own absence
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"no compiler for {self.name}: {reason}; pip install 'starcoder_jax[tpu]', and "
                f"name a machine such as {_FORMS}"
            ) from error
        return list(description.devices)


def parse_topology(name: str) -> Topology:
    """A machine by its name, such as "v5p:4x4x8", "v5p-256", "2*v5p-256" or "h100:64".

    Raises:
        ValueError: there is no such machine.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?([a-z][a-z0-9]*)[:-](\d+(?:x\d+)*)", name.lower())
    if match is None:
        raise ValueError(f"topology {name!r} is none; write {_FORMS}")
    slices, kind, size = int(match[1] or 1), _ALIASES.get(match[2], match[2]), match[3]
    if kind != "cpu" and kind not in CHIPS:
        raise ValueError(
            f"topology {name!r}: unknown machine {kind!r}; there are {', '.join(CHIPS)} and cpu"
        )
    shape = tuple(map(int, size.split("x")))
    if min(*shape, slices) < 1:
        raise ValueError(f"topology {name!r} has no devices")
    if kind not in _LIBTPU:
        if len(shape) > 1:
            raise ValueError(f"topology {name!r}: give the number of devices, as in {kind}:8")
        return Topology(name, CHIPS.get(kind), shape, slices)
    if len(shape) == 1:
        # Of the newest, product names count neither chips nor devices everywhere alike.
        if "-" not in name or kind == "tpu7x":
            raise ValueError(f"topology {name!r}: give a shape such as {kind}:4x4x8")
        shape = _slice_shape(name, kind, shape[0])
    if len(shape) != (3 if kind in _TORUS_3D else 2):
        raise ValueError(
            f"topology {name!r}: the torus of {kind} has {3 if kind in _TORUS_3D else 2} axes"
        )
    return Topology(name, CHIPS[kind], shape, slices, 2 if kind == "tpu7x" else 1)


def _slice_shape(name: str, kind: str, number: int) -> tuple[int, ...]:
    """The shape of a slice by its product name: powers of two, as even as may be."""
    cores = _CORES_PER_CHIP.get(kind, 1)
    chips = number // cores
    if number % cores or chips & (chips - 1) or chips < 1:
        raise ValueError(
            f"topology {name!r}: {number} is not the size of a slice, which is a power of two"
        )
    shape = [1] * (3 if kind in _TORUS_3D else 2)
    while (size := math.prod(shape)) < chips:
        open_axes = shape[:2] if size < 4 else shape  # a host is two by two
        shape[open_axes.index(min(open_axes))] *= 2
    return tuple(shape) if chips <= 4 else tuple(sorted(shape))
