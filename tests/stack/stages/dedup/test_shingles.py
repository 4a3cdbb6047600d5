import itertools
import re
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from starcoder_jax.stack.stages.dedup import shingles

# Bytes of every class, tokens shorter and longer than a word, and what is not UTF-8.
PIECES = st.sampled_from(
    [
        *(b"a", b"B", b"_", b"9", b" ", b"\n", b"\0", b"-", b"@", b"[", b"`", b"{", b"/", b":"),
        *(b"\xc3\xa9", b"\xff", b"\xc1", b"\x7f", b"return", b"abcdefgh", b"abcdefghi", b"x" * 40),
    ]
)
CONTENTS = st.lists(st.lists(PIECES, max_size=60).map(b"".join), min_size=1, max_size=6)


def tokens(content: bytes) -> list[bytes]:
    return [token for token in re.split(rb"[^A-Za-z_0-9]", content) if token]


def expected(content: bytes, ngram: int) -> list[tuple[bytes, ...]]:
    found = tokens(content)
    return [tuple(found[start : start + ngram]) for start in range(len(found) - ngram + 1)]


@given(st.lists(st.integers(0, 255), max_size=400).map(bytes))
def test_tokens_are_those_of_the_stack_without_empty_ones(content):
    text = b" " + content + b" "
    starts, sizes = shingles.token_spans(np.frombuffer(text, np.uint8))
    found = [text[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    assert found == tokens(content)


@given(CONTENTS, st.integers(1, 6))
def test_hashes_tell_shingles_apart_and_nothing_else(contents, ngram):
    hashes, offsets = shingles.shingle_hashes(contents, ngram)
    assert len(offsets) == len(contents) + 1 and offsets[-1] == len(hashes)
    texts = []
    for content, (start, stop) in zip(contents, itertools.pairwise(offsets), strict=True):
        texts += expected(content, ngram)
        assert stop - start == len(expected(content, ngram))
    assert len(set(zip(texts, hashes.tolist(), strict=True))) == len(set(texts))
    assert len(set(hashes.tolist())) == len(set(texts))


def test_hashes_stay_the_same_from_version_to_version():
    content = b"def add(first_number, b):\n    return first_number + b\n"
    hashes, _ = shingles.shingle_hashes([content], 5)
    assert [hex(value) for value in hashes] == [
        *("0x5a5649521542d523", "0xf1c2c24cd36d57f7", "0xe6b6402132ddb93b")
    ]


def test_every_byte_of_a_long_token_counts():
    token = bytes(np.random.default_rng(0).choice(list(b"abcXYZ_019"), 5_000).tolist())
    changed = [token[:place] + b"q" + token[place + 1 :] for place in (0, 7, 8, 63, 64, 4_999)]
    swapped = token[8:16] + token[:8] + token[16:]
    hashes, _ = shingles.shingle_hashes([token, *changed, swapped, token[:-1]], 1)
    assert len(set(hashes.tolist())) == 9


def test_many_shingles_do_not_collide():
    content = b" ".join(b"%d" % number for number in range(200_000))
    hashes, _ = shingles.shingle_hashes([content], 5)
    assert len(np.unique(hashes)) == 199_996
    for half in (hashes >> np.uint64(32), hashes & np.uint64(0xFFFFFFFF)):
        # Each byte of a hash takes each value about equally often: a chi-squared of 255 degrees.
        for shift in range(0, 32, 8):
            counts = np.bincount((half >> np.uint64(shift)).astype(np.int64) & 255, minlength=256)
            assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 380


@given(CONTENTS, st.integers(1, 400))
def test_where_batches_end_does_not_matter(contents, size):
    column = pa.chunked_array([pa.array(contents, pa.large_binary())])
    whole, offsets = shingles.shingle_hashes(contents, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shingles, "BATCH_BYTES", size)
        parts = list(shingles.batches(column, 3))
    np.testing.assert_array_equal(np.concatenate([hashes for hashes, _ in parts]), whole)
    counts = np.concatenate([np.diff(begins) for _, begins in parts])
    np.testing.assert_array_equal(counts, np.diff(offsets))


@given(CONTENTS)
@example([b"a b", b"a b", b"", b"a b"])
def test_sets_hold_each_shingle_once_in_order(contents):
    column = pa.chunked_array([pa.array(contents, pa.large_binary())])
    sets = shingles.shingle_sets(column, 2)
    hashes, offsets = shingles.shingle_hashes(contents, 2)
    assert len(sets) == len(contents)
    for values, (start, stop) in zip(sets, itertools.pairwise(offsets), strict=True):
        np.testing.assert_array_equal(values, np.unique(hashes[start:stop]))


@pytest.mark.parametrize(
    "content",
    [b"x" * 4_000_000, b"x " * 2_000_000, b" " * 4_000_000, b"\xff\0" * 2_000_000],
    ids=["one token", "all tokens", "no token", "not UTF-8"],
)
def test_hostile_contents_take_no_longer(content):
    start = time.process_time()
    shingles.shingle_hashes([content], 5)
    assert time.process_time() - start < 5
