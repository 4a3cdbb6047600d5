import numpy as np
import pytest

from starcoder_jax.stack.stages.dedup.minhash import EMPTY, densified, signatures
from starcoder_jax.stack.stages.dedup.shingles import mixed


def sketches(sets: list[np.ndarray], num_hashes: int = 256) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in sets])])
    return signatures(np.concatenate(sets), offsets, num_hashes)


def random_sets(count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 2**64, size, np.uint64) for _ in range(count)]


def test_signature_is_the_least_lower_half_of_each_bin():
    sets = [*random_sets(3, 500), np.empty(0, np.uint64), *random_sets(2, 7, seed=1)]
    expected = np.full((6, 100), EMPTY)
    for row, values in enumerate(sets):
        for value in values.tolist():
            place = (value >> 32) * 100 >> 32
            expected[row, place] = min(expected[row, place], value & 0xFFFFFFFF)
    np.testing.assert_array_equal(sketches(sets, 100), expected)
    assert (expected == EMPTY).any() and (expected[0] != EMPTY).any()


def test_densification_fills_empty_bins_from_full_ones_of_the_same_row():
    sketch = sketches([*random_sets(20, 30), *random_sets(1, 1, seed=1), *random_sets(5, 3_000)])
    filled = densified(sketch)
    full = sketch != EMPTY
    assert not full.all(1)[:21].any()
    np.testing.assert_array_equal(filled[full], sketch[full])
    for row, given in zip(filled, sketch, strict=True):
        assert EMPTY not in row and set(row) == set(given) - {EMPTY}
    alone = np.concatenate([densified(sketch[row : row + 1]) for row in range(len(sketch))])
    np.testing.assert_array_equal(filled, alone)


def test_densification_draws_from_all_full_bins_evenly():
    # Of ten full bins each is to fill about a tenth of the other 246, in no run of neighbors:
    # the next full one in a row would fill whole stretches.
    sketch = np.full((1, 256), EMPTY)
    sketch[0, 10:20] = np.arange(10)
    filled = densified(sketch)[0]
    assert np.bincount(filled).max() < 50
    assert np.mean(filled[1:] == filled[:-1]) < 0.25


def test_a_row_without_values_stays_empty():
    assert (densified(np.full((2, 64), EMPTY)) == EMPTY).all()


@pytest.mark.parametrize(
    ("size", "bound"), [(20, 0.05), (100, 0.035), (1_000, 0.03), (9_000, 0.03)]
)
def test_estimate_of_known_similarities(size, bound):
    """Pairs of sets of known Jaccard similarity; the root of the mean squared error is bounded.

    256 independent places would have sqrt(J (1 - J) / 256), 0.03 at most. A small set has fewer.
    """
    errors = []
    for number, similarity in enumerate(np.linspace(0.05, 0.95, 19)):
        for repeat in range(8):
            values = mixed(
                np.arange(2 * size, dtype=np.uint64) + np.uint64(10**9 * number + 10**6 * repeat)
            )
            shared = round(2 * size * similarity / (1 + similarity))
            first = values[:size]
            second = values[size - shared : 2 * size - shared]
            known = shared / (2 * size - shared)
            one, other = densified(sketches([first, second]))
            errors.append(np.mean(one == other) - known)
    assert np.sqrt(np.mean(np.square(errors))) < bound
    assert abs(np.mean(errors)) < bound / 4
