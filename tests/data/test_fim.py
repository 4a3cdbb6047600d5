import itertools
import math
import random
import string
import textwrap

import numpy as np
import pytest

from starcoder_jax.data import fim
from starcoder_jax.data.tokenizer_training import train_tokenizer

UNICODE = "naïve café — 日本語のテキスト 🚀🚀 Ωμέγα\n"


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def vocabulary(request):
    """Small enough for most characters of `UNICODE` to take several tokens, and so be cut."""
    with open(textwrap.__file__) as file:
        lines = file.readlines()
    return train_tokenizer([*lines, UNICODE], kind=request.param, vocab_size=600)


def pack(vocabulary, *items):
    """Packs texts, and special tokens where an item is the name of one."""
    parts = []
    for item in items:
        special = item in vocabulary.special_tokens
        parts.append([vocabulary.special_id(item)] if special else vocabulary.encode(item))
    return np.concatenate(parts).astype(np.int32)


def split(tokens, separator):
    """Splits at a token, as str.split does."""
    pieces = [[]]
    for token in np.asarray(tokens).tolist():
        if token == separator:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces


def unpermute(vocabulary, piece):
    """Returns a piece's bytes in reading order, and whether it had been permuted."""
    ids = [vocabulary.special_id(f"<fim_{name}>") for name in ("prefix", "suffix", "middle")]
    if not set(ids) & set(piece):
        return vocabulary.decode_bytes(piece), False
    assert piece[0] == ids[0]
    before_suffix, after_suffix = split(piece[1:], ids[1])
    suffix, after_middle = split(after_suffix, ids[2])
    # The suffix goes last in both orders: P | S | M, and nothing | S | P M.
    return vocabulary.decode_bytes(before_suffix + after_middle + suffix), True


def oracle(vocabulary, config, window, rng):
    """StarCoder's algorithm written down step by step, for windows of whole ASCII characters."""
    special = vocabulary.special_id
    end_of_text = special("<|endoftext|>")

    def permute(tokens, rate):
        if not rng.random() < rate:
            return tokens
        if config.skip_prefix is not None and tokens[:1] == [special(config.skip_prefix)]:
            return tokens
        text = vocabulary.decode(tokens)
        a, b = rng.integers(0, len(text) + 1, size=2)
        a, b = min(a, b), max(a, b)
        p, m, s = (vocabulary.encode(t).tolist() for t in (text[:a], text[a:b], text[b:]))
        pre, mid, suf = (special(f"<fim_{name}>") for name in ("prefix", "middle", "suffix"))
        if rng.random() < config.spm_rate:
            return [pre, suf, *s, mid, *p, *m]
        return [pre, *p, suf, *s, mid, *m]

    def document(tokens):
        if config.split_token is None or special(config.split_token) not in tokens:
            return permute(tokens, config.rate)
        if not rng.random() < config.rate:
            return tokens
        out = []
        *files, last = split(tokens, special(config.split_token))
        for file in files:
            if file:
                out += [*permute(file, config.fragment_rate), special(config.split_token)]
        return out + permute(last, config.fragment_rate)

    out = []
    *documents, last = split(window, end_of_text)
    for tokens in documents:
        if tokens:
            out += [*document(tokens), end_of_text]
    out += document(last)
    out = out[: len(window)]
    return out + [special("<fim_pad>")] * (len(window) - len(out))


def random_window(vocabulary, rng, length):
    """Documents of random code, some empty, some repositories, in a window cut at random."""
    with open(textwrap.__file__) as file:
        code = file.read()
    items = []
    for _ in range(12):
        texts = []
        for _ in range(rng.choice([0, 1, 1, 1, 3])):
            start = rng.randrange(len(code))
            texts += ["<file_sep>", code[start : start + rng.choice([0, 1, 5, 60, 200])]]
        if rng.random() < 0.4:
            texts = texts[1:]
        elif rng.random() < 0.5:
            texts = ["<repo_name>", "owner/name", *texts]
        items += [*texts, "<|endoftext|>"]
    tokens = pack(vocabulary, *items)
    start = rng.randrange(max(1, len(tokens) - length))
    return tokens[start : start + length]


@pytest.mark.parametrize(
    "config",
    [
        fim.FimConfig(split_token="<file_sep>", skip_prefix="<repo_name>"),
        fim.FimConfig(rate=1, split_token="<file_sep>", fragment_rate=1, skip_prefix="<repo_name>"),
        fim.FimConfig(rate=0.9, spm_rate=0.2, split_token="<file_sep>", fragment_rate=0.7),
        fim.FimConfig(rate=0.7, spm_rate=1),
        fim.FimConfig(rate=1, spm_rate=0),
    ],
)
def test_matches_the_algorithm_token_for_token(vocabulary, config):
    transform = fim.FillInTheMiddle(config, vocabulary)
    source = random.Random(0)
    # What the oracle spells out in its text, the transform keeps whole: only where a special token
    # remains inside a permuted stretch do the two differ.
    allowed = {config.split_token, config.skip_prefix, "<|endoftext|>"}
    forbidden = {"<file_sep>", "<repo_name>"} - allowed
    forbidden = [vocabulary.special_id(name) for name in forbidden]
    changed = 0
    for number in range(150):
        window = random_window(vocabulary, source, source.choice([20, 100, 400]))
        window = window[~np.isin(window, forbidden)]
        out = transform(window, np.random.default_rng(number))
        expected = oracle(vocabulary, config, window, np.random.default_rng(number))
        assert out.tolist() == expected
        assert out.dtype == np.int32
        changed += not np.array_equal(out, window)
    assert changed > 50


def test_unpermuting_gives_every_document_back(vocabulary):
    transform = fim.FillInTheMiddle(fim.FimConfig(rate=1), vocabulary)
    end_of_text = vocabulary.special_id("<|endoftext|>")
    markers = {vocabulary.special_id(f"<fim_{name}>") for name in ("prefix", "suffix", "middle")}
    special = set(vocabulary.special_tokens.values())
    pieces = [UNICODE, "def f(x):\n", "<fim_middle>", "<issue_start>", "x", "<gh_stars> \t", "é"]
    source = random.Random(1)
    permuted = 0
    for number in range(200):
        documents = [
            # A leading space keeps "<fim_middle>" text: documents that spell tokens forge none.
            pack(vocabulary, *(source.choice([piece, " " + piece]) for piece in chosen))
            for chosen in (source.choices(pieces, k=source.randint(1, 6)) for _ in range(4))
        ]
        documents = [d[d != vocabulary.special_id("<fim_middle>")] for d in documents]
        documents = [d for d in documents if len(d)]
        # Empty documents vanish: they are the room that the permuted ones grow into.
        window = np.concatenate(
            [np.append(d, end_of_text) for d in documents] + [[end_of_text]] * 99
        )
        out = transform(window.astype(np.int32), np.random.default_rng(number))
        assert len(out) == len(window)
        results = split(out, end_of_text)[: len(documents)]
        for before, after in zip(documents, results, strict=True):
            text, was_permuted = unpermute(vocabulary, after)
            assert was_permuted
            assert text == vocabulary.decode_bytes(before)
            # Special tokens inside stay tokens, and text that spells one stays text.
            inside = sorted(token for token in before.tolist() if token in special)
            assert sorted(token for token in after if token in special - markers) == inside
            permuted += 1
    assert permuted > 500


def test_characters_cut_by_the_window_keep_their_bytes(vocabulary):
    transform = fim.FillInTheMiddle(fim.FimConfig(rate=1), vocabulary)
    end_of_text = vocabulary.special_id("<|endoftext|>")
    stream = vocabulary.encode("漢字仮名交じり文🚀" * 5)
    cut = 0
    for start, stop in itertools.product(range(6), range(20, 30)):
        piece = stream[start:stop]
        cut += "\ufffd" in vocabulary.decode(piece)
        window = np.concatenate([piece, [end_of_text] * 60]).astype(np.int32)
        out = transform(window, np.random.default_rng(start * 100 + stop))
        text, was_permuted = unpermute(vocabulary, split(out, end_of_text)[0])
        assert was_permuted
        assert text == vocabulary.decode_bytes(piece)
    assert cut > 30


def test_documents_do_not_leak_into_each_other(vocabulary):
    transform = fim.FillInTheMiddle(fim.FimConfig(rate=0.7), vocabulary)
    end_of_text = vocabulary.special_id("<|endoftext|>")
    specials = set(vocabulary.special_tokens.values())
    for number in range(200):
        letters = string.ascii_lowercase[:8]
        items = ((letter * (5 + 3 * i), "<|endoftext|>") for i, letter in enumerate(letters))
        window = pack(vocabulary, *itertools.chain(*items))[3:-7]
        out = transform(window, np.random.default_rng(number))
        pieces = [[t for t in piece if t not in specials] for piece in split(out, end_of_text)]
        contents = [set(vocabulary.decode(piece)) for piece in pieces]
        assert len(contents) > 4
        # Only the last one may have been cut down to nothing.
        for content, letter in zip(contents[:-1], letters, strict=False):
            assert content == {letter}
        assert contents[-1] <= {letters[len(contents) - 1]}


def within_binomial(count, trials, probability):
    return abs(count - trials * probability) < 5 * math.sqrt(
        trials * probability * (1 - probability)
    )


def test_rates_hold(vocabulary):
    transform = fim.FillInTheMiddle(fim.FimConfig(rate=0.5, spm_rate=0.3), vocabulary)
    text = "a = b + c\n" * 10
    window = pack(vocabulary, text, *["<|endoftext|>"] * 10)
    prefix, suffix = (vocabulary.special_id(f"<fim_{name}>") for name in ("prefix", "suffix"))
    rng = np.random.default_rng(0)
    windows = 10_000
    permuted = adjacent = 0
    for _ in range(windows):
        out = transform(window, rng)
        if out[0] == prefix:
            permuted += 1
            adjacent += out[1] == suffix
    assert within_binomial(permuted, windows, 0.5)
    # Prefix-suffix-middle with an empty prefix cannot be told from the other order.
    empty_prefix = 1 - (len(text) / (len(text) + 1)) ** 2
    assert within_binomial(adjacent, permuted, 0.3 + 0.7 * empty_prefix)


def test_repository_rates_hold(vocabulary):
    config = fim.FimConfig(rate=0.4, split_token="<file_sep>", fragment_rate=0.25)
    transform = fim.FillInTheMiddle(config, vocabulary)
    window = pack(vocabulary, "one", *["<file_sep>", "another"] * 3, *["<|endoftext|>"] * 16)
    prefix = vocabulary.special_id("<fim_prefix>")
    rng = np.random.default_rng(0)
    windows = 10_000
    counts = []
    for _ in range(windows):
        document = split(transform(window, rng), vocabulary.special_id("<|endoftext|>"))[0]
        counts.append(document.count(prefix))
    assert within_binomial(sum(count > 0 for count in counts), windows, 0.4 * (1 - 0.75**4))
    assert within_binomial(sum(count == 4 for count in counts), windows, 0.4 * 0.25**4)


def test_files_of_a_repository_are_permuted_within_themselves(vocabulary):
    config = fim.FimConfig(
        rate=1, split_token="<file_sep>", fragment_rate=1, skip_prefix="<repo_name>"
    )
    transform = fim.FillInTheMiddle(config, vocabulary)
    files = ["a.py\nimport os\n", "b.py\nprint('ü')\n", "c.py\n<repo_name> is mere text here"]
    items = itertools.chain(*(("<file_sep>", file) for file in files))
    window = pack(vocabulary, "<repo_name>", "owner/name", *items, *["<|endoftext|>"] * 20)
    for seed in range(50):
        out = transform(window, np.random.default_rng(seed))
        document = split(out, vocabulary.special_id("<|endoftext|>"))[0]
        header, *pieces = split(document, vocabulary.special_id("<file_sep>"))
        assert header == pack(vocabulary, "<repo_name>", "owner/name").tolist()
        texts = [unpermute(vocabulary, piece) for piece in pieces]
        assert texts == [(file.encode(), True) for file in files]


def test_header_is_kept_where_the_window_ends_before_the_first_file(vocabulary):
    config = fim.FimConfig(rate=1, split_token="<file_sep>", skip_prefix="<repo_name>")
    window = pack(vocabulary, "<repo_name>", "owner/name")
    out = fim.FillInTheMiddle(config, vocabulary)(window, np.random.default_rng(0))
    assert out.tolist() == window.tolist()


def test_leading_separator_goes_only_when_the_repository_is_chosen(vocabulary):
    window = pack(vocabulary, "<file_sep>", "a", "<file_sep>", "b", "<|endoftext|>", "c")
    first = vocabulary.special_id("<file_sep>")
    config = fim.FimConfig(split_token="<file_sep>", fragment_rate=0)
    transform = fim.FillInTheMiddle(config, vocabulary)
    leading = {int(transform(window, np.random.default_rng(seed))[0]) for seed in range(50)}
    assert leading == {first, int(window[1])}


def test_empty_documents(vocabulary):
    names = ["<|endoftext|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"]
    end_of_text, prefix, suffix, middle, pad = (vocabulary.special_id(name) for name in names)
    window = np.full(6, end_of_text, np.int32)
    out = fim.FillInTheMiddle(fim.FimConfig(rate=1), vocabulary)(window, np.random.default_rng(0))
    assert out.tolist() == [prefix, suffix, middle, pad, pad, pad]


def test_rate_zero_returns_the_window_itself(vocabulary):
    window = pack(vocabulary, "<|endoftext|>", "<|endoftext|>", "text")
    transform = fim.FillInTheMiddle(fim.FimConfig(rate=0), vocabulary)
    assert transform(window, np.random.default_rng(0)) is window


def test_is_a_function_of_window_and_generator(vocabulary):
    transform = fim.FillInTheMiddle(fim.FimConfig(rate=1), vocabulary)
    window = pack(vocabulary, UNICODE * 5)
    original = window.copy()
    first, again, other = (transform(window, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(window, original)


@pytest.mark.parametrize("name", ["rate", "spm_rate", "fragment_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_rate_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"\b{name} is {value}"):
        fim.FimConfig(**{name: value})


def test_missing_special_token_names_the_nearest(vocabulary):
    with pytest.raises(ValueError, match=r"'<fim-prefix>'.*'<fim_prefix>'"):
        fim.FillInTheMiddle(fim.FimConfig(prefix_token="<fim-prefix>"), vocabulary)
