import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import sharding_rules
from starcoder_jax.training.checkpoint import placed
from starcoder_jax.training.orbax_parameters import OrbaxParameters, write_orbax_checkpoint
from starcoder_jax.training.parameters import (
    flatten,
    model_reader,
    parameter_shapes,
    place,
    reading_order,
)

CONFIG = DecoderConfig(
    vocab_size=64, num_layers=3, embed_dim=32, num_heads=8, num_kv_heads=2, mlp_dim=64,
    max_length=16, tied_head=False, dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A checkpoint of the model in bfloat16, in a folder of its own."""
    checkpoint = tmp_path_factory.mktemp("saved") / "checkpoints" / "0"
    write_orbax_checkpoint(checkpoint, CONFIG, model_reader(model), dtype="bfloat16")
    return checkpoint


def everything(read, config=CONFIG):
    order = reading_order(parameter_shapes(config), config.num_layers)
    return {(path, layer): read(path, layer) for path, layer in order}


def check_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype
        np.testing.assert_array_equal(value, second[key], err_msg=str(key))


def abstract(dtype, mesh=None):
    spec = {} if mesh is None else {"spec": sharding_rules(CONFIG, mesh)}

    def shapes():
        state = nnx.state(jax.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0), **spec)))
        return jax.tree.map(lambda x: x.update(dtype=jnp.dtype(dtype)), nnx.to_pure_dict(state))

    if mesh is None:
        return placed(shapes(), None)
    with jax.set_mesh(mesh):
        return placed(shapes(), mesh)


def test_reading_goes_through_every_parameter_once(model):
    read = everything(model_reader(model))
    assert len(read) == 6 - 2 + 3 * 16  # two tables, two of the norm; eight modules of two a layer
    total = sum(x.size for x in read.values())
    assert total == sum(x.size for x in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [None, (1, 8, 1, 1), (2, 2, 1, 2)], ids=str)
def test_parameters_are_placed_as_they_are_described(model, sizes, dtype):
    mesh = None if sizes is None else make_mesh(MeshConfig(*sizes))
    target = abstract(dtype, mesh)
    params = place(model_reader(model), target)
    expected = nnx.to_pure_dict(nnx.state(model))
    for path, leaf in flatten(params).items():
        assert leaf.sharding.is_equivalent_to(flatten(target)[path].sharding, leaf.ndim), path
        values = np.asarray(flatten(expected)[path]).astype(dtype)
        np.testing.assert_array_equal(np.asarray(leaf), values, err_msg=str(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_orbax_round_trip(model, tmp_path, dtype):
    written = everything(model_reader(model))
    count = []
    write_orbax_checkpoint(
        tmp_path / "0", CONFIG, model_reader(model), dtype=dtype, advance=lambda: count.append(1)
    )
    source = OrbaxParameters(tmp_path / "0")
    assert (source.config, source.dtype, len(count)) == (CONFIG, dtype, len(written))
    check_equal(everything(source.read), {k: x.astype(dtype) for k, x in written.items()})
    check_equal(everything(source.read), {k: x.astype(dtype) for k, x in written.items()})


def test_orbax_itself_reads_what_was_written(model, saved):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(saved / "params", abstract("bfloat16"))
    for path, leaf in flatten(params).items():
        expected = flatten(nnx.to_pure_dict(nnx.state(model)))[path].astype("bfloat16")
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))


def test_checkpoints_of_runs_are_read(trained):
    checkpoint = max((trained / "checkpoints").iterdir(), key=lambda path: int(path.name))
    source = OrbaxParameters(checkpoint)
    assert source.folder == trained and source.dtype == "float32"
    values = everything(source.read, source.config)
    assert all(np.isfinite(x).all() for x in values.values())
    assert values[("embedding",), None].std() > 0


def damaged(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "damaged"))


def error(checkpoint) -> str:
    with pytest.raises(ValueError) as raised:
        everything(OrbaxParameters(checkpoint).read)
    assert "\n" not in str(raised.value)
    assert str(checkpoint) in str(raised.value)
    return str(raised.value)


def test_flipped_bits_are_found(saved, tmp_path):
    checkpoint = damaged(saved, tmp_path)
    files = [path for path in (checkpoint / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert "damaged" in error(checkpoint)


def test_missing_and_truncated_files_are_found(saved, tmp_path):
    checkpoint = damaged(saved, tmp_path)
    for path in (checkpoint / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    error(checkpoint)
    shutil.rmtree(checkpoint / "params")
    assert "cannot be read" in error(checkpoint)
    (checkpoint / "about" / "metadata").write_text("{}")
    assert "cannot be read" in error(checkpoint)
    (checkpoint / "about" / "metadata").unlink()
    assert "cannot be read" in error(checkpoint)


def test_another_architecture_is_named(saved, tmp_path):
    checkpoint = damaged(saved, tmp_path)
    about = json.loads((checkpoint / "about" / "metadata").read_text())
    about["model"]["mlp_dim"] = 128
    (checkpoint / "about" / "metadata").write_text(json.dumps(about))
    assert "mlp_input.bias is [3, 64], but its architecture makes it [3, 128]" in error(checkpoint)
