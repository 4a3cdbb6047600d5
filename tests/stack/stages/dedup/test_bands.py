import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from starcoder_jax.stack.stages.dedup import bands
from starcoder_jax.stack.stages.dedup.bands import band_keys, candidate_pairs, optimal_bands

PLACES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40)


@pytest.mark.parametrize("num_hashes", [250, 256])
def test_bigcodes_bands_come_out_at_their_weights(num_hashes):
    assert optimal_bands(0.7, num_hashes, 0.5) == (25, 10)


def test_default_bands_use_the_whole_signature():
    assert optimal_bands(0.7, 256) == (32, 8)


@pytest.mark.parametrize(("threshold", "num_hashes", "weight"), [(0.5, 64, 0.5), (0.8, 60, 0.1)])
def test_optimal_bands_are_those_of_the_integrals(threshold, num_hashes, weight):
    def error(bands, rows):
        def chance(s):
            return 1 - (1 - s**rows) ** bands

        positives, _ = integrate.quad(chance, 0, threshold)
        negatives, _ = integrate.quad(lambda s: 1 - chance(s), threshold, 1)
        return weight * positives + (1 - weight) * negatives

    pairs = [
        (bands, rows)
        for bands in range(1, num_hashes + 1)
        for rows in range(1, num_hashes // bands + 1)
    ]
    assert optimal_bands(threshold, num_hashes, weight) == min(pairs, key=lambda pair: error(*pair))


def test_keys_agree_where_all_rows_of_a_band_and_the_kinds_do():
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 2, (200, 12), dtype=np.uint32)
    kinds = draw.integers(0, 2, 200, dtype=np.uint64)
    keys = band_keys(signatures, kinds, bands=4, rows=3)
    assert keys.shape == (200, 4)
    seen = {}
    for document, band in itertools.product(range(200), range(4)):
        rows = tuple(signatures[document, band * 3 : band * 3 + 3])
        seen.setdefault((band, rows, kinds[document]), set()).add(int(keys[document, band]))
    assert len(seen) == 4 * 8 * 2
    assert all(len(values) == 1 for values in seen.values())
    assert len(set().union(*seen.values())) == len(seen)


def pairs_of(places, representatives, ids=None):
    keys, fingerprints = (np.array(column, np.uint64) for column in zip(*places, strict=True))
    ids = np.arange(len(places)) if ids is None else ids
    parts = list(candidate_pairs(keys, fingerprints, ids, representatives))
    pairs = [pair for part in parts for pair in zip(*(end.tolist() for end in part), strict=True)]
    assert len(set(pairs)) == len(pairs) or len(set(keys.tolist())) > 1
    return set(pairs)


@given(PLACES, st.integers(1, 6))
def test_candidates_are_those_of_a_loop(places, representatives):
    expected = set()
    for key in {key for key, _ in places}:
        bucket = sorted((mark, id_) for id_, (other, mark) in enumerate(places) if other == key)
        firsts = {}
        for mark, id_ in bucket:
            if mark in firsts:
                expected.add((firsts[mark], id_))
            firsts.setdefault(mark, id_)
        ordered = list(firsts.values())
        for place, id_ in enumerate(ordered):
            expected |= {(other, id_) for other in ordered[: min(place, representatives)]}
    assert pairs_of(places, representatives) == expected


@given(PLACES, st.randoms(use_true_random=False))
def test_candidates_do_not_depend_on_the_order_of_rows(places, random):
    ids = np.arange(len(places))
    shuffled = list(zip(places, ids.tolist(), strict=True))
    random.shuffle(shuffled)
    again, numbers = zip(*shuffled, strict=True)
    assert pairs_of(again, 2, np.array(numbers)) == pairs_of(places, 2, ids)


@pytest.mark.parametrize(
    ("documents", "kinds", "pairs"),
    [
        (20_000, 20_000, 8 * 20_000 - 8 * 9 // 2),
        (5_000, 5_000, 16 * 5_000 - 16 * 17 // 2),
        (20_000, 1, 19_999),
        (20_000, 10, 20_000 - 10 + 10 * 9 // 2),
    ],
)
def test_a_giant_bucket_is_linear(documents, kinds, pairs):
    keys = np.zeros(documents, np.uint64)
    fingerprints = np.arange(documents, dtype=np.uint64) % np.uint64(kinds)
    found = 0
    for first, second in candidate_pairs(keys, fingerprints, np.arange(documents), 16):
        assert (first != second).all()
        found += len(first)
        assert found <= pairs
    assert found == pairs


def test_parts_are_cut_where_they_may(monkeypatch):
    places = [(number % 3, number) for number in range(100)]
    whole = pairs_of(places, 10)
    monkeypatch.setattr(bands, "_PAIRS_AT_ONCE", 7)
    assert pairs_of(places, 10) == whole
    columns = (np.array(column, np.uint64) for column in zip(*places, strict=True))
    sizes = [len(first) for first, _ in candidate_pairs(*columns, np.arange(100), 10)]
    assert sum(sizes) == len(whole) and max(sizes) <= 7 + 10


def test_no_places_make_no_pairs():
    none = np.empty(0, np.uint64)
    parts = list(candidate_pairs(none, none, np.empty(0, np.int64)))
    assert [len(first) for first, _ in parts] == [len(second) for _, second in parts] == [0]
