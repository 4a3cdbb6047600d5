import pytest

from starcoder_jax.parallel.hardware import CHIPS, chip_of
from starcoder_jax.parallel.topology import parse_topology


@pytest.mark.parametrize(
    ("name", "shape", "chips", "devices"),
    [
        ("v5p:4x4x8", (4, 4, 8), 128, 128),
        ("v5p-8", (2, 2, 1), 4, 4),
        ("v5p-16", (2, 2, 2), 8, 8),
        ("v5p-64", (2, 4, 4), 32, 32),
        ("v5p-256", (4, 4, 8), 128, 128),
        ("v5p-512", (4, 8, 8), 256, 256),
        ("v4-64", (2, 4, 4), 32, 32),
        ("v5litepod-256", (16, 16), 256, 256),
        ("v5e-8", (2, 4), 8, 8),
        ("v6e-256", (16, 16), 256, 256),
        ("V6E-4", (2, 2), 4, 4),
        ("tpu7x:4x4x4", (4, 4, 4), 64, 128),
        ("2*v5p-256", (4, 4, 8), 256, 256),
        ("h100:64", (64,), 64, 64),
        ("cpu:8", (8,), 8, 8),
    ],
)
def test_machines_by_name(name, shape, chips, devices):
    topology = parse_topology(name)
    assert (topology.shape, topology.num_chips, topology.num_devices) == (shape, chips, devices)
    assert topology.is_tpu == name.lower().lstrip("2*").startswith(("v", "tpu"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "write v5p:4x4x8"),
        ("v5p:4x4", "has 3 axes"),
        ("v6e:4x4x4", "has 2 axes"),
        ("v5p:8", "give a shape"),
        ("tpu7x-128", "give a shape"),
        ("v5p-7", "not the size of a slice"),
        ("v5e-12", "not the size of a slice"),
        ("v9-8", "unknown machine 'v9'"),
        ("h100:2x2", "number of devices"),
        ("0*v5p-8", "no devices"),
        ("", "write v5p:4x4x8"),
    ],
)
def test_what_is_no_machine_is_named(name, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_topology(name)
    assert "\n" not in str(raised.value)


def test_simulated_devices_are_counted():
    assert len(parse_topology("cpu:8").devices()) == 8
    assert len(parse_topology("h100:4").devices()) == 4
    with pytest.raises(ValueError, match="JAX_NUM_CPU_DEVICES=9"):
        parse_topology("cpu:9").devices()


def test_chips_by_what_devices_say_of_themselves():
    assert chip_of("TPU v5 lite").name == "v5e"
    assert chip_of("TPU v5").name == "v5p"
    assert chip_of("TPU v6 lite").name == "v6e"
    assert chip_of("NVIDIA H100 80GB HBM3").name == "h100"
    assert chip_of("NVIDIA H200").name == "h200"
    assert chip_of("cpu") is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
