"""What FSDP sends: parameters gathered for products, gradients summed up and scattered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.model.spec import gathered, token_axes, unsharded
from starcoder_jax.parallel.sharding import ShardingRules

# With the outer part of fsdp that a mesh on a three-dimensional torus has.
NAMES = ("replica", "fsdp_far", "fsdp", "sequence", "tensor")
FSDP = ("fsdp_far", "fsdp")
RULES = ShardingRules(batch=("replica", *FSDP), embed=FSDP)


def test_token_axes():
    assert token_axes(RULES) == ("replica", "fsdp_far", "fsdp", "sequence")
    assert token_axes(unsharded) == ()


@pytest.mark.parametrize(
    ("sizes", "axes"),
    [
        ((1, 2, 2, 1, 2), ("embed", "mlp")),
        ((1, 2, 2, 1, 2), ("mlp", "embed")),
        ((2, 2, 2, 1, 1), ("mlp", "embed")),
        ((1, 2, 2, 2, 1), ("embed", "mlp")),
        ((1, 1, 1, 1, 1), ("embed", "mlp")),
    ],
)
def test_the_gradient_is_the_sum_over_all_tokens(sizes, axes):
    """Of a product whose weight is split, as on one device, and split as the weight."""
    equation = "btd,df->btf" if axes[0] == "embed" else "btd,fd->btf"
    x = jax.random.normal(jax.random.key(0), (8, 4, 16))
    w = jax.random.normal(jax.random.key(1), (16, 32) if axes[0] == "embed" else (32, 16))
    expected = jax.grad(lambda w: jnp.sum(jnp.einsum(equation, x, w) ** 3))(w)
    types = (jax.sharding.AxisType.Explicit,) * len(NAMES)
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, NAMES, axis_types=types, devices=devices)
    with jax.set_mesh(mesh):

        def loss(w, x):
            y = jnp.einsum(
                equation, x, gathered(w, axes, RULES), out_sharding=RULES("batch", "length", "mlp")
            )
            return jnp.sum(y**3)

        split_x, split_w = (
            jax.device_put(array, jax.NamedSharding(mesh, spec))
            for array, spec in ((x, RULES("batch", "length", None)), (w, RULES(*axes)))
        )
        gradient = jax.jit(jax.grad(loss))(split_w, split_x)
    assert gradient.sharding.spec == RULES(*axes)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)
