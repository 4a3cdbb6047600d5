"""Choosing tokens: beside transformers' rules, by numbers, and one row at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starcoder_jax.inference.sampling import Needs, Rows, Sampling, _draw, _filtered, next_tokens

VOCAB = 300


def rows_of(*requests: Sampling, sample: int = 0) -> Rows:
    rows = Rows.empty(len(requests))
    for index, request in enumerate(requests):
        rows.set(index, request, sample)
    return rows


def kept(weights: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The tokens that the filters leave, of one row."""
    weights = jnp.array(weights / weights.max(), jnp.float32)[None]
    return np.flatnonzero(_filtered(weights, rows_of(sampling))[0])


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """All different, the likeliest last."""
    return np.exp(np.linspace(-6, 3, VOCAB)).astype(np.float32)


@pytest.mark.parametrize("top_k", [1, 2, 17, VOCAB, VOCAB + 1])
def test_top_k(weights, top_k):
    assert kept(weights, Sampling(top_k=top_k)).tolist() == list(
        range(max(VOCAB - top_k, 0), VOCAB)
    )


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_top_p_is_the_smallest_set(weights, top_p):
    left = kept(weights, Sampling(top_p=top_p))
    share = weights / weights.sum()
    assert left.tolist() == list(range(VOCAB - len(left), VOCAB))
    assert share[left].sum() >= top_p > share[left[1:]].sum()


def test_min_p_counts_from_the_likeliest(weights):
    left = kept(weights, Sampling(min_p=0.2))
    assert left.tolist() == np.flatnonzero(weights >= 0.2 * weights.max()).tolist()


def test_top_p_counts_among_those_that_top_k_left():
    weights = np.array([4, 3, 2, 1] + [1] * 90, np.float32)
    assert kept(weights, Sampling(top_k=3, top_p=0.7)).tolist() == [0, 1]
    assert len(kept(weights, Sampling(top_p=0.7))) > 3


def test_no_filter_keeps_all(weights):
    assert len(kept(weights, Sampling())) == VOCAB


def test_filters_are_those_of_transformers(weights):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(0, 3, (1, VOCAB)).astype(np.float32)
        request = Sampling(
            temperature=float(rng.uniform(0.3, 2)),
            top_k=int(rng.integers(1, VOCAB)),
            top_p=float(rng.uniform(0.05, 0.99)),
            min_p=float(rng.uniform(0, 0.1)),
        )
        theirs = torch.tensor(logits)
        for warper in (
            process.TemperatureLogitsWarper(request.temperature),
            process.TopKLogitsWarper(request.top_k),
            process.TopPLogitsWarper(request.top_p),
            process.MinPLogitsWarper(request.min_p),
        ):
            theirs = warper(None, theirs)
        expected = torch.softmax(theirs, -1).numpy()[0]
        ours = np.exp((logits - logits.max()) / request.temperature)
        ours = np.array(_filtered(jnp.array(ours), rows_of(request))[0])
        np.testing.assert_allclose(ours / ours.sum(), expected, atol=2e-6)


def test_repetition_penalty():
    logits = jnp.array([[2.0, -1.0, 1.5, -3.0], [2.0, -1.0, 1.5, -3.0]])
    seen = jnp.array([[True, True, False, False], [False] * 4])
    request = Sampling(repetition_penalty=1.5)  # 2 / 1.5 < 1.5
    chosen = next_tokens(
        logits, jnp.zeros(2, int), seen, rows_of(request, request), Needs(penalty=True)
    )
    assert chosen.tolist() == [2, 0]
    request = Sampling(repetition_penalty=0.5)  # rewards; -1 / 2 is still below 2
    logits = jnp.array([[-1.0, -1.8]])
    chosen = next_tokens(
        logits, jnp.zeros(1, int), jnp.array([[False, True]]), rows_of(request), Needs(penalty=True)
    )
    assert chosen.tolist() == [1]


def test_draws_are_as_frequent_as_likely():
    weights = np.zeros(VOCAB, np.float32)
    weights[[0, 127, 128, 299]] = 0.1, 0.2, 0.3, 0.4
    count = 20_000
    drawn = next_tokens(
        jnp.broadcast_to(jnp.log(weights), (count, VOCAB)),
        jnp.arange(count),
        None,
        jax.tree.map(lambda x: np.repeat(x, count), rows_of(Sampling(temperature=1, seed=5))),
        Needs(drawing=True),
    )
    frequency = np.bincount(drawn, minlength=VOCAB) / count
    np.testing.assert_allclose(frequency, weights, atol=4 * 0.5 / np.sqrt(count))
    assert set(np.flatnonzero(frequency)) == {0, 127, 128, 299}


def test_ends_of_the_draw():
    weights = jnp.array([[0.0, 3, 0, 1, 0]] * 4 + [[0, 1e-30, 0, 0, 0]] * 2)
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    uniform = jnp.array([0, 0.74, 0.76, below_one, 0, below_one])
    assert _draw(weights, uniform).tolist() == [1, 1, 3, 3, 1, 1]
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((500, 1000)) < 0.03, rng.random((500, 1000)), 0)
    drawn = _draw(jnp.array(weights, jnp.float32), jnp.full(500, below_one))
    assert (weights[np.arange(500), drawn] > 0).all()


def test_a_row_does_not_depend_on_those_beside_it():
    rng = np.random.default_rng(1)
    logits = jnp.array(rng.normal(0, 2, (4, VOCAB)), jnp.float32)
    positions = jnp.array([3, 9, 9, 30])
    requests = [
        Sampling(temperature=1, seed=1),
        Sampling(temperature=0.7, top_p=0.8, seed=2),
        Sampling(),
        Sampling(temperature=1, top_k=3, seed=3),
    ]
    needs = Needs.of(requests)
    assert needs == Needs(drawing=True, filters=True)
    together = next_tokens(logits, positions, None, rows_of(*requests), needs)
    for row, request in enumerate(requests):
        own = Needs.of([request])
        alone = next_tokens(
            logits[row : row + 1], positions[row : row + 1], None, rows_of(request), own
        )
        assert alone[0] == together[row]
    assert together[2] == jnp.argmax(logits[2])


def test_position_seed_and_sample_all_matter():
    logits = jnp.zeros((1, VOCAB))
    base = Sampling(temperature=1, seed=1)

    def draw(sampling=base, position=0, sample=0):
        rows = rows_of(sampling, sample=sample)
        return int(next_tokens(logits, jnp.array([position]), None, rows, Needs(drawing=True))[0])

    other = dataclasses.replace(base, seed=2)
    assert len({draw(), draw(other), draw(position=1), draw(sample=1)}) == 4
    assert draw() == draw()


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"stop": ("",)},
        {"stop": "text"},
    ],
    ids=str,
)
def test_values_out_of_range(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        Sampling(**field)
