"""The micro run, shared by the tests of checkpoints, evaluation, the loop and resuming."""

import pathlib

import micro
import pytest

from starcoder_jax.data.store import TokenStore


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory) -> pathlib.Path:
    return micro.folder(tmp_path_factory)


@pytest.fixture(scope="session")
def store(micro_folder) -> TokenStore:
    return TokenStore(micro_folder / "data")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    return micro.trained(tmp_path_factory)
