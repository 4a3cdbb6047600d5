import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.model.spec import unsharded
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import ShardingRules
from starcoder_jax.training.loss import LossConfig, cross_entropy, token_cross_entropy

VOCAB, EMBED = 48, 16


def make_inputs(batch, length, dtype=jnp.float32, seed=0):
    """Hidden states, head, targets, and weights of which some are zero."""
    rng = np.random.default_rng(seed)
    hidden = jnp.array(rng.normal(size=(batch, length, EMBED)), dtype)
    head = jnp.array(rng.normal(size=(VOCAB, EMBED)), jnp.float32)
    targets = jnp.array(rng.integers(0, VOCAB, (batch, length)), jnp.int32)
    weights = jnp.array(rng.choice([0.0, 0.5, 1.0, 3.0], (batch, length)), jnp.float32)
    return hidden, head, targets, weights


def definition(hidden, head, targets, weights, z_loss):
    """Loss, its gradients by hidden and head, and each token's cross-entropy, all float64."""
    hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
    logits = hidden @ head.T
    normalizer = np.log(np.exp(logits).sum(-1, keepdims=True))
    one_hot = np.eye(VOCAB)[np.asarray(targets)]
    losses = (normalizer - (logits * one_hot).sum(-1, keepdims=True))[..., 0]
    loss = (weights * (losses + z_loss * normalizer[..., 0] ** 2)).sum()
    probabilities = np.exp(logits - normalizer)
    logit_gradient = probabilities * (1 + 2 * z_loss * normalizer) - one_hot
    logit_gradient *= weights[..., None]
    head_gradient = np.einsum("btv,btd->vd", logit_gradient, hidden)
    return (loss, logit_gradient @ head, head_gradient), losses


@functools.partial(jax.jit, static_argnums=(4, 5))
def loss_and_gradients(hidden, head, targets, weights, config, spec=unsharded):
    def loss(hidden, head):
        return cross_entropy(hidden, head, targets, weights, config, spec)

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, head)
    return value, *gradients


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        assert np.abs(a - e).max() < tolerance * np.abs(e).max()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize(
    ("length", "chunk_tokens"),
    [(24, 1000), (24, 16), (24, 1), (35, 16), (31, 8), (1, 512)],
)
def test_loss_and_gradients_are_the_definition(length, chunk_tokens, z_loss):
    inputs = make_inputs(3, length)
    config = LossConfig(z_loss=z_loss, chunk_tokens=chunk_tokens)
    expected, losses = definition(*inputs, z_loss)
    assert_close(loss_and_gradients(*inputs, config), expected, 1e-5)
    tokens = jax.jit(token_cross_entropy, static_argnums=3)(*inputs[:3], config)
    assert tokens.dtype == jnp.float32
    assert_close([tokens], [losses], 1e-5)


def test_the_value_alone_is_that_of_the_gradient():
    inputs, config = make_inputs(3, 24), LossConfig(z_loss=0.01, chunk_tokens=16)
    value = cross_entropy(*inputs, config)
    assert float(value) == pytest.approx(float(loss_and_gradients(*inputs, config)[0]), rel=1e-6)


def test_gradients_follow_what_is_made_of_the_loss():
    hidden, head, targets, weights = make_inputs(2, 8)

    def loss(hidden):
        return 5 * cross_entropy(hidden, head, targets, weights, LossConfig())

    expected = loss_and_gradients(hidden, head, targets, weights, LossConfig())[1]
    assert_close([jax.grad(loss)(hidden)], [5 * expected], 1e-6)


def test_a_token_of_weight_zero_leaves_no_trace():
    hidden, head, targets, weights = make_inputs(2, 8)
    weights = weights.at[0, 3].set(0.0)
    loss, hidden_gradient, head_gradient = loss_and_gradients(
        hidden, head, targets, weights, LossConfig(z_loss=0.1)
    )
    np.testing.assert_array_equal(hidden_gradient[0, 3], 0)
    other = loss_and_gradients(
        hidden.at[0, 3].set(9.0), head, targets.at[0, 3].set(0), weights, LossConfig(z_loss=0.1)
    )
    assert_close(other, (loss, hidden_gradient, head_gradient), 1e-6)


@pytest.mark.parametrize("chunk_tokens", [16, 1000])  # several chunks, and one
def test_bfloat16_loses_little(chunk_tokens):
    inputs = make_inputs(2, 24, jnp.bfloat16)
    config = LossConfig(z_loss=1e-4, chunk_tokens=chunk_tokens)
    loss, hidden_gradient, head_gradient = loss_and_gradients(*inputs, config)
    assert (loss.dtype, hidden_gradient.dtype, head_gradient.dtype) == (
        jnp.float32,
        jnp.bfloat16,
        jnp.float32,
    )
    # The head is rounded as the product rounds it; what is left is the rounding of gradients.
    hidden, head, *rest = inputs
    expected, losses = definition(hidden, head.astype(jnp.bfloat16), *rest, 1e-4)
    assert_close([loss], expected[:1], 1e-5)
    assert_close([hidden_gradient, head_gradient], expected[1:], 0.01)
    assert_close([token_cross_entropy(*inputs[:3], config)], [losses], 1e-5)


def test_large_logits_do_not_overflow():
    hidden, head, targets, weights = make_inputs(2, 8)
    loss, *gradients = loss_and_gradients(1000 * hidden, head, targets, weights, LossConfig())
    assert float(loss) > 1000
    assert all(jnp.isfinite(x).all() for x in gradients)


def test_the_logits_of_a_batch_never_exist_whole():
    """No intermediate value of the gradient is as large as a quarter of all logits."""
    inputs = make_inputs(2, 1024)
    config = LossConfig(chunk_tokens=128)
    program = jax.make_jaxpr(lambda *x: loss_and_gradients(*x, config))(*inputs)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    assert 128 * VOCAB <= max(sizes(program.jaxpr)) < 2 * 1024 * VOCAB / 2


@pytest.mark.parametrize(
    "mesh_config",
    [MeshConfig(), MeshConfig(tensor=8), MeshConfig(fsdp=2, sequence=2, tensor=2)],
    ids=["fsdp", "tensor", "all"],
)
def test_a_mesh_changes_no_value(mesh_config):
    inputs = make_inputs(8, 24)
    config = LossConfig(z_loss=0.01, chunk_tokens=4)
    expected = (*loss_and_gradients(*inputs, config), token_cross_entropy(*inputs[:3], config))
    rules = ShardingRules()
    specs = [
        rules("batch", "length", None),
        rules("vocab", "embed"),
        *[rules("batch", "length")] * 2,
    ]
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        split = [
            jax.device_put(x, jax.NamedSharding(mesh, s))
            for x, s in zip(inputs, specs, strict=True)
        ]
        loss, *gradients = loss_and_gradients(*split, config, rules)
        tokens = jax.jit(token_cross_entropy, static_argnums=(3, 4))(*split[:3], config, rules)
    for gradient, array in zip(gradients, split, strict=False):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    assert_close((loss, *gradients, tokens), expected, 1e-5)


@pytest.mark.parametrize("changes", [{"z_loss": -1.0}, {"chunk_tokens": 0}])
def test_a_bad_value_is_named(changes):
    with pytest.raises(
        ValueError, match=f"loss.{next(iter(changes))}={next(iter(changes.values()))}"
    ):
        LossConfig(**changes)
