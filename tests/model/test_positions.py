import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.model.positions import alibi_slopes, rotary_angles, rotate

HEAD_DIM = 16


def rotated(x, positions, theta=10_000.0):
    """float32 [length, heads, head_dim] rotated at these positions."""
    angles = rotary_angles(jnp.array(positions)[None], HEAD_DIM, theta)
    return np.asarray(rotate(jnp.array(x)[None], *angles))[0]


@pytest.mark.parametrize("theta", [10_000.0, 999999.4420358813])
def test_rotation_is_a_complex_product_of_the_two_halves(theta):
    x = np.random.default_rng(0).normal(size=(3, 2, HEAD_DIM)).astype(np.float32)
    positions = np.array([0, 1, 500])
    frequencies = theta ** (-2 * np.arange(HEAD_DIM // 2) / HEAD_DIM)
    turn = np.exp(1j * positions[:, None, None] * frequencies)
    expected = (x[..., : HEAD_DIM // 2] + 1j * x[..., HEAD_DIM // 2 :]) * turn
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    np.testing.assert_allclose(rotated(x, positions, theta), expected, atol=2e-4)


def test_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 1, HEAD_DIM)).astype(np.float32)

    def score(query_position, key_position):
        return float(np.vdot(rotated(query, [query_position]), rotated(key, [key_position])))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(8, 3)) > 1e-2


def test_rotation_keeps_dtype_and_length_of_vectors():
    x = np.random.default_rng(2).normal(size=(5, 1, HEAD_DIM)).astype(np.float32)
    turned = rotated(x, range(5))
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6
    )
    assert rotated(x.astype(jnp.bfloat16), range(5)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (1, [8]),
    ],
)
def test_alibi_slopes_are_blooms(num_heads, exponents):
    np.testing.assert_allclose(alibi_slopes(num_heads), 2.0 ** -np.array(exponents), rtol=1e-12)
