"""The micro recipe's data, and the model trained on it."""

import pathlib

import micro
import pytest


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory) -> pathlib.Path:
    return micro.folder(tmp_path_factory)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    return micro.trained(tmp_path_factory)
