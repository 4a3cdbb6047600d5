import pathlib
import random
import re
import string
import sysconfig

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.redact.gibberish import (
    THRESHOLD,
    entropy,
    is_gibberish,
    surprise,
)


@pytest.mark.parametrize("alphabet", [string.ascii_letters, string.ascii_lowercase])
def test_random_strings_are_gibberish_and_identifiers_are_not(alphabet):
    chance = random.Random(0)
    drawn = ["".join(chance.choices(alphabet + string.digits, k=20)) for _ in range(500)]
    assert sum(map(is_gibberish, drawn)) > 0.97 * len(drawn)
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    text = "\n".join(path.read_text() for path in sorted(library.glob("[a-z]*.py")))
    names = sorted(set(re.findall("[A-Za-z][A-Za-z_]{19,}", text)))
    assert len(names) > 300
    assert sum(map(is_gibberish, names)) < 0.03 * len(names)


def test_the_table_is_that_of_python_code():
    # Of another Python's standard library, with other code in it.
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    text = " ".join(path.read_text().lower() for path in sorted(library.glob("[a-f]*.py")))
    words = re.findall("[a-z]{4,}", text)
    assert len(words) > 50_000
    mean = sum(surprise(word) for word in words) / len(words)
    assert mean < 2.6 < THRESHOLD < surprise("xqzvkjwpgf")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9f86d081884c7d659a2feaa0c55ad015", True),
        ("12345678901234567890", False),
        ("deadbeefdeadbeef0000", False),
        ("abcdefabcdefabcdefab", False),
        ("get_user_by_id_2", False),
        ("", False),
        ("q", False),
    ],
)
def test_hexadecimal_digits_and_other_texts(text, expected):
    assert is_gibberish(text) is expected


def test_entropy():
    assert entropy("aaaa") == 0 and entropy("abab") == 1 and entropy("abcdefgh") == 3


@settings(deadline=None)
@given(st.text(min_size=1))
def test_any_text_has_a_score(text):
    assert 0 <= surprise(text) <= 10 and 0 <= entropy(text) < 32
