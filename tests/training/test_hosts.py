import threading
import time

import jax
import numpy as np
import pytest

from starcoder_jax.data.loader import fingerprint, format_fingerprint
from starcoder_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from starcoder_jax.parallel.topology import parse_topology
from starcoder_jax.training.hosts import (
    any_process,
    any_text,
    global_fingerprint,
    row_share,
    to_mesh,
    wait_for_file,
)


def split_rows(mesh):
    """The sharding of a batch: over all axes of the mesh but these two."""
    axes = tuple(name for name in mesh.axis_names if name not in ("sequence", "tensor"))
    return jax.NamedSharding(mesh, jax.P(axes, None))


def test_a_process_alone_agrees_with_itself():
    assert any_process(True) is True and any_process(False) is False
    assert any_text("a reason") == "a reason" and any_text(None) is None


def test_wait_for_file(tmp_path):
    late = tmp_path / "late"
    timer = threading.Timer(0.3, late.touch)
    begin = time.monotonic()
    timer.start()
    wait_for_file(late, seconds=20)
    assert 0.2 < time.monotonic() - begin < 10
    wait_for_file(late, seconds=0)
    with pytest.raises(ValueError, match=r"process 0 does not see .*absent.* storage that all"):
        wait_for_file(tmp_path / "absent", seconds=0.1)


@pytest.mark.parametrize(
    ("machine", "config", "batch_size", "rows_of_host_0"),
    [
        ("v6e:16x16", MeshConfig(), 256, (0, 1, 16, 17)),
        ("v6e:16x16", MeshConfig(), 512, (0, 1, 2, 3, 32, 33, 34, 35)),
        ("v5p:4x4x8", MeshConfig(), 256, None),
        ("tpu7x:4x4x8", MeshConfig(), 256, None),
        ("v5p:4x4x8", MeshConfig(replica=8, fsdp=16), 128, None),
        ("v5p:4x4x8", MeshConfig(tensor=8), 32, None),
        ("v5p:4x4x8", MeshConfig(fsdp=4, tensor=32), 8, None),
        ("2*v5p:4x4x4", MeshConfig(replica=2, tensor=2), 64, None),
    ],
)
def test_every_host_of_a_pod_has_the_rows_of_its_devices(
    libtpu, machine, config, batch_size, rows_of_host_0
):
    devices = parse_topology(machine).devices()
    sharding = split_rows(make_mesh(config, devices))
    hosts = {device.process_index for device in devices}
    assert len(hosts) > 1
    shares = {host: row_share(batch_size, sharding, host) for host in hosts}
    held = {host: set() for host in hosts}
    for device, (index, _) in sharding.devices_indices_map((batch_size, 1)).items():
        share = shares[device.process_index]
        rows = range(batch_size)[index]
        assert len(rows) > 0 and share.rows[share.place(index)] == tuple(rows)
        held[device.process_index].update(rows)
    for host, share in shares.items():
        assert share.rows == tuple(sorted(held[host]))
        assert set(share.own) <= held[host]
    assert sorted(row for share in shares.values() for row in share.own) == list(range(batch_size))
    if rows_of_host_0 is not None:
        assert shares[0].rows == rows_of_host_0


@pytest.mark.parametrize("order", [range(8), (3, 0, 6, 1, 7, 2, 5, 4)])
@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 1, 1, 8)])
def test_row_r_of_an_array_is_row_r_of_the_batch(order, sizes):
    devices = np.array(jax.devices())[list(order)].reshape(sizes)
    sharding = split_rows(jax.sharding.Mesh(devices, AXES))
    share = row_share(16, sharding, jax.process_index())
    assert share.rows == share.own == tuple(range(16))
    rows = np.random.default_rng(0).integers(0, 9, (16, 5), np.int32)
    array = to_mesh(rows, share)
    assert array.sharding == sharding and array.dtype == np.int32
    np.testing.assert_array_equal(array, rows)
    assert global_fingerprint(rows, share) == format_fingerprint(fingerprint(rows))
