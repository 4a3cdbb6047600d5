import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import sharding_rules
from starcoder_jax.training.checkpoint import Checkpointer, find_checkpoint, placed
from starcoder_jax.training.optimizer import OptimizerConfig, make_optimizer
from starcoder_jax.training.step import initial_state

CONFIG = DecoderConfig(
    vocab_size=4096,  # so that a checkpoint has files of data beside its indices
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=32,
    max_length=32,
)
# Orbax leaves tasks of a failed read behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
OPTIMIZER = make_optimizer(OptimizerConfig(1e-3, 1e-4, 2), total_steps=10)


def mesh_of(sizes, num_devices):
    config = MeshConfig(fsdp=sizes[0], tensor=sizes[1])
    return make_mesh(config, jax.devices()[:num_devices])


def on_mesh(seed, sizes, num_devices=8, *, abstract=False):
    """A state, or its shapes, on a mesh of `sizes` (fsdp, tensor)."""
    mesh = mesh_of(sizes, num_devices)
    with jax.set_mesh(mesh):
        rules = sharding_rules(CONFIG, mesh)

        def make():
            return initial_state(CONFIG, OPTIMIZER, seed, rules)

        return placed(jax.eval_shape(make), mesh) if abstract else jax.jit(make)()


@pytest.fixture(scope="module")
def states():
    """Three different states, by step."""
    return {step: on_mesh(step, (4, 2)) for step in (1, 2, 3)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, states):
    """A directory with their checkpoints. Read only."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, states)
    return directory


@pytest.fixture
def directory(tmp_path, saved):
    """A copy to damage."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def open_checkpoints(directory, keep=3, about=None):
    return Checkpointer(directory, keep, about or {"recipe": "text", "versions": {"jax": "1"}})


def save(directory, states, keep=3):
    checkpointer = open_checkpoints(directory, keep)
    for step, state in states.items():
        checkpointer.save(state, step)
    checkpointer.wait()
    checkpointer.close()


def restore(directory, sizes=(4, 2), num_devices=8):
    checkpointer = open_checkpoints(directory)
    with contextlib.closing(checkpointer):
        return checkpointer.restore(on_mesh(0, sizes, num_devices, abstract=True))


def check_equal(restored, state):
    """Bit for bit, dtypes and the structure of the tree included."""
    first, second = jax.tree.flatten(restored), jax.tree.flatten(state)
    assert first[1] == second[1]
    for x, y in zip(first[0], second[0], strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def data_files(folder):
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    assert files
    return files


@pytest.mark.parametrize(
    ("sizes", "num_devices"), [((4, 2), 8), ((8, 1), 8), ((2, 1), 2), ((1, 1), 1)]
)
def test_restores_bit_for_bit_onto_any_mesh(saved, states, sizes, num_devices):
    assert any(np.asarray(x).any() for x in jax.tree.leaves(states[3].params))
    restored, warnings = restore(saved, sizes, num_devices)
    assert warnings == []
    check_equal(restored, states[3])
    expected = on_mesh(0, sizes, num_devices, abstract=True)
    for x, target in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert len(x.sharding.device_set) == num_devices
        assert x.sharding.spec == target.sharding.spec
    assert restored.params["embedding"].sharding.spec == jax.P("tensor", "fsdp")


def test_nothing_saved_restores_nothing(tmp_path):
    assert restore(tmp_path / "checkpoints") == (None, [])


def test_about_is_json_beside_the_state(saved):
    about = json.loads((saved / "3" / "about" / "metadata").read_text())
    checksums = about.pop("checksums")
    assert about == {"recipe": "text", "versions": {"jax": "1"}}
    assert set(checksums) == {"params", "training"}
    others = json.loads((saved / "2" / "about" / "metadata").read_text())["checksums"]
    assert checksums["params"] != others["params"]


def test_keeps_the_newest(tmp_path, states):
    save(tmp_path / "checkpoints", states, keep=2)
    assert steps(tmp_path / "checkpoints") == [2, 3]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(255 - byte for byte in data[middle : middle + 16])
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, os.unlink])
@pytest.mark.parametrize("part", ["params", "training"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(directory, states, damage, part):
    for path in data_files(directory / "3" / part):
        damage(path)
    restored, warnings = restore(directory)
    check_equal(restored, states[2])
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert "checkpoint 3 cannot be read" in warnings[0] and "broken-3" in warnings[0]
    assert (directory / "broken-3").is_dir() and steps(directory) == [1, 2]
    # The run comes to that step again, and perhaps finds it broken again.
    save(directory, {3: states[3]})
    check_equal(restore(directory)[0], states[3])
    for path in data_files(directory / "3" / part):
        damage(path)
    check_equal(restore(directory)[0], states[2])
    assert steps(directory) == [1, 2]


def test_flipped_bits_of_one_array_are_found(directory, states):
    # Those of the embedding alone; its index knows no checksum of them.
    # Its shards come to lie in one file or several, as they happen to be written together: the
    # middle of the largest is the embedding's if all other arrays would not fill half of it.
    largest = max(data_files(directory / "3" / "params"), key=lambda path: path.stat().st_size)
    params = states[3].params
    others = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - params["embedding"].nbytes
    assert largest.stat().st_size > 2 * others
    flip(largest)
    restored, warnings = restore(directory)
    check_equal(restored, states[2])
    assert len(warnings) == 1


def test_a_checkpoint_without_its_parts_is_broken(directory, states):
    shutil.rmtree(directory / "3" / "training")
    restored, warnings = restore(directory)
    check_equal(restored, states[2])
    assert len(warnings) == 1


def test_all_broken_is_an_error_each_time(directory):
    for step in (1, 2, 3):
        for path in data_files(directory / str(step) / "params"):
            truncate(path)
    for _ in range(2):  # as when a scheduler starts the run again
        with pytest.raises(ValueError, match=r"none of the 3 checkpoints .* can be read") as raised:
            restore(directory)
        assert "\n" not in str(raised.value)
        assert steps(directory) == [1, 2, 3]


FULL_DISK = """
import pathlib, resource, signal, sys
sys.path.insert(0, sys.argv[2])
import test_checkpoint as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = t.on_mesh(9, (1, 1), 1)
checkpointer = t.open_checkpoints(pathlib.Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    checkpointer.save(state, 4)
    checkpointer.wait()
except OSError as error:
    print(error)
"""


def test_a_write_that_fails_is_an_error_and_spoils_nothing(directory, states):
    child = [sys.executable, "-c", FULL_DISK, str(directory), os.path.dirname(__file__)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert f"checkpoint 4 could not be written to {directory}" in done.stdout
    assert "free or mount space" in done.stdout
    restored, warnings = restore(directory)
    check_equal(restored, states[3])
    assert warnings == []
    save(directory, {4: states[1]})
    check_equal(restore(directory)[0], states[1])


def test_find_checkpoint(tmp_path, saved):
    newest = saved / "3", saved.parent
    assert find_checkpoint(saved.parent) == newest
    assert find_checkpoint(saved) == newest
    assert find_checkpoint(saved / "2") == (saved / "2", saved.parent)
    (tmp_path / "checkpoints" / "broken-3").mkdir(parents=True)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "absent", pathlib.Path(__file__)):
        with pytest.raises(ValueError, match=r"no checkpoint in .*working directory"):
            find_checkpoint(path)
