import jax
import pytest

from starcoder_jax.parallel.mesh import AXES, MeshConfig, make_mesh


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
