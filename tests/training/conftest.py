"""The token store of the micro run, shared by many tests."""

import pytest

from starcoder_jax.data.store import TokenStore


@pytest.fixture(scope="session")
def store(micro_folder) -> TokenStore:
    return TokenStore(micro_folder / "data")
