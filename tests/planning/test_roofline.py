import pytest

from starcoder_jax.parallel.hardware import CHIPS
from starcoder_jax.parallel.topology import parse_topology
from starcoder_jax.planning.compiled import Collective, Operation
from starcoder_jax.planning.roofline import (
    MATMUL_EFFICIENCY,
    TRANSFER_EFFICIENCY,
    Roofline,
    communication_seconds,
    compute_seconds,
)


def test_what_overlaps_and_what_does_not():
    assert Roofline(compute=3.0, overlapped=2.0, exposed=0.5).step == 3.5
    assert Roofline(compute=3.0, overlapped=4.0, exposed=0.5).step == 4.5


def test_an_operation_waits_for_its_products_or_its_memory():
    chip = CHIPS["v5p"]
    products = Operation("fusion", 2, chip.peak_flops, 1.0)
    copies = Operation("copy", 3, 0.0, chip.hbm_bandwidth)
    expected = 2 / MATMUL_EFFICIENCY + 3 / TRANSFER_EFFICIENCY
    assert compute_seconds(chip, [products, copies]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("machine", "group", "share"),
    [
        ("v5p:4x4x8", 8, 1 / 3),  # one axis of the torus, two links of six
        ("v5p:4x4x8", 16, 2 / 3),
        ("v5p:4x4x8", 128, 1),
        ("v6e:16x16", 16, 1 / 2),
        ("v6e:16x16", 256, 1),
        ("tpu7x:4x4x8", 16, 1 / 3),  # two devices a chip
        ("h100:64", 8, 1),
    ],
)
def test_a_group_uses_the_links_of_its_axes(machine, group, share):
    topology = parse_topology(machine)
    item = Collective("all-gather", 1, group, 1e9, True)
    seconds = item.wire_bytes / (topology.chip.link_bandwidth * share * TRANSFER_EFFICIENCY)
    assert communication_seconds(topology, [item]) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("machine", "kind", "group"),
    [("2*v5p:4x4x8", "slice-all-reduce", 2), ("h100:64", "all-reduce", 64)],
)
def test_between_slices_and_hosts_the_network_counts(machine, kind, group):
    topology = parse_topology(machine)
    item = Collective(kind, 1, group, 1e9, True)
    seconds = item.wire_bytes / (topology.chip.host_bandwidth * TRANSFER_EFFICIENCY)
    assert communication_seconds(topology, [item]) == pytest.approx(seconds)
