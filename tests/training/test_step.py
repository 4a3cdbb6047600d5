import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import sharding_rules
from starcoder_jax.training.loss import LossConfig
from starcoder_jax.training.optimizer import OptimizerConfig, make_optimizer
from starcoder_jax.training.step import (
    document_segments,
    graph_definition,
    initial_state,
    make_train_step,
)

CONFIG = DecoderConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_heads=8,
    num_kv_heads=2,
    mlp_dim=64,
    max_length=32,
    sliding_window=12,
    dtype="float32",
)
MULTI_QUERY = dataclasses.replace(CONFIG, num_kv_heads=1)
DROPPING = dataclasses.replace(
    CONFIG, embedding_dropout=0.1, attention_dropout=0.2, residual_dropout=0.3
)
LOSS = LossConfig(z_loss=1e-3, chunk_tokens=32)
BATCH, LENGTH = 8, 32
# Little is computed here and much compiled: half of that time is LLVM's optimization.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# A large epsilon: else Adam makes whole updates of the rounding errors of vanishing gradients.
OPTIMIZER = make_optimizer(OptimizerConfig(1e-2, 1e-3, 2, epsilon=1e-3), 20)


def make_batch(seed=0, batch=BATCH, length=LENGTH):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, CONFIG.vocab_size, (batch, length + 1)).astype(np.int32)
    weights = rng.choice([0.0, 0.5, 1.0, 4.0], (batch, length)).astype(np.float32)
    return tokens, weights


@functools.cache
def compiled_step(config, **options):
    return jit(make_train_step(config, OPTIMIZER, LOSS, **options))


@functools.cache
def fresh_state(config):
    return jit(lambda: initial_state(config, OPTIMIZER, 0))()


def assert_same_params(actual, expected, tolerance):
    leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(leaves[0]) > 15
    for a, e in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, e, atol=tolerance)


def test_the_first_step_is_the_definition():
    tokens, weights = make_batch()
    before = fresh_state(CONFIG)
    after, metrics = compiled_step(CONFIG)(before, tokens, weights)
    graph = graph_definition(CONFIG)

    @jit
    @jax.value_and_grad
    def definition(params):
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        losses += LOSS.z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
        return jnp.sum(losses * weights) / weights.sum()

    loss, gradients = definition(before.params)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(np.log(CONFIG.vocab_size), abs=1)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-5)
    assert float(metrics["tokens"]) == weights.sum()
    updates, _ = jit(OPTIMIZER.update)(gradients, before.optimizer_state, before.params)
    assert_same_params(after.params, optax.apply_updates(before.params, updates), 1e-6)
    assert (int(before.step), int(after.step), int(after.first_bad_step)) == (0, 1, -1)


def test_steps_learn_a_batch_by_heart():
    tokens, weights = make_batch()
    state, losses = fresh_state(CONFIG), []
    for _ in range(15):
        state, metrics = compiled_step(CONFIG)(state, tokens, weights)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 15
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("micro_batches", [2, 4, BATCH])
def test_micro_batches_change_nothing(micro_batches):
    """Weights differ from part to part: the mean is over all tokens, not over parts."""
    tokens, weights = make_batch()
    weights[::2] *= 3
    whole = compiled_step(CONFIG)(fresh_state(CONFIG), tokens, weights)
    step = compiled_step(CONFIG, micro_batches=micro_batches)
    parts = step(fresh_state(CONFIG), tokens, weights)
    for name, value in whole[1].items():
        assert float(parts[1][name]) == pytest.approx(float(value), rel=1e-6), name
    assert_same_params(parts[0].params, whole[0].params, 1e-6)


def three_steps(config, state, put=lambda rows: rows, **options):
    """Losses and gradient norms."""
    step = compiled_step(config, **options)
    values = []
    for number in range(3):
        state, metrics = step(state, *(put(rows) for rows in make_batch(number)))
        values.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    assert int(state.first_bad_step) == -1
    return np.array(values)


def three_steps_on_mesh(config, mesh, **options):
    state = fresh_state(config)
    with jax.set_mesh(mesh):
        rules = sharding_rules(config, mesh)
        target = jax.eval_shape(lambda: initial_state(config, OPTIMIZER, 0, rules))

        def put(x, like):
            spec = like.sharding.spec if like.ndim else jax.P()
            return jax.device_put(x, jax.NamedSharding(mesh, spec))

        def put_rows(rows):
            return jax.device_put(rows, jax.NamedSharding(mesh, rules("batch", None)))

        state = jax.tree.map(put, state, target)
        return three_steps(config, state, put_rows, spec=rules, **options)


@functools.cache
def values_without_mesh(config, micro_batches):
    options = {"micro_batches": micro_batches, "segment_token": 1}
    return three_steps(config, fresh_state(config), **options)


MESHES = {
    "1x1": MeshConfig(fsdp=1),
    "fsdp 8": MeshConfig(fsdp=8),
    "4x2": MeshConfig(fsdp=4, tensor=2),
    "2x2x2 with sequence": MeshConfig(fsdp=2, sequence=2, tensor=2),
    "replica 2, fsdp 4": MeshConfig(replica=2, fsdp=4),
}


@pytest.mark.parametrize(
    ("config", "mesh_config", "micro_batches"),
    [
        *(pytest.param(CONFIG, mesh, 1, id=f"{name}, grouped") for name, mesh in MESHES.items()),
        *(
            pytest.param(MULTI_QUERY, mesh, 1, id=f"{name}, multi-query")
            for name, mesh in MESHES.items()
        ),
        pytest.param(MULTI_QUERY, MeshConfig(fsdp=1, tensor=8), 1, id="tensor 8, multi-query"),
        pytest.param(CONFIG, MESHES["1x1"], BATCH, id="1x1, micro-batches of one row"),
        pytest.param(DROPPING, MESHES["4x2"], 2, id="4x2, micro-batches, dropout"),
        pytest.param(
            CONFIG, MeshConfig(replica=2, fsdp=2, sequence=2), 2, id="replicas, micro-batches"
        ),
    ],
)
def test_a_mesh_changes_no_value(config, mesh_config, micro_batches):
    num_devices = math.prod(dataclasses.astuple(mesh_config))
    mesh = make_mesh(mesh_config, jax.devices()[:num_devices])
    values = three_steps_on_mesh(config, mesh, micro_batches=micro_batches, segment_token=1)
    assert len(set(values[:, 0])) == 3
    expected = values_without_mesh(config, micro_batches if config is DROPPING else 1)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def with_embedding(state, change):
    return dataclasses.replace(
        state, params=state.params | {"embedding": change(state.params["embedding"])}
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_bad_step_is_kept(value):
    tokens, weights = make_batch()
    step = compiled_step(CONFIG)
    good, _ = step(fresh_state(CONFIG), tokens, weights)
    broken = with_embedding(good, lambda embedding: embedding.at[tokens[0, 0], 0].set(value))
    bad, _ = step(broken, tokens, weights)
    assert (int(bad.step), int(bad.first_bad_step)) == (2, 2)
    again, _ = step(bad, tokens, weights)
    assert int(again.first_bad_step) == 2
    # Not forgotten either once everything is finite again.
    healed = dataclasses.replace(good, step=again.step, first_bad_step=again.first_bad_step)
    healed, metrics = step(healed, tokens, weights)
    assert np.isfinite(float(metrics["loss"]))
    assert (int(healed.step), int(healed.first_bad_step)) == (4, 2)


def test_a_gradient_that_overflows_alone_is_bad():
    """Its squares do, while the loss is still far from it."""
    state = with_embedding(fresh_state(CONFIG), lambda embedding: 1e18 * embedding)
    state, metrics = compiled_step(CONFIG)(state, *make_batch())
    assert np.isfinite(float(metrics["loss"]))
    assert not np.isfinite(float(metrics["grad_norm"]))
    assert int(state.first_bad_step) == 1


def test_a_batch_without_weights_is_bad():
    tokens, weights = make_batch()
    state, _ = compiled_step(CONFIG)(fresh_state(CONFIG), tokens, 0 * weights)
    assert int(state.first_bad_step) == 1


def test_segments_are_documents_with_their_end():
    tokens = jnp.array([[5, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 6]])
    segments = document_segments(tokens, 0)
    np.testing.assert_array_equal(segments, [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]])


def test_a_document_can_be_isolated_from_what_precedes_it():
    document = np.arange(2, 14)
    rng = np.random.default_rng(0)

    def window(start):
        """The document at some position among others, with weight on its targets alone."""
        tokens = rng.integers(14, CONFIG.vocab_size, LENGTH + 1)
        tokens[start : start + 12] = document
        tokens[start + 12] = 0
        if start:
            tokens[start - 1] = 0
        weights = np.zeros(LENGTH)
        weights[start : start + 12] = 1
        return tokens, weights

    def metrics(starts, **options):
        rows = zip(*(window(start) for start in starts), strict=True)
        tokens, weights = (np.array(row) for row in rows)
        step = compiled_step(CONFIG, **options)
        _, found = step(fresh_state(CONFIG), tokens.astype(np.int32), weights.astype(np.float32))
        return np.array([float(found["loss"]), float(found["grad_norm"])])

    first = metrics([0] * BATCH, segment_token=0)
    np.testing.assert_allclose(metrics([9] * BATCH, segment_token=0), first, rtol=1e-5)
    np.testing.assert_allclose(metrics(range(8), segment_token=0), first, rtol=1e-5)
    assert np.abs(metrics([9] * BATCH) - first).max() > 1e-3


def test_dropout_is_a_function_of_seed_and_step():
    tokens, weights = make_batch()
    state = fresh_state(DROPPING)

    def loss(step_number, seed):
        at = dataclasses.replace(state, step=jnp.array(step_number, jnp.int32))
        return float(compiled_step(DROPPING, seed=seed)(at, tokens, weights)[1]["loss"])

    assert loss(5, 0) == loss(5, 0)
    losses = {loss(5, 0), loss(6, 0), loss(5, 1)}
    assert len(losses) == 3
    plain = float(compiled_step(CONFIG)(state, tokens, weights)[1]["loss"])
    assert plain not in losses


def test_each_micro_batch_draws_its_own_dropout():
    """Rows of two parts, equal but for the part: their losses differ by dropout alone."""
    tokens, _ = make_batch(batch=1)
    tokens = np.repeat(tokens, 2, axis=0)

    def loss(config, row):
        weights = np.zeros((2, LENGTH), np.float32)
        weights[row] = 1
        step = compiled_step(config, micro_batches=2)
        return float(step(fresh_state(config), tokens, weights)[1]["loss"])

    assert loss(DROPPING, 0) != loss(DROPPING, 1)
    assert loss(CONFIG, 0) == pytest.approx(loss(CONFIG, 1), rel=1e-6)


def test_bfloat16_keeps_parameters_and_moments_in_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens, weights = make_batch()
    state, metrics = compiled_step(config)(fresh_state(config), tokens, weights)
    exact = compiled_step(CONFIG)(fresh_state(CONFIG), tokens, weights)[1]
    for name in ("loss", "grad_norm"):
        assert metrics[name].dtype == jnp.float32
        assert float(metrics[name]) == pytest.approx(float(exact[name]), rel=0.02)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert dtypes == {"float32", "int32"}
