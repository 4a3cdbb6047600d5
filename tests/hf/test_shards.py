import json
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from hf.tensor_files import FLOATS, SHAPES, arrays_of, check_holds, write
from starcoder_jax.hf.shards import write_tensors
from starcoder_jax.hf.tensors import open_tensors


def test_tensors_are_packed_in_order(tmp_path):
    shapes = {"z": (4,), "a": (5,), "big": (50,), "m": (1,), "k": (9,), "e": (0,), "l": (1,)}
    write(tmp_path, arrays_of(shapes, np.float32), max_shard_bytes=40)
    packs = [["z", "a"], ["big"], ["m", "k", "e"], ["l"]]
    names = [f"model-{i}-of-00004.safetensors" for i in ("00001", "00002", "00003", "00004")]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    weight_map = {name: file for file, pack in zip(names, packs, strict=True) for name in pack}
    assert index == {
        "metadata": {"total_parameters": 70, "total_size": 280},
        "weight_map": weight_map,
    }
    assert {file.name for file in tmp_path.iterdir()} == {*names, "model.safetensors.index.json"}
    for file, pack in zip(names, packs, strict=True):
        content = (tmp_path / file).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        assert length % 8 == 0 and content[8 + length - 1 : 8 + length] in b"} "
        assert list(header) == ["__metadata__", *pack]
        assert header["__metadata__"] == {"format": "pt"}
        assert len(content) == 8 + length + 4 * sum(shapes[name][0] for name in pack)


def test_one_file_needs_no_index(tmp_path):
    shapes = {"z": (4,), "a": (6,)}
    write(tmp_path, arrays_of(shapes, np.float32), max_shard_bytes=40)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("shape", [(4097, 1031), (3, 1031, 4099), (1, 9_000_000)])
def test_large_and_transposed_arrays_are_written_by_blocks(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.int32).view(np.float32).reshape(shape)
    views = {"whole": array, "transposed": array.T, "reversed": array[::-1]}
    for name, view in views.items():
        write_tensors(tmp_path, {name: view.shape}, view.dtype, views.__getitem__)
        assert open_tensors(tmp_path).read(name).tobytes() == view.tobytes()
        (tmp_path / "model.safetensors").unlink()


def test_each_tensor_is_asked_for_once_and_in_order(tmp_path):
    arrays, asked = arrays_of(SHAPES, np.float32), []

    def read(name):
        asked.append(name)
        return arrays[name]

    write_tensors(tmp_path, SHAPES, np.dtype("float32"), read, max_shard_bytes=1)
    assert asked == list(SHAPES)


def test_other_arrays_than_announced_are_refused(tmp_path):
    def given(array):
        with pytest.raises(
            ValueError, match=r"^'w' was announced as float32 \[2, 3\] and"
        ) as error:
            write_tensors(tmp_path, {"w": (2, 3)}, np.dtype("float32"), lambda name: array)
        (tmp_path / "model.safetensors").unlink()
        return str(error.value)

    assert given(np.zeros((3, 2), np.float32)).endswith("be float32 [3, 2]")
    assert given(np.zeros((2, 3), np.float16)).endswith("be float16 [2, 3]")
    with pytest.raises(ValueError, match="cannot hold complex128"):
        write_tensors(tmp_path, {"w": (2,)}, np.dtype(complex), lambda name: np.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_disk_pass_on(tmp_path):
    if not os.access("/dev/full", os.W_OK):
        # Linux alone has a disk that is always full.
        pytest.skip("this system has no /dev/full")
    opened = open

    def full(path, mode):
        assert pathlib.Path(path).name == "model.safetensors"
        return opened("/dev/full", "wb")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("starcoder_jax.hf.shards.open", full, raising=False)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, arrays_of(SHAPES, np.float32))


def test_files_are_synchronized(tmp_path, monkeypatch):
    synchronized = []

    def fsync(descriptor):
        found = os.fstat(descriptor)
        synchronized.append((found.st_ino, found.st_size))

    monkeypatch.setattr("os.fsync", fsync)
    write(tmp_path, arrays_of(SHAPES, np.float32), max_shard_bytes=60)
    written = [file.stat() for file in tmp_path.iterdir()]
    assert sorted(synchronized) == sorted((found.st_ino, found.st_size) for found in written)
    assert len(written) == 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_torch_reads_what_was_written(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    arrays = arrays_of(SHAPES, dtype)
    write(tmp_path, arrays)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(arrays)
    for name, tensor in safetensors.torch.load_file(tmp_path / "model.safetensors").items():
        assert str(tensor.dtype) == f"torch.{np.dtype(dtype).name}"
        assert tuple(tensor.shape) == arrays[name].shape
        np.testing.assert_array_equal(
            tensor.to(torch.float64).numpy(), arrays[name].astype(np.float64)
        )


@pytest.fixture(scope="module")
def starcoder2():
    """A small model in transformers, and its parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.Starcoder2ForCausalLM(
        transformers.Starcoder2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    return model, {name: value.detach().numpy() for name, value in model.named_parameters()}


@pytest.mark.parametrize("max_shard_size", ["5GB", "5KB"])
def test_files_of_transformers(tmp_path, starcoder2, max_shard_size):
    model, arrays = starcoder2
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (max_shard_size == "5KB")
    check_holds(open_tensors(tmp_path), arrays)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 5000])
def test_transformers_opens_what_was_written(tmp_path, starcoder2, max_shard_bytes):
    model, arrays = starcoder2
    model.config.save_pretrained(tmp_path)
    write(tmp_path, arrays, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (max_shard_bytes == 5000)
    again, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    found = {name: value.detach().numpy() for name, value in again.named_parameters()}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_layout_of_a_file_is_that_of_transformers(tmp_path, starcoder2):
    model, arrays = starcoder2
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours", {name: arrays[name] for name in sorted(arrays)})
    theirs, ours = (tmp_path / name / "model.safetensors" for name in ("theirs", "ours"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_layout_of_an_index_is_that_of_transformers(tmp_path, starcoder2):
    model, arrays = starcoder2
    model.save_pretrained(tmp_path / "theirs", max_shard_size=1)
    (tmp_path / "ours").mkdir()
    write(tmp_path / "ours", arrays, max_shard_bytes=1)
    contents = []
    for name in ("theirs", "ours"):
        content = (tmp_path / name / "model.safetensors.index.json").read_text()
        values = json.loads(content)
        assert content == json.dumps(values, indent=2) + "\n"
        # In which shard a tensor is may differ: transformers does not go by order there.
        files = sorted(values["weight_map"].values())
        contents.append((list(values), values["metadata"], list(values["weight_map"]), files))
    assert contents[0] == contents[1]


def peak(directory, work):
    script = """
        import json, pathlib, sys
        import numpy as np
        from starcoder_jax.hf.shards import write_tensors
        from starcoder_jax.hf.tensors import open_tensors

        def memory(kind):
            status = pathlib.Path("/proc/self/status").read_text()
            return int(status.partition(kind + ":")[2].split()[0]) * 1024

        def check(array, name):
            assert array[0, 0] == array[-1, -1] == int(name)

        shapes = {name: (4096, 4096) for name in "123"}
        directory = sys.argv[1]
        before = memory("VmRSS")
    """
    script = textwrap.dedent(script) + textwrap.dedent(work)
    script += '\nprint((memory("VmHWM") - before) / (4096 * 4096 * 4))'
    command = [sys.executable, "-c", script, str(directory)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    status = pathlib.Path("/proc/self/status")
    if not status.is_file() or "VmHWM" not in status.read_text():
        # Linux records it; what is promised does not depend on the system.
        pytest.skip("this system does not record the peak of a process's memory")
    # Transposed, as many tensors are on their way out. Two shards.
    written = peak(
        tmp_path,
        """
        read = lambda name: np.full((4096, 4096), int(name), np.float32).T
        write_tensors(directory, shapes, np.dtype("float32"), read, max_shard_bytes=2**27)
        """,
    )
    assert len(list(tmp_path.iterdir())) == 3
    read = peak(
        tmp_path,
        """
        files = open_tensors(directory)
        for name in shapes:
            check(files.read(name), name)
        """,
    )
    assert 0.9 < written < 1.6
    assert 0.9 < read < 1.6
    kept = peak(
        tmp_path,
        """
        files = open_tensors(directory)
        for name, array in {name: files.read(name) for name in shapes}.items():
            check(array, name)
        """,
    )
    assert 2.9 < kept < 3.6  # What is measured is what is held.
