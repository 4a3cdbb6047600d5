import io
import json
import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from hf.tensor_files import (
    FLOATS,
    SHAPES,
    arrays_of,
    check_holds,
    message_of,
    write,
    write_index,
)
from starcoder_jax.hf.tensors import SafetensorsFiles, open_tensors


@pytest.fixture
def sharded(tmp_path):
    """Three shards of ours, one tensor each, and what they hold."""
    arrays = arrays_of({"a": (4,), "b": (2, 2), "c": (4, 1)}, np.float32)
    write(tmp_path, arrays, max_shard_bytes=16)
    return tmp_path, arrays


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 1])
def test_round_trip(tmp_path, dtype, max_shard_bytes):
    arrays = arrays_of(SHAPES, dtype)
    write(tmp_path, arrays, max_shard_bytes=max_shard_bytes)
    files = open_tensors(str(tmp_path))
    assert isinstance(files, SafetensorsFiles)
    check_holds(files, arrays)
    with pytest.raises(KeyError):
        files.read("absent")


def test_files_of_the_safetensors_library(tmp_path):
    dtypes = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8]
    dtypes += [np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]
    arrays = {
        f"{np.dtype(dtype).name}.{len(shape)}": np.full(shape, 3).astype(dtype)
        for dtype in dtypes
        for shape in ((3, 5), (0,), ())
    }
    assert len(arrays) == 36
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, file, metadata={"a": "b"})
    check_holds(open_tensors(tmp_path), arrays)


def test_files_of_the_safetensors_library_from_torch(tmp_path):
    torch = pytest.importorskip("torch")
    import safetensors.torch

    arrays = arrays_of(SHAPES, ml_dtypes.bfloat16)
    tensors = {
        name: torch.tensor(array.astype(np.float32), dtype=torch.bfloat16)
        for name, array in arrays.items()
    }
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    check_holds(open_tensors(tmp_path), arrays)


def test_unaligned_tensors(tmp_path):
    # Other writers need not align; NumPy could not map these.
    header = {
        "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    encoded = json.dumps(header).encode()
    expected = {"x": np.array([7], np.uint8), "y": np.array([1.5, -2], np.float32)}
    (tmp_path / "model.safetensors").write_bytes(
        len(encoded).to_bytes(8, "little")
        + encoded
        + b"".join(array.tobytes() for array in expected.values())
    )
    check_holds(open_tensors(tmp_path), expected)


def test_order_of_preference(tmp_path):
    arrays = arrays_of({"a": (4,)}, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "shard")
    write_index(tmp_path, {"a": "shard"}, "pytorch_model.bin.index.json")
    message_of(tmp_path, "shard")  # It is no file of PyTorch's.
    (tmp_path / "pytorch_model.bin").write_bytes(b"neither")
    message_of(tmp_path, "pytorch_model.bin:")
    write_index(tmp_path, {"a": "shard"})
    check_holds(open_tensors(tmp_path), arrays)
    arrays = arrays_of({"b": (4,)}, np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    check_holds(open_tensors(tmp_path), arrays)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    message_of(tmp_path, "model.safetensors:", "cannot be read")


def test_links_are_followed(tmp_path, sharded):
    directory, arrays = sharded
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in directory.glob("*.*"):
        (linked / file.name).symlink_to(os.path.join("..", file.name))
    check_holds(open_tensors(linked), arrays)


def test_directory_without_tensors(tmp_path):
    looked_for = ["model.safetensors", "pytorch_model.bin", "index.json"]
    message_of(tmp_path, "has no tensors", *looked_for)
    message_of(tmp_path / "absent", "has no tensors", *looked_for)


def test_damaged_safetensors(tmp_path):
    file = tmp_path / "model.safetensors"
    write(tmp_path, arrays_of({"a": (4,), "b": (2, 2)}, np.float32))
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    overlap = whole.replace(b'"data_offsets":[16,32]', b'"data_offsets":[12,28]')
    assert overlap != whole
    for content in (
        b"",
        whole[:5],
        whole[: length // 2],
        whole[:-1],
        whole + b"\0",
        (2**62).to_bytes(8, "little") + whole[8:],
        whole[:8] + b"[" + whole[9:],
        whole[:8] + b"\n" * length,
        whole.replace(b'"F32"', b'"F31"'),
        whole.replace(b"[2,2]", b"[2,3]"),
        overlap,
    ):
        file.write_bytes(content)
        message_of(tmp_path, f"{file}: not a safetensors file, or damaged: ")
    file.unlink()
    file.mkdir()
    message_of(tmp_path, "model.safetensors: ")


def test_unsupported_dtypes_are_named(tmp_path):
    header = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    encoded = json.dumps(header).encode()
    content = len(encoded).to_bytes(8, "little") + encoded + b"\0\0"
    (tmp_path / "model.safetensors").write_bytes(content)
    message_of(tmp_path, "model.safetensors: the tensor 'w' is F8_E4M3, which is not supported")


def test_file_cut_short_after_it_was_opened(tmp_path):
    write(tmp_path, arrays_of({"a": (4,)}, np.float32))
    files = open_tensors(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 80)
    with pytest.raises(ValueError, match=r"model\.safetensors: was cut short"):
        files.read("a")


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"weight_map": 1}', '"\udc80"'])
def test_index_that_is_none(tmp_path, content):
    name = "model.safetensors.index.json"
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    message_of(tmp_path, f"{name}: not an index")


def test_index_that_names_files_wrongly(tmp_path, sharded):
    directory, _ = sharded
    index = f"{directory / 'model.safetensors.index.json'}: "
    write_index(directory, {})
    message_of(directory, f"{index}its weight_map names no tensors")
    write_index(directory, {"a": 3})
    message_of(directory, f"{index}not an index")
    write_index(directory, {"a": "model-00009.safetensors"})
    message_of(directory, f"{index}names the file 'model-00009.safetensors', which is missing")
    outside = directory / "outside.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(4, np.float32)}, outside)
    inside = directory / "inside"
    inside.mkdir()
    for name in ("../outside.safetensors", "x/../../outside.safetensors", str(outside)):
        write_index(inside, {"a": name})
        message_of(inside, "model.safetensors.index.json: names the file", name, "outside of its")


def test_index_that_contradicts_its_shards(sharded):
    directory, _ = sharded
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_bytes())["weight_map"]
    second = weight_map["b"]
    write_index(directory, weight_map | {"x": second})
    message_of(directory, f"{second}: lacks the tensor 'x', which the index places there")
    write_index(directory, weight_map | {"b": weight_map["a"]})
    message_of(directory, f"{weight_map['a']}: lacks the tensor 'b'")
    arrays = {name: np.zeros((2, 2), np.float32) for name in ("a", "b")}
    safetensors.numpy.save_file(arrays, directory / second)
    write_index(directory, weight_map)
    message_of(directory, f"{second}: holds the tensor 'a', which the index does not place there")
    (directory / second).unlink()
    message_of(directory, f"{index}: names the file {second!r}, which is missing")


def test_reads_that_return_less_than_asked_go_on(tmp_path, monkeypatch):
    # As the system's do, beyond 2 GiB.
    class Reluctant(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    arrays = arrays_of({"a": (50,), "b": (30, 2)}, np.float32)
    write(tmp_path, arrays)
    files = open_tensors(tmp_path)
    name = "starcoder_jax.hf.tensors.open"
    monkeypatch.setattr(name, lambda path, mode, buffering: Reluctant(path), raising=False)
    check_holds(files, arrays)


def test_threads_read_at_once(tmp_path):
    arrays = arrays_of({f"w{i}": (200 + i, 100) for i in range(40)}, np.float32)
    write(tmp_path, arrays, max_shard_bytes=10**6)
    files, start, failed = open_tensors(tmp_path), threading.Barrier(8), []

    def work(seed):
        start.wait()
        for name in np.random.default_rng(seed).permutation(list(arrays)):
            if files.read(name).tobytes() != arrays[name].tobytes():
                failed.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_torch_files_without_torch(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "torch", None)
    message_of(tmp_path, "pytorch_model.bin: ", "starcoder_jax[parity]", "safetensors")


def test_neither_jax_nor_torch_is_imported():
    code = (
        "import sys, starcoder_jax.hf.tensors, starcoder_jax.hf.tokenizer_files;"
        "print([name for name in ('jax', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
