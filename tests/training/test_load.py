import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import starcoder_jax as sj


@pytest.fixture(scope="module")
def loaded(trained):
    return sj.load_model(trained)


def test_load_model(trained, loaded):
    model = sj.load_model(trained / "checkpoints" / "35", dtype="bfloat16")[0]
    assert model.config.dtype == "bfloat16"
    leaves, others = (jax.tree.leaves(nnx.state(m)) for m in (model, loaded[0]))
    for x, other in zip(leaves, others, strict=True):
        assert x.dtype == jnp.bfloat16 and other.dtype == np.float32 and x.shape == other.shape
        assert x.sharding.device_set == {jax.devices()[0]}
    assert not np.array_equal(model.embedding[...], loaded[0].embedding[...])
    with pytest.raises(ValueError, match="no checkpoint"):
        sj.load_model(trained.parent)
