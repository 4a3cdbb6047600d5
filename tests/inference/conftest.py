"""The trained micro model."""

import pathlib

import micro
import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    return micro.trained(tmp_path_factory)
