"""What accelerators can do: the figures that plans and utilisation rest on."""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one device, as JAX counts devices.

    Attributes:
        name: as it is asked for, such as "v5p".
        device_kinds: what `jax.Device.device_kind` says of it.
        peak_flops: bfloat16 FLOP/s, dense, two for a multiplication and its addition.
        hbm_bytes: what a program can use of its memory.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s that one device sends to its neighbours over all links: of the
            torus, or to the other GPUs of its host.
        host_bandwidth: bytes/s that one device sends to devices beyond: of other slices or hosts.
        source: of the figures.
    """

    name: str
    device_kinds: tuple[str, ...]
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    host_bandwidth: float
    source: str


# TPUs: memory is what the compiler of libtpu 0.0.42 says a program can have; links are those of
# "How to Scale Your Model" (jax-ml.github.io/scaling-book, "TPUs"), one way, times their number.
_TPU = "Google Cloud's TPU pages; jax-ml.github.io/scaling-book; libtpu for memory"
_NVIDIA = "NVIDIA's data sheet, SXM, without sparsity; network of one 400 Gb/s port a GPU"
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, int(30.75 * _GIB), 1.23e12, 6 * 4.5e10, 3.1e9, _TPU),
        Chip(
            "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, int(15.75 * _GIB), 8.1e11, 4 * 4.5e10,
            3.1e9, _TPU,
        ),
        Chip(
            "v5p", ("TPU v5", "TPU v5p"), 459e12, int(95.74 * _GIB), 2.765e12, 6 * 9e10, 6.25e9,
            _TPU,
        ),
        Chip(
            "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, int(31.25 * _GIB), 1.64e12, 4 * 9e10,
            12.5e9, _TPU,
        ),
        # A chip is two devices, which share its links.
        Chip("tpu7x", ("TPU7x",), 1153e12, int(94.75 * _GIB), 3.69e12, 3 * 9e10, 12.5e9, _TPU),
        Chip(
            "a100", ("NVIDIA A100-SXM4-80GB",), 312e12, int(79 * _GIB), 2.039e12, 3e11, 2.5e10,
            "NVIDIA's data sheet of the 80 GB SXM, without sparsity; one 200 Gb/s port a GPU",
        ),
        Chip(
            "h100", ("NVIDIA H100 80GB HBM3",), 989e12, int(79 * _GIB), 3.35e12, 4.5e11, 5e10,
            _NVIDIA,
        ),
        Chip("h200", ("NVIDIA H200",), 989e12, int(139 * _GIB), 4.8e12, 4.5e11, 5e10, _NVIDIA),
        Chip("b200", ("NVIDIA B200",), 2250e12, int(178 * _GIB), 8e12, 9e11, 5e10, _NVIDIA),
    )
}  # fmt: skip


def chip_of(device_kind: str) -> Chip | None:
    """The figures of a device, None where they are not known, as of a CPU.

    The whole name counts: an H100 with PCI Express is slower than one on an SXM board.
    """
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)
