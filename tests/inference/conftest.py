"""What the trained micro model most likely says."""

import jax.numpy as jnp
import numpy as np
import pytest

import starcoder_jax as sj

NEW = 8


@pytest.fixture(scope="session")
def loaded(trained):
    return sj.load_model(trained)


@pytest.fixture(scope="session")
def prompt(loaded) -> np.ndarray:
    return loaded[1].encode("def read_line(line, limit=3):\n    for")


@pytest.fixture(scope="session")
def greedy(loaded, prompt) -> list[int]:
    """The most likely continuation, by whole logits of the sequence alone."""
    sequence = list(prompt)
    for _ in range(NEW):
        logits = loaded[0](jnp.array([sequence], jnp.int32))
        sequence.append(int(jnp.argmax(logits[0, -1])))
    return sequence[len(prompt) :]
