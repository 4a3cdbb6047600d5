import pytest

from starcoder_jax.parallel.hardware import CHIPS, chip_of
from starcoder_jax.parallel.topology import parse_topology


@pytest.mark.parametrize("machine", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_what_libtpu_calls_its_devices_finds_their_chip(machine, libtpu):
    topology = parse_topology(machine)
    (kind,) = {device.device_kind for device in topology.devices()}
    assert chip_of(kind) is topology.chip is CHIPS[machine.partition(":")[0]]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("TPU v5p", "v5p"),
        ("TPU v5e", "v5e"),
    ],
)
def test_chips_by_their_name(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize(
    "kind", ["cpu", "", "TPU v3", "NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA H200 NVL"]
)
def test_nothing_is_claimed_of_other_devices(kind):
    assert chip_of(kind) is None


def test_figures_are_in_their_units():
    """Of the accelerators of these years: a wrong power of ten lies outside."""
    for name, chip in CHIPS.items():
        assert chip.name == name and chip.device_kinds and chip.source
        assert 1e14 < chip.peak_flops < 1e16
        assert 12 * 2**30 < chip.hbm_bytes < 300 * 2**30
        assert 5e11 < chip.hbm_bandwidth < 2e13
        assert 1e11 < chip.link_bandwidth < chip.hbm_bandwidth
        assert 1e9 < chip.host_bandwidth < chip.link_bandwidth
        # Beyond so many FLOPs a byte of memory, computation is what takes the time.
        assert 100 < chip.peak_flops / chip.hbm_bandwidth < 600
