import pickle
import zipfile

import numpy as np
import pytest

from hf.tensor_files import FLOATS, arrays_of, check_holds, message_of, write_index
from starcoder_jax.hf.tensors import TorchFiles, open_tensors

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("legacy", [False, True])
def test_weights(tmp_path, legacy):
    arrays, content = {}, {}
    for dtype in [*FLOATS, np.int64, np.uint8, np.bool_]:
        name = np.dtype(dtype).name
        for shape in ((3, 5), (), (0,)):
            values = np.arange(np.prod(shape)).reshape(shape)
            arrays[f"{name}{len(shape)}"] = values.astype(dtype)
            content[f"{name}{len(shape)}"] = torch.tensor(values).to(getattr(torch, name))
    content["shared"] = content["float322"]
    content["transposed"] = content["bfloat162"].T
    content["parameter"] = torch.nn.Parameter(content["float162"])
    arrays["shared"] = arrays["float322"]
    arrays["transposed"] = arrays["bfloat162"].T
    arrays["parameter"] = arrays["float162"]
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert zipfile.is_zipfile(path) != legacy
    files = open_tensors(tmp_path)
    assert isinstance(files, TorchFiles)
    check_holds(files, arrays)
    with pytest.raises(KeyError):
        files.read("absent")


def test_shards(tmp_path):
    arrays = arrays_of({"a": (4,), "b": (2, 2), "c": ()}, np.float32)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    places = {"a": "one.bin", "b": "two.bin", "c": "one.bin"}
    for file in ("one.bin", "two.bin"):
        content = {name: tensors[name] for name in places if places[name] == file}
        torch.save(content, tmp_path / file)
    index = "pytorch_model.bin.index.json"
    write_index(tmp_path, places, index)
    check_holds(open_tensors(tmp_path), arrays)
    write_index(tmp_path, places | {"d": "two.bin"}, index)
    message_of(tmp_path, "two.bin: lacks the tensor 'd'")
    write_index(tmp_path, {"a": "one.bin"}, index)
    message_of(tmp_path, "one.bin: holds the tensor 'c'")
    write_index(tmp_path, {"a": "../one.bin"}, index)
    message_of(tmp_path, index, "outside of its directory")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_not_run(tmp_path, legacy):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return open, (str(trace), "w")

    content = {"a": torch.zeros(2), "b": Malicious()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message_of(tmp_path, "pytorch_model.bin: holds more than tensors, or is damaged")
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    message_of(tmp_path, "pytorch_model.bin: ")
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # It would have been made.


def test_other_content_is_refused_by_name(tmp_path):
    path, zeros = tmp_path / "pytorch_model.bin", torch.zeros(2)
    for content, message in (
        ([zeros], "holds a list, not tensors by name"),
        (zeros, "holds a Tensor, not tensors by name"),
        ({"model": {"w": zeros}, "step": 3}, "'model' is a dict, not a tensor"),
        ({"w": zeros, "step": 3}, "'step' is a int, not a tensor"),
        ({"w": torch.eye(2).to_sparse()}, "the tensor 'w' is not dense"),
        ({"w": torch.zeros(2, device="meta")}, "the tensor 'w' is not dense"),
        ({"w": zeros.to(torch.complex64)}, "the tensor 'w' is torch.complex64"),
        ({"w": zeros.to(torch.float8_e5m2)}, "the tensor 'w' is torch.float8_e5m2"),
    ):
        torch.save(content, path)
        message_of(tmp_path, f"pytorch_model.bin: {message}")


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files(tmp_path, legacy):
    path = tmp_path / "pytorch_model.bin"
    content = {"a": torch.zeros(1000), "b": torch.ones(3)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for kept in (0, 1, 20, len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        message_of(tmp_path, "pytorch_model.bin: ")
    for content in (b"not a checkpoint", b"\n\n", b"PK\x03\x04" + b"\0" * 100):
        path.write_bytes(content)
        message_of(tmp_path, "pytorch_model.bin: ")
