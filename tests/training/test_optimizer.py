import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


def rates(config, total_steps, count):
    schedule = learning_rate(config, total_steps)
    return [float(schedule(step)) for step in range(count)]


def test_warmup_is_linear_and_the_cosine_ends_at_the_floor():
    peak, floor, warmup, total = 4e-4, 4e-5, 4, 20
    steps = np.arange(total)
    progress = (steps - (warmup - 1)) / (total - warmup)  # 0 at the peak, 1 at the last step
    cosine = floor + (peak - floor) * (1 + np.cos(np.pi * progress)) / 2
    expected = np.where(steps < warmup, peak * (steps + 1) / warmup, cosine)
    found = rates(OptimizerConfig(peak, floor, warmup), total, total + 5)
    np.testing.assert_allclose(found[:total], expected, rtol=1e-5)
    np.testing.assert_allclose(found[warmup - 1], peak, rtol=1e-6)
    np.testing.assert_allclose(found[total - 1 :], floor, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "total_steps", "expected"),
    [
        (OptimizerConfig(1.0, 0.0, 0), 3, [1.0, 0.5, 0.0]),
        (OptimizerConfig(1.0, 0.0, 1), 3, [1.0, 0.5, 0.0]),
        (OptimizerConfig(1.0, 0.1, 2), 2, [0.5, 1.0]),
        (OptimizerConfig(1.0, 0.1, 0), 1, [1.0]),
        (OptimizerConfig(1.0, 1.0, 0), 4, [1.0] * 4),
        (OptimizerConfig(0.0, 0.0, 1), 3, [0.0] * 3),
    ],
)
def test_schedules_at_their_ends(config, total_steps, expected):
    np.testing.assert_allclose(rates(config, total_steps, len(expected)), expected, atol=1e-6)


def test_a_warmup_longer_than_the_run_is_named():
    with pytest.raises(ValueError, match=r"warmup_steps=11 .*total_steps=10"):
        learning_rate(OptimizerConfig(1.0, 0.1, 11), 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((1e-4, 1e-3, 0), "final_learning_rate=0.001 .*peak_learning_rate=0.0001"),
        ((1e-3, -1e-4, 0), "final_learning_rate=-0.0001"),
        ((1e-3, 1e-4, -1), "warmup_steps=-1"),
        ((1e-3, 1e-4, 0, 0.9, 0.95, 1e-8, 0.1, 0.0), "clip_norm=0.0"),
    ],
)
def test_a_bad_field_is_named_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        OptimizerConfig(*fields)
    assert "\n" not in str(error.value)


def test_three_updates_by_hand():
    """Clipping, Adam with bias correction and decoupled decay (arXiv:1711.05101), in float64."""
    config = OptimizerConfig(0.01, 0.001, 2, b1=0.8, b2=0.9, epsilon=1e-3, weight_decay=0.2)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=(2, 3))}
    optimizer = make_optimizer(config, 10)
    ours = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    state = optimizer.init(ours)
    first = {name: 0.0 for name in params}
    second = {name: 0.0 for name in params}
    # Norms below the limit of 1, above it, and below it again.
    for step, (scale, rate) in enumerate(zip([0.1, 3.0, 0.05], rates(config, 10, 3), strict=True)):
        gradients = {name: scale * rng.normal(size=(2, 3)) for name in params}
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert (norm > config.clip_norm) == (scale > 1)
        for name in params:
            gradient = gradients[name] / max(norm, config.clip_norm)
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            adam = first[name] / (1 - 0.8 ** (step + 1))
            adam /= np.sqrt(second[name] / (1 - 0.9 ** (step + 1))) + 1e-3
            decay = 0.2 * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - rate * (adam + decay)
        gradients = jax.tree.map(lambda x: jnp.array(x, jnp.float32), gradients)
        updates, state = optimizer.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], rtol=1e-5)


def test_decay_is_of_matrices_only():
    """Of every parameter that a decoder can have; stacked biases and norms are no matrices."""
    config = DecoderConfig(
        vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=16,
        max_length=4, positions="learned", tied_head=False, embedding_norm=True,
    )  # fmt: skip
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    optimizer = make_optimizer(OptimizerConfig(0.5, 0.5, 0, weight_decay=0.1), 10)

    @jax.jit
    def update(params):
        gradients = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    updates = update(params)
    decayed = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = ".".join(part.key for part in path)
        if np.any(update):
            np.testing.assert_allclose(update, -0.5 * 0.1, rtol=1e-6)
            decayed.add(name)
        else:
            assert name.endswith(("bias", "scale")), name
    projections = ("query", "key", "value", "attention_output", "mlp_input", "mlp_output")
    assert decayed == {
        "embedding",
        "position_embedding",
        "untied_head",
        *(f"layers.{name}.kernel" for name in projections),
    }
