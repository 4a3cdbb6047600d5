import pytest
from stand_ins import Launcher, make_checkout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout") / "starcoder")


@pytest.fixture
def launcher(tmp_path, checkout):
    return Launcher(tmp_path, checkout)
