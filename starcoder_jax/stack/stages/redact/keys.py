"""Finds keys, tokens and private keys.

What the keys of issuers (AWS, GitHub, Slack, ...) look like is taken from `detect-secrets`, as
StarCoder did. Its patterns are run by RE2, in time linear in the length of the text, and on whole
texts: its own engine runs several passes over every line, and needs time quadratic and worse in the
length of some. Other keys are strings in quotes, or what is assigned to a name such as "api_key",
that look random.
"""

import base64
import functools
import importlib
import itertools
import re
from collections.abc import Iterator

import ahocorasick_rs
import re2
from detect_secrets.filters.heuristic import (
    is_likely_id_string,
    is_potential_uuid,
    is_sequential_string,
)
from detect_secrets.plugins.high_entropy_strings import (
    Base64HighEntropyString,
    HexHighEntropyString,
)

from starcoder_jax.stack.stages.redact.gibberish import entropy, is_gibberish
from starcoder_jax.stack.stages.redact.spans import Span, union

# (module of detect_secrets.plugins, class). StarCoder's, and those of issuers added since: GitLab,
# OpenAI, PyPI and Telegram. StarCoder had neither BasicAuth nor Keyword: they are wrong too often.
_ISSUERS = (
    *(("artifactory", "ArtifactoryDetector"), ("aws", "AWSKeyDetector")),
    *(("azure_storage_key", "AzureStorageKeyDetector"), ("cloudant", "CloudantDetector")),
    *(("discord", "DiscordBotTokenDetector"), ("github_token", "GitHubTokenDetector")),
    *(("gitlab_token", "GitLabTokenDetector"), ("ibm_cloud_iam", "IbmCloudIamDetector")),
    *(("ibm_cos_hmac", "IbmCosHmacDetector"), ("jwt", "JwtTokenDetector")),
    *(("mailchimp", "MailchimpDetector"), ("npm", "NpmDetector"), ("openai", "OpenAIDetector")),
    *(("pypi_token", "PypiTokenDetector"), ("sendgrid", "SendGridDetector")),
    *(("slack", "SlackDetector"), ("softlayer", "SoftlayerDetector")),
    *(("square_oauth", "SquareOAuthDetector"), ("stripe", "StripeDetector")),
    *(("telegram_token", "TelegramBotTokenDetector"), ("twilio", "TwilioKeyDetector")),
)

# Their patterns match identifiers, too: what they find has to look random.
_WEAK = frozenset(
    {
        *("ArtifactoryDetector", "CloudantDetector", "DiscordBotTokenDetector"),
        *("IbmCloudIamDetector", "TelegramBotTokenDetector"),
    }
)

# StarCoder left private keys as they were. They are the worst to leak, and nothing else looks
# like them.
_PRIVATE_KEY = re2.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_CHARACTERS = 20_000
_BASE64_RUN = re.compile("[A-Za-z0-9+/]{40}")
_PUTTY = re2.compile(r"Private-Lines: [0-9]{1,4}\r?\n((?:[A-Za-z0-9+/=]{1,80}\r?\n)+)")

_MIN_ISSUED = 9  # StarCoder's limit for keys
# Encoded data, which the stage `filter` takes care of.
_MAX_LENGTH = 1024
# Linear, too: neither quotes nor backtracking in what is repeated.
_QUOTED = re.compile(r"""(["'`])([A-Za-z0-9+/\-_=]{16,}+)\1""")
_ASSIGNED = re2.compile(
    r"(?i)(?:key|token|secret|passwd|password|auth|credential|bearer)[a-z0-9_.\-]{0,20}"
    r"""["']?\]?(?:[ \t]{0,3}(?::=|=>|[:=])[ \t]{0,3}|[ \t]{1,3})["'`]?(?:bearer |basic )?"""
    r"([a-z0-9+/\-_=]{16,})"
)
# detect-secrets' limits, in bits a character, above which a string in quotes is a key.
_BASE64, _HEX = Base64HighEntropyString(), HexHighEntropyString()
# 32 random characters often have 4.5 only. Less is enough for what is called a key, and consists
# neither of short words nor of the words that keys are called by.
_NAMED_ENTROPY = 3.5
_LONG_WORD = re.compile("[A-Za-z0-9+=]{12}")

_HEX_DIGITS = re.compile("[0-9a-fA-F]+")
_DIGIT = re.compile("[0-9]")
# What stands before a hash, an id or a checksum. The first four are StarCoder's.
_HASH_NAME = re.compile(
    r"(?i)sha|md5|hash|byte|digest|checksum|crc|integrity|fingerprint|thumbprint|commit|revision|"
    r"etag|[ug]uid|public_?key|\b(?:rev|ref|id)\b|_id\b|version|signature"
)
# What stands before a key.
_KEY_NAME = re.compile("(?i)key|token(?!i)|secret|pass|pwd|auth|cred|private|salt|cipher|crypt")


def find_keys(text: str) -> list[Span]:
    """Keys, and every other place where the same characters stand."""
    found = [*_blocks(text), *_issued(text), *_random(text)]
    if not found:
        return []
    return union([*found, *_again(text, found)])


def _again(text: str, found: list[Span]) -> Iterator[Span]:
    values = sorted({text[span.start : span.stop] for span in found})
    # The other implementations need time quadratic in the length of a periodic value.
    automaton = ahocorasick_rs.AhoCorasick(
        values,
        matchkind=ahocorasick_rs.MatchKind.LeftmostLongest,
        implementation=ahocorasick_rs.Implementation.NoncontiguousNFA,
    )
    for _, start, stop in automaton.find_matches_as_indexes(text):
        yield Span(start, stop, "KEY")


def _blocks(text: str) -> Iterator[Span]:
    if "Private-Lines: " in text:
        for match in _PUTTY.finditer(text):
            yield Span(*match.span(1), "KEY")
    if "PRIVATE KEY" not in text:
        return
    for match in _PRIVATE_KEY.finditer(text):
        start = match.end()
        stop = text.find("-----END", start, start + _PRIVATE_KEY_CHARACTERS)
        body = text[start : max(start, stop)]
        if _BASE64_RUN.search(body):
            start += len(body) - len(body.lstrip())
            yield Span(start, start + len(body.strip()), "KEY")


def _issued(text: str) -> Iterator[Span]:
    any_of_them, patterns = _issuers()
    if not any_of_them.search(text):
        return
    for name, pattern, rest in patterns:
        for match in pattern.finditer(text):
            groups = range(1, pattern.groups + 1)
            group = max(groups, key=lambda group: len(match.group(group) or ""), default=0)
            # Shorter groups are parts of a prefix: the key is the whole match.
            value = match.group(group)
            start = match.start(group)
            if value is None or len(value) < _MIN_ISSUED:
                value, start = match.group(), match.start()
            if rest is not None and rest.match(text, start + len(value)):
                continue
            key = value.lstrip(' \t\r\n\v\f=:"')
            start += len(value) - len(key)
            value = key.rstrip(' \t\r\n\v\f"')
            if name in _WEAK and not is_gibberish(value):
                continue
            if name == "JwtTokenDetector" and not _is_jwt(value):
                continue
            if len(value) >= _MIN_ISSUED:
                yield Span(start, start + len(value), "KEY")


@functools.cache
def _issuers():
    """A pattern that matches where any does, and (issuer, pattern, what must not follow) of each.

    RE2 knows no looking around: lookaheads, which end their patterns, are taken out and returned.
    """
    options = re2.Options()
    options.max_mem = 64 << 20
    options.log_errors = False
    patterns, sources = [], []
    for module, name in _ISSUERS:
        plugin = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)()
        for pattern in plugin.denylist:
            source = pattern.pattern.replace(r"(?:(?<=\W)|(?<=^))", r"(?:\W|^)")
            ahead = re.search(r"\(\?!(\[[^\]]*\]|\\w)\)", source)
            if ahead:
                source = source.replace(ahead.group(), "")
            # RE2 repeats at most 1000 times; and the third part of a JSON web token is the last
            # that should stay.
            source = re.sub(r"\{(\d+),\d{4,}\}", r"{\1,}", source)
            source = re.sub(r"\*\?$", "*", source)
            if pattern.flags & re.IGNORECASE:
                source = f"(?i:{source})"
            sources.append(source)
            rest = re.compile(ahead.group(1)) if ahead else None
            patterns.append((name, re2.compile(source, options), rest))
    options.never_capture = True
    return re2.compile("|".join(sources), options), patterns


def _is_jwt(token: str) -> bool:
    header = token.partition(".")[0][:400]
    try:
        return b'"alg"' in base64.urlsafe_b64decode(header[: len(header) // 4 * 4] + "====")
    except ValueError:
        return False


def _random(text: str) -> Iterator[Span]:
    spans = set(_assigned(text))
    yield from sorted(spans)
    for match in _QUOTED.finditer(text):
        value, span = match.group(2), Span(*match.span(2), "KEY")
        # The cheapest test first: most strings are identifiers.
        if not _DIGIT.search(value) or span in spans or len(value) > _MAX_LENGTH:
            continue
        if (
            is_gibberish(value)
            and _may_be_key(text, span)
            and _has_entropy(value, _KEY_NAME.search(_name(text, span)) is not None)
        ):
            yield span


def _assigned(text: str) -> Iterator[Span]:
    for match in _ASSIGNED.finditer(text):
        value, span = match.group(1), Span(*match.span(1), "KEY")
        # What is called, indexed or part of a longer name or path is code.
        if (
            _DIGIT.search(value)
            and len(value) <= _MAX_LENGTH
            and text[span.stop : span.stop + 1] not in ("(", "[", ".", ":", "$", "{", "<")
            and is_gibberish(value)
            and _has_entropy(value, named=True)
            and _may_be_key(text, span)
        ):
            yield span


def _has_entropy(value: str, named: bool) -> bool:
    if _HEX_DIGITS.fullmatch(value):
        # Without a name, nothing tells a key of hexadecimal digits from a hash.
        return named and _HEX.calculate_shannon_entropy(value) > _HEX.entropy_limit
    bits = entropy(value)
    return bits > _BASE64.entropy_limit or (
        named
        and bits > _NAMED_ENTROPY
        and _LONG_WORD.search(value) is not None
        and not _KEY_NAME.search(value)
    )


def _may_be_key(text: str, span: Span) -> bool:
    value = text[span.start : span.stop]
    name = _name(text, span)
    steps = sum(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(value))
    return not (
        _HASH_NAME.search(name)
        or _HASH_NAME.match(value)
        or is_potential_uuid(value)
        or is_sequential_string(value)
        or steps > len(value) / 2  # an alphabet
        or is_likely_id_string(value, name + value)
        or "example" in value.lower()
    )


def _name(text: str, span: Span) -> str:
    """What stands before a value on its line, or on the line before where nothing does."""
    before = text[max(0, span.start - 200) : span.start].rstrip(" \t\r\n\"'`")
    return before.rpartition("\n")[2]
