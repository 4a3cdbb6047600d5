"""Finds e-mail and IP addresses, in time linear in the length of a text, whatever it is.

Patterns are RE2's, or are matched within the reach of one place.
"""

import ipaddress
import re

import re2

from starcoder_jax.stack.stages.redact.spans import Span

# Well-known resolvers, which say nothing about anybody; the list is StarCoder's.
DNS_SERVERS = frozenset(
    {
        *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "76.76.19.19", "76.223.122.150", "9.9.9.9"),
        *("149.112.112.112", "208.67.222.222", "208.67.220.220", "8.26.56.26", "8.20.247.20"),
        *("94.140.14.14", "94.140.15.15"),
    }
)

# Both are matched from the "@": the first on what stands before it, from right to left.
_LOCAL = re.compile(r"[\w.%+-]{1,64}")
_DOMAIN = re.compile(r"(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}")

# Domains for examples: RFC 2606, RFC 6761 and RFC 6762.
_EXAMPLE_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost|local)$"
)

# Any two letters may be a country. Longer than that, what follows the last dot is a domain only
# where it is one of these: matrices are multiplied by "@", too (`a@b.transpose`).
_GENERIC_DOMAINS = frozenset(
    re.findall(
        "[a-z]+",
        "com org net edu gov mil int info biz pro aero coop museum mobi tel jobs travel cat "
        "asia arpa dev app xyz online site tech cloud email club shop store blog page wiki live "
        "life world today news media agency digital design studio systems solutions services "
        "software company group team network center academy institute university foundation "
        "social space website host engineering technology global international consulting",
    )
)
_FILE_SUFFIXES = frozenset({"js", "ts", "cs", "rb", "kt", "hs", "vb", "gz", "xz", "db", "ui", "qt"})

_IPV4 = re2.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
# The first group is that of an address on the Internet (2000::/3).
_IPV6 = re2.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,29}")
_INTERNET = ipaddress.ip_network("2000::/3")
_NUMBERED = re.compile(r"(?i)(?:version|release|section|chapter|\bver|\boid)[^\n]*$")
# Object identifiers, of X.509 and others.
_OBJECT = re.compile(r"2\.5\.(?:4|29)\.|1\.3\.(?:6|14|36|101|132)\.")
_RESOLVER = re.compile("(?i)dns|server")
_RANGE = re.compile(r"-\d{1,3}\.\d{1,3}\.")


def find_emails(text: str) -> list[Span]:
    """Addresses of people: neither those of examples (RFC 2606), nor logins (`git@host:path`)."""
    if "@" not in text:
        return []
    spans = []
    last, at = 0, text.find("@")
    while at >= 0:
        span = _email_around(text, at, last)
        if span is not None:
            spans.append(span)
            last = span.stop
        at = text.find("@", at + 1)
    return spans


def _email_around(text: str, at: int, last: int) -> Span | None:
    """The address whose "@" this is, and which begins after `last`."""
    reversed_local = _LOCAL.match(text[max(last, at - 64) : at][::-1])
    right = _DOMAIN.match(text, at + 1) if reversed_local else None
    if right is None:
        return None
    local, domain, stop = reversed_local.group()[::-1], right.group(), right.end()
    before = at - len(local) - 1
    if before >= 0 and text[before] == "\\" and local[0] in "nrt":
        local = local[1:]  # of the escape sequence before the address
    local = local.lstrip(".%+-")
    start = at - len(local)
    host, _, suffix = domain.rpartition(".")
    if suffix[0].isupper() and not domain.isupper() and "." in host:
        domain, stop = host, stop - len(suffix) - 1  # the next sentence begins
    if not local or not _is_mailbox(local, domain.lower(), text, start, stop):
        return None
    return Span(start, stop, "EMAIL")


def _is_mailbox(local: str, domain: str, text: str, start: int, stop: int) -> bool:
    suffix = domain.rpartition(".")[2]
    if suffix in _FILE_SUFFIXES or (len(suffix) != 2 and suffix not in _GENERIC_DOMAINS):
        return False
    after = text[stop : stop + 1]
    if after.isalnum() or after in ("_", "("):
        return False
    if local == "git" or _EXAMPLE_DOMAIN.search(domain):
        return False
    # In https://user:password@host and ssh://user@host, somebody logs in.
    _, scheme, authority = text[max(0, start - 100) : start].rpartition("://")
    return not scheme or any(character in authority for character in " \t\n/?&=\"'<>")


def find_ip_addresses(text: str) -> list[Span]:
    """Addresses on the Internet, of version 4 and 6: neither private ones, nor `DNS_SERVERS`."""
    spans = []
    for pattern in (_IPV4, _IPV6):
        last = 0
        for match in pattern.finditer(text):
            start, stop = match.span()
            if text[stop - 1] == ":" != text[stop - 2]:
                stop -= 1  # a colon after the address
            if (
                _stands_alone(text, start, stop, last)
                and is_public_address(text[start:stop])
                and not _is_number(text, start, stop)
            ):
                spans.append(Span(start, stop, "IP_ADDRESS"))
            last = stop
    return sorted(spans)


def _stands_alone(text: str, start: int, stop: int, last: int) -> bool:
    """Whether an address is no part of something longer, such as 1.3.6.1.4.1 or x-1.2.3.4.zip."""
    before, after = text[max(0, start - 2) : start], text[stop : stop + 2]
    if before[-1:].isalnum() or before[-1:] in ("_", "."):
        return False
    if before[-1:] == "-" and last != start - 1:
        return False
    if before[-1:] == "/" and before[0].isalpha():  # Mozilla/5.0.1.20
        return False
    if after[:1] == "-":
        return _RANGE.match(text, stop) is not None
    return not (
        after[:1].isalnum() or after[:1] == "_" or (after[:1] == "." and after[1:].isalnum())
    )


def _is_number(text: str, start: int, stop: int) -> bool:
    if ":" in text[start:stop]:
        return sum(map(bool, text[start:stop].split(":"))) < 3  # items[2000::2]
    if _NUMBERED.search(text[max(0, start - 40) : start]) or _OBJECT.match(text, start):
        return True
    # Four single digits are seldom an address. The rule is that of StarCoder's predecessor.
    return stop - start == 7 and not _RESOLVER.search(text[max(0, start - 100) : stop + 100])


def is_public_address(text: str) -> bool:
    """Whether a text is an address that StarCoder's rules replace."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and address not in _INTERNET:
        return False
    return address.is_global and not address.is_multicast and text not in DNS_SERVERS
