"""Shared by all tests: eight simulated devices, one compilation cache."""

import os
import pathlib

import micro
import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Before JAX is imported: child processes inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Half the compilation time. Speed is not tested, and what is compared is compiled alike.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


# Not in the repository, whose tests must pass without it: other people's data, as published.
PUBLISHED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory) -> pathlib.Path:
    return micro.folder(tmp_path_factory)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    return micro.trained(tmp_path_factory)


@pytest.fixture(scope="session")
def published_vocabulary():
    """The folder of a published vocabulary, by name."""

    def folder(name: str) -> pathlib.Path:
        path = PUBLISHED / "tokenizers" / name
        if not path.is_dir():
            # Its licence is its owners': no copy is committed, and our own fixtures stand beside.
            pytest.skip(f"the published vocabulary {name} is not on this machine")
        return path

    return folder


@pytest.fixture
def libtpu(monkeypatch):
    """Lets a test compile for TPUs, which takes their compiler, but no TPU."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (the extra tpu)")
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(variable, "1")


def pytest_collection_modifyitems(items):
    """`pytest -m libtpu` runs what the extra adds."""
    for item in items:
        if "libtpu" in item.fixturenames:
            item.add_marker("libtpu")
