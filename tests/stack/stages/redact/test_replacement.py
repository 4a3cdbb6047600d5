import re

import pytest

from starcoder_jax.stack.stages.redact.replacement import IPV4, IPV6, accepted, substitute
from starcoder_jax.stack.stages.redact.spans import Span, union


def test_starcoder_has_special_tokens_and_private_addresses():
    for of in ("EMAIL", "KEY", "NAME", "PASSWORD"):
        assert substitute("starcoder", of, "x", "file", 0) == (f"<{of}>", "")
    addresses = {substitute("starcoder", "IP_ADDRESS", f"5.6.7.{i}", "f", 0) for i in range(99)}
    assert addresses == {(None, address) for address in IPV4}
    addresses = {substitute("starcoder", "IP_ADDRESS", f"2a00::{i}", "f", 0) for i in range(99)}
    assert addresses == {(None, address) for address in IPV6}


def test_santacoder_has_random_strings():
    token, email = substitute("santacoder", "EMAIL", "jo@corp.com", "file", 0)
    assert token is None and re.fullmatch(r"[a-z]{5}@example\.com", email)
    token, key = substitute("santacoder", "KEY", "secret", "file", 0)
    assert token is None and re.fullmatch("[a-z0-9]{32}", key) and len(set(key)) > 12
    assert substitute("santacoder", "NAME", "Jo Doe", "file", 0) == ("<NAME>", "")
    assert substitute("santacoder", "IP_ADDRESS", "5.6.7.8", "file", 0)[1] in IPV4


def test_the_same_value_has_the_same_replacement_within_a_file():
    chosen = [
        substitute("santacoder", "KEY", value, file, seed)
        for value in ("a", "b")
        for file in ("f", "g")
        for seed in (0, 1)
    ]
    assert len(set(chosen)) == 8
    assert substitute("santacoder", "KEY", "b", "g", 1) == chosen[-1]
    # Written down: what a file becomes must not change between versions and machines.
    assert chosen[0] == (None, "ehz8oac7xursqmljyneuzmq39jee56da")


@pytest.mark.parametrize(
    ("of", "value", "expected"),
    [
        ("NAME", "Jo Doe", True),
        ("NAME", "Johanna", False),
        ("NAME", "J D", False),
        ("EMAIL", "a@b.c", True),
        ("PASSWORD", "abc", False),
        ("PASSWORD", "abcd", True),
        ("KEY", "q8Zx7", False),
        ("KEY", "q8ZxK2jWv9", True),
        ("KEY", "username_field", False),
        ("IP_ADDRESS", "10.0.0.1", False),
        ("IP_ADDRESS", "8.8.8.8", False),
        ("IP_ADDRESS", "localhost", False),
        ("IP_ADDRESS", "93.184.216.34", True),
        ("USERNAME", "jodoe99", False),
        ("EMAIL_EXAMPLE", "a@example.com", False),
        ("AMBIGUOUS", "abcdef", False),
    ],
)
def test_findings_of_models_go_by_starcoders_rules(of, value, expected):
    span = Span(1, 1 + len(value), of)
    assert accepted(f" {value} ", [span], "m:f") == [span] * expected


@pytest.mark.parametrize("span", [(0, 9, "KEY"), (-1, 2, "KEY"), (2, 1, "KEY"), (0, 1, "PHONE")])
def test_impossible_findings_give_one_line(span):
    with pytest.raises(ValueError, match="m:f found a span") as error:
        accepted("abc", [Span(*span)], "m:f")
    assert "\n" not in str(error.value)


def test_nothing_is_left_of_spans_that_overlap():
    spans = [Span(8, 12, "EMAIL"), Span(0, 5, "EMAIL"), Span(3, 9, "KEY"), Span(12, 14, "NAME")]
    assert union(spans) == [Span(0, 12, "KEY"), Span(12, 14, "NAME")]
