import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.model.attention import AttentionDropout, reference_attention, xla_attention
from starcoder_jax.model.mask import AttentionMask
from starcoder_jax.model.positions import alibi_slopes

# Key/value heads, and query heads that share each.
HEADS = {"multi-head": (4, 1), "grouped": (2, 2), "multi-query": (1, 4)}
HEAD_DIM = 8
BLOCK = 128  # the smallest block of queries that xla_attention takes


def make_inputs(length, kv_heads=2, groups=2, seed=0, dtype=jnp.float32):
    """Query, key, value and a gradient of the output, for two sequences."""
    rng = np.random.default_rng(seed)

    def draw(*heads):
        return jnp.array(rng.normal(size=(2, length, *heads, HEAD_DIM)), dtype)

    return draw(kv_heads, groups), draw(kv_heads), draw(kv_heads), draw(kv_heads, groups)


def make_segments(length):
    """Two packed sequences: three documents, and one."""
    position = np.arange(length)
    return jnp.array([(position > length // 5) * 1 + (position > length // 2), 0 * position])


def make_slopes(kv_heads, groups):
    return jnp.array(alibi_slopes(kv_heads * groups), jnp.float32).reshape(kv_heads, groups)


# Little is computed here and much compiled: half of that time is LLVM's optimization.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=0)
def output_and_gradients(attend, query, key, value, gradient, mask, slopes=None, dropout=None):
    def apply(*qkv):
        return attend(*qkv, mask, slopes=slopes, dropout=dropout)

    output, pull = jax.vjp(apply, query, key, value)
    return output, *pull(gradient)


def assert_close(actual, expected, tolerance=1e-5):
    """Every array to `tolerance` of its largest value."""
    for name, a, e in zip(("output", "query", "key", "value"), actual, expected, strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        assert np.abs(e).max() > 0.1, name
        error = np.abs(a - e).max() / np.abs(e).max()
        assert error < tolerance, f"{name}: {error}"


def loop_attention(query, key, value, *, window=None, segments=None, slopes=None):
    """The definition, in float64, one query of one head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output = np.zeros_like(query)
    for b, t, k, g in np.ndindex(query.shape[:4]):
        terms = {}
        for s in range(t + 1):
            if window is not None and s <= t - window:
                continue
            if segments is not None and segments[b, s] != segments[b, t]:
                continue
            score = query[b, t, k, g] @ key[b, s, k] / math.sqrt(query.shape[-1])
            if slopes is not None:
                score += float(slopes[k, g]) * (s - t)
            terms[s] = math.exp(score)
        for s, term in terms.items():
            output[b, t, k, g] += term / sum(terms.values()) * value[b, s, k]
    return output


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("window", "segmented", "alibi"),
    [
        (None, False, False),
        (5, False, False),
        (None, True, True),
        (1, True, False),
        (9, True, True),
    ],
)
def test_reference_is_the_definition(heads, window, segmented, alibi):
    query, key, value, _ = make_inputs(20, *HEADS[heads])
    segments = make_segments(20) if segmented else None
    slopes = make_slopes(*HEADS[heads]) if alibi else None
    attend = jit(reference_attention)
    output = attend(query, key, value, AttentionMask(window, segments), slopes=slopes)
    expected = loop_attention(query, key, value, window=window, segments=segments, slopes=slopes)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend", [reference_attention, xla_attention])
def test_a_query_sees_exactly_its_window(attend):
    """With equal scores and one-hot values, the output shows which keys were averaged."""
    length, window = 2 * BLOCK, 37
    query = jnp.zeros((1, length, 1, 1, HEAD_DIM))
    key = jnp.zeros((1, length, 1, HEAD_DIM))
    value = jnp.eye(length)[None, :, None, :]
    weights = np.asarray(jit(attend)(query, key, value, AttentionMask(window)))[0, :, 0, 0]
    for position in (0, 1, window - 1, window, BLOCK - 1, BLOCK, BLOCK + window, length - 1):
        first = max(0, position - window + 1)
        assert np.flatnonzero(weights[position]).tolist() == list(range(first, position + 1))
        np.testing.assert_allclose(
            weights[position, first : position + 1], 1 / (position + 1 - first), rtol=1e-5
        )


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("window", "segmented", "alibi"),
    list(itertools.product([None, 40], [False, True], [False, True])),
)
def test_blocked_attention_is_the_reference(heads, window, segmented, alibi):
    length = 2 * BLOCK
    mask = AttentionMask(window, make_segments(length) if segmented else None)
    arguments = (*make_inputs(length, *HEADS[heads]), mask)
    slopes = make_slopes(*HEADS[heads]) if alibi else None
    expected = output_and_gradients(reference_attention, *arguments, slopes)
    assert_close(output_and_gradients(xla_attention, *arguments, slopes), expected)


# One block, blocks of the smallest size, a length that does not divide, and larger blocks.
@pytest.mark.parametrize("length", [1, 7, BLOCK, 300, 3 * BLOCK, 8 * BLOCK + 8])
def test_blocked_attention_is_the_reference_at_every_length(length):
    mask = AttentionMask(150, make_segments(length))
    arguments = (*make_inputs(length), mask, make_slopes(2, 2))
    expected = output_and_gradients(reference_attention, *arguments)
    if length == 1:  # One key: the scores do not matter.
        np.testing.assert_array_equal(np.asarray(expected[1]), 0)
        actual = output_and_gradients(xla_attention, *arguments)
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, atol=1e-6)
    else:
        assert_close(output_and_gradients(xla_attention, *arguments), expected)


def test_bfloat16_stays_near_float32():
    inputs = make_inputs(2 * BLOCK, dtype=jnp.bfloat16)
    exact = output_and_gradients(
        reference_attention, *(x.astype(jnp.float32) for x in inputs), AttentionMask(50)
    )
    for attend in (reference_attention, xla_attention):
        rounded = output_and_gradients(attend, *inputs, AttentionMask(50))
        assert {x.dtype for x in rounded} == {jnp.dtype(jnp.bfloat16)}
        assert_close(rounded, exact, tolerance=0.02)


def test_large_scores_do_not_overflow():
    query, key, value, gradient = make_inputs(2 * BLOCK)
    arguments = (100 * query, key, value, gradient, AttentionMask())
    actual = output_and_gradients(xla_attention, *arguments)
    assert all(jnp.isfinite(x).all() for x in actual)
    assert_close(actual, output_and_gradients(reference_attention, *arguments), tolerance=1e-4)


def test_the_backward_pass_keeps_no_scores():
    length = 8 * BLOCK
    query, key, value, _ = make_inputs(length)

    def saved(attend):
        _, pull = jax.eval_shape(
            lambda *qkv: jax.vjp(lambda *x: attend(*x, AttentionMask()), *qkv), query, key, value
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    scores = 2 * 4 * length**2
    assert saved(reference_attention) >= scores
    assert saved(xla_attention) < 4 * (query.size + key.size + value.size) < scores


@pytest.mark.parametrize(("window", "share"), [(None, 0.6), (BLOCK, 0.25)])
def test_invisible_keys_cost_nothing(window, share):
    query, key, value, _ = make_inputs(8 * BLOCK)

    def flops(attend):
        lowered = jax.jit(lambda *qkv: attend(*qkv, AttentionMask(window))).lower(query, key, value)
        return lowered.cost_analysis()["flops"]

    assert 0 < flops(xla_attention) < share * flops(reference_attention)


@functools.partial(jit, static_argnums=0)
def dropped_weights(attend, query, key, mask, dropout):
    """The attention matrix, dropout included, [batch, query, kv_heads, groups, key]."""
    batch, length, kv_heads = key.shape[:3]
    value = jnp.broadcast_to(jnp.eye(length)[:, None], (batch, length, kv_heads, length))
    return attend(query, key, value, mask, dropout=dropout)


@pytest.mark.parametrize(
    ("attend", "length"),
    [(reference_attention, 64), (xla_attention, 64), (xla_attention, 2 * BLOCK)],
)
def test_gradients_see_the_dropout_of_the_forward_pass(attend, length):
    """Against autodiff of softmax times the factors found in the forward pass."""
    query, key, value, gradient = make_inputs(length)
    mask = AttentionMask(40, make_segments(length))
    dropout = AttentionDropout(jax.random.key(3), 0.25)
    weights = dropped_weights(reference_attention, query, key, mask, None)
    visible = weights > 0
    ratio = dropped_weights(attend, query, key, mask, dropout) / jnp.where(visible, weights, 1)
    factors = jnp.where(ratio > 0.5, 1 / 0.75, 0.0)
    np.testing.assert_allclose(ratio, jnp.where(visible, factors, 0), rtol=1e-3)

    def plain(query, key, value, mask, *, slopes, dropout):
        scores = jnp.einsum("btkgh,bskh->btkgs", query, key) / math.sqrt(HEAD_DIM)
        scores = jnp.where(visible, scores, -jnp.inf)
        return jnp.einsum("btkgs,bskh->btkgh", jax.nn.softmax(scores) * factors, value)

    arguments = (query, key, value, gradient, mask, None)
    expected = output_and_gradients(plain, *arguments)
    assert_close(output_and_gradients(attend, *arguments, dropout), expected)


def test_dropout_keeps_the_mean_and_differs_everywhere():
    length, rate = 2 * BLOCK, 0.3
    query, key, _, _ = make_inputs(length)
    weights = dropped_weights(reference_attention, query, key, AttentionMask(), None)

    def kept(seed):
        dropout = AttentionDropout(jax.random.key(seed), rate)
        dropped = dropped_weights(xla_attention, query, key, AttentionMask(), dropout)
        assert float(dropped.sum() / weights.sum()) == pytest.approx(1, abs=0.02)
        return np.asarray(dropped > 0)

    first = kept(0)
    assert first[weights > 0].mean() == pytest.approx(1 - rate, abs=0.01)
    np.testing.assert_array_equal(kept(0), first)

    def assert_unrelated(one, other):
        """Two draws agree by chance alone."""
        assert (one == other).mean() == pytest.approx((1 - rate) ** 2 + rate**2, abs=0.03)

    visible = np.asarray(weights > 0)
    assert_unrelated(kept(1)[visible], first[visible])
    # Blocks, sequences, key/value heads and query heads, each where both sides are visible.
    assert_unrelated(first[:, 1:BLOCK, ..., 0], first[:, BLOCK + 1 :, ..., 0])
    assert_unrelated(first[0][visible[0]], first[1][visible[0]])
    both = visible[:, :, 0]
    assert_unrelated(first[:, :, 0][both], first[:, :, 1][both])
    both = visible[:, :, :, 0]
    assert_unrelated(first[:, :, :, 0][both], first[:, :, :, 1][both])
