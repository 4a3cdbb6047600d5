import jax
import numpy as np
import pytest

from starcoder_jax.parallel.mesh import AXES, FSDP_FAR, MeshConfig, make_mesh, mesh_sizes
from starcoder_jax.parallel.topology import parse_topology


@pytest.fixture
def tpus(libtpu):
    """The devices of a machine, by its name."""
    return lambda name: parse_topology(name).devices()


@pytest.mark.parametrize(
    ("config", "num_devices", "sizes"),
    [
        (MeshConfig(), 1, (1, 1, 1, 1)),
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(tensor=2), 8, (1, 4, 1, 2)),
        (MeshConfig(replica=-1, fsdp=2, sequence=2), 8, (2, 2, 2, 1)),
        (MeshConfig(replica=2, fsdp=2, sequence=2, tensor=1), 8, (2, 2, 2, 1)),
        (MeshConfig(fsdp=-1, tensor=8), 8, (1, 1, 1, 8)),
    ],
)
def test_sizes(config, num_devices, sizes):
    assert config.sizes(num_devices) == sizes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(tensor=3), "mesh.tensor=3 make a mesh of 3 devices, .* the 8 here"),
        (MeshConfig(fsdp=4), "mesh.fsdp=4.* of 4 devices, .* the 8 here"),
        (MeshConfig(fsdp=16), "mesh.fsdp=16.* of 16 devices, .* the 8 here"),
        (MeshConfig(fsdp=-1, tensor=-1), "one of them may be -1"),
        (MeshConfig(fsdp=0), "mesh.fsdp=0.*at least 1"),
        (MeshConfig(sequence=-2), "mesh.sequence=-2.*at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(config, message):
    with pytest.raises(ValueError, match=message) as error:
        config.sizes(8)
    assert "\n" not in str(error.value)


def test_a_mesh_takes_all_devices_with_explicit_axes():
    mesh = make_mesh(MeshConfig(tensor=2))
    assert mesh.devices.size == jax.device_count() == 8
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "sequence": 1, "tensor": 2}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


def test_a_mesh_takes_the_devices_it_is_given():
    mesh = make_mesh(MeshConfig(), jax.devices()[2:6])
    assert set(mesh.devices.flat) == set(jax.devices()[2:6])


def coordinates(devices):
    """Of each device, integers [..., 4]: on the torus, and the slice."""
    rows = [[*device.coords, getattr(device, "slice_index", 0)] for device in devices.flat]
    return np.array(rows).reshape(*devices.shape, 4)


def check_complete(mesh, devices, config):
    assert set(mesh.axis_names) - {FSDP_FAR} == set(AXES)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}
    assert tuple(mesh_sizes(mesh).values()) == config.sizes(len(devices))
    assert set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize(
    ("machine", "config"),
    [
        ("v5p:4x4x8", MeshConfig(replica=8)),
        ("v5p:4x4x8", MeshConfig(replica=4)),
        ("v6e:16x16", MeshConfig()),
        ("v6e:16x16", MeshConfig(tensor=16)),
        ("tpu7x:4x4x8", MeshConfig(replica=8, tensor=2)),
    ],
)
def test_a_mesh_of_whole_axes_of_the_torus_is_that_of_jax(tpus, machine, config):
    devices = tpus(machine)
    mesh = make_mesh(config, devices)
    check_complete(mesh, devices, config)
    types = (jax.sharding.AxisType.Explicit,) * len(AXES)
    sizes = config.sizes(len(devices))
    assert mesh == jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)


@pytest.mark.parametrize(
    ("machine", "config"),
    [
        ("v5p:4x4x8", MeshConfig(tensor=2)),
        ("v5p:4x4x8", MeshConfig(replica=2, fsdp=64)),
        ("v6e:16x16", MeshConfig(tensor=4)),
        ("v6e:16x16", MeshConfig(replica=2, sequence=2, tensor=2)),
    ],
)
def test_a_mesh_may_split_axes_of_the_torus(tpus, machine, config):
    devices = tpus(machine)
    types = (jax.sharding.AxisType.Explicit,) * len(AXES)
    sizes = config.sizes(len(devices))
    with pytest.raises(NotImplementedError):  # JAX's own: why `make_mesh` does not call it
        jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    mesh = make_mesh(config, devices)
    check_complete(mesh, devices, config)
    # Along the innermost axis, which talks most, the next one is a neighbor.
    hops = np.abs(np.diff(coordinates(mesh.devices), axis=-2)).sum(axis=-1)
    assert np.all(hops == 1)


@pytest.mark.parametrize(
    ("machine", "config", "far", "near"),
    [
        ("v5p:4x4x8", MeshConfig(), 16, 8),
        ("v5p:4x4x8", MeshConfig(replica=2), 8, 8),
        ("v5p:4x4x8", MeshConfig(tensor=2), 8, 8),
        ("v5p:8x8x8", MeshConfig(), 64, 8),
        ("tpu7x:4x4x8", MeshConfig(tensor=2), 16, 8),
    ],
)
def test_fsdp_over_all_axes_of_the_torus_has_two_parts(tpus, machine, config, far, near):
    devices = tpus(machine)
    mesh = make_mesh(config, devices)
    check_complete(mesh, devices, config)
    assert (mesh.shape[FSDP_FAR], mesh.shape["fsdp"]) == (far, near)
    # Devices of one group lie in a plane at most.
    places = coordinates(mesh.devices)[..., :3]
    for axis in (1, 2):
        groups = np.moveaxis(places, axis, 0).reshape(mesh.devices.shape[axis], -1, 3)
        for group in range(groups.shape[1]):
            assert sum(len(set(line)) > 1 for line in groups[:, group].T) <= 2


@pytest.mark.parametrize(
    ("machine", "config", "per_slice"),
    [
        ("2*v5p:4x4x4", MeshConfig(replica=2), (1, 64, 1, 1)),
        ("2*v5p:4x4x4", MeshConfig(), (1, 64, 1, 1)),
        ("2*v5p:4x4x4", MeshConfig(replica=4, tensor=2), (2, 16, 1, 2)),
        ("2*v6e:8x8", MeshConfig(tensor=4), (1, 16, 1, 4)),
        ("4*v6e:4x4", MeshConfig(replica=2), (1, 16, 1, 1)),
        ("2*v6e:2x2", MeshConfig(fsdp=1, tensor=8), (1, 1, 1, 4)),
    ],
)
def test_slices_are_split_among_the_outermost_axes(tpus, machine, config, per_slice):
    devices = tpus(machine)
    mesh = make_mesh(config, devices)
    check_complete(mesh, devices, config)
    slices = coordinates(mesh.devices)[..., 3].reshape(config.sizes(len(devices)))
    assert len(np.unique(slices)) == int(machine[0])
    block = slices[tuple(slice(size) for size in per_slice)]
    assert np.all(block == 0)
    assert np.count_nonzero(slices == 0) == block.size
