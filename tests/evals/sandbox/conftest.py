import pytest

from starcoder_jax.evals.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox():
    """Two workers behind the walls that are built here, by the layer that needs no program."""
    try:
        sandbox = Sandbox(workers=2, isolation="namespaces")
    except ValueError as error:
        # Without user namespaces there are no walls to test; that this is refused is tested.
        pytest.skip(str(error))
    with sandbox:
        yield sandbox
