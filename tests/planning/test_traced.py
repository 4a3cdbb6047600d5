import jax
import jax.numpy as jnp

from starcoder_jax.planning.traced import traced_flops


def count(f, *shapes):
    return traced_flops(jax.jit(f).trace(*(jnp.zeros(s) for s in shapes)).jaxpr.jaxpr)


def test_products_in_loops_and_branches():
    def body(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w), None

    assert count(lambda x, w: jax.lax.scan(body, x, w)[0], (2, 8), (5, 8, 8)) == 5 * 2 * 256


def test_recomputation_counts():
    def loss(w, x):
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ w))(x))

    one = 2 * 4 * 8 * 16
    # Forward, the same again, and the gradient of w.
    assert count(jax.grad(loss), (8, 16), (4, 8)) == 3 * one


def test_a_device_of_a_manual_program_does_its_share():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    f = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(jax.P("x"), jax.P()), out_specs=jax.P("x")
    )
    with jax.set_mesh(mesh):
        x = jnp.zeros((8, 16), out_sharding=jax.P("x", None))
        jaxpr = jax.jit(f).trace(x, jnp.zeros((16, 32))).jaxpr.jaxpr
    assert traced_flops(jaxpr) == 2 * 8 * 16 * 32
