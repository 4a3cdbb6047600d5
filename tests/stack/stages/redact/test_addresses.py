import ipaddress
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.redact.addresses import (
    DNS_SERVERS,
    find_emails,
    find_ip_addresses,
    is_public_address,
)


def found(detector, text):
    return [text[span.start : span.stop] for span in detector(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jo@corp.com", ["jo@corp.com"]),
        (
            "<Jo.Doe+x@sub.corp.co.uk>, 'a_b-c%d@x-y.io'",
            ["Jo.Doe+x@sub.corp.co.uk", "a_b-c%d@x-y.io"],
        ),
        ("mailto:jo@corp.com?cc=al@corp.com&x", ["jo@corp.com", "al@corp.com"]),
        ("Ask jo@corp.com. Or not.", ["jo@corp.com"]),
        ("Ask jo@corp.com.Or not", ["jo@corp.com"]),
        ("JO@CORP.COM", ["JO@CORP.COM"]),
        (r'"\njo@corp.com\n"', ["jo@corp.com"]),
        ("..jo@corp.com", ["jo@corp.com"]),
        ("josé@mañana.es и@почта.ru", ["josé@mañana.es", "и@почта.ru"]),
        ("https://x.com/?to=jo@corp.com", ["jo@corp.com"]),
        ("jo@corp.com@corp.com", ["jo@corp.com"]),
        ("jo@example.com jo@mail.example.org a@b.test c@d.local e@f.example", []),
        ("git@github.com:a/b.git ssh://deploy@host.com/x https://u:p@host.com", []),
        ("a@b.T x@y.transpose(1) a@b.dot a@b.is(c) f@g.py_x", []),
        ("icon@2x.png pkg@1.2.3 @scope/name user@localhost return@forEach", []),
        ("jo@corp.com1 jo@.com jo@corp..com @corp.com jo@", []),
        ("@" * 50 + "a@", []),
    ],
)
def test_emails(text, expected):
    assert found(find_emails, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("93.184.216.34", ["93.184.216.34"]),
        ("http://93.184.216.34:80/ 5.35.16.2.", ["93.184.216.34", "5.35.16.2"]),
        ("93.184.216.34-93.184.216.40 5.91.0.0/16", ["93.184.216.34", "93.184.216.40", "5.91.0.0"]),
        ("host:93.184.216.34", ["93.184.216.34"]),
        ("[2a00:1450:4001:81b::200e]:443", ["2a00:1450:4001:81b::200e"]),
        ("2606:4700:20:0:0:0:681a:be8: x", ["2606:4700:20:0:0:0:681a:be8"]),
        ("2a00:1450:4001::/48", ["2a00:1450:4001::"]),
        ("10.1.2.3 172.16.0.1 192.168.0.1 127.0.0.1 0.0.0.0 169.254.1.1 255.255.255.0", []),
        ("192.0.2.1 198.51.100.7 203.0.113.9 100.64.0.1 224.0.0.1", []),
        (" ".join(sorted(DNS_SERVERS)), []),
        ("1.3.6.1.4.1.311 2.5.4.3 2.5.29.15 1.2.3.4.5 256.1.1.300 033.10.20.30", []),
        ("v14.12.10.13 x-14.12.10.13 14.12.10.13-beta lib.so.14.12.10.13 14.12.10.13.tar", []),
        ('version = "14.12.10.13" Release 15.0.20.41 Mozilla/15.0.20.41 section 14.10.22.70', []),
        ("4.3.2.1", []),
        ("dns 4.3.2.1", ["4.3.2.1"]),
        ("fe80::1 ::1 fd00:1::2 2001:db8::1 ff02::1 12:30:45 00:1a:2b:3c:4d:5e", []),
        ("std::vector a::b f64::e 2024::max x[2000::2] 3fff:x", []),
        ("2a00:1450:4001:81b::200g", []),
    ],
)  # fmt: skip
def test_ip_addresses(text, expected):
    assert found(find_ip_addresses, text) == expected


@settings(deadline=None)
@given(
    st.ip_addresses(v=4), st.sampled_from(["'{}'", "ip {},", "ssh a@{}", "{}:80", "({})", "{}\n"])
)
def test_every_public_address_is_found(address, frame):
    text = "dns " + frame.format(address)
    assert found(find_ip_addresses, text) == [str(address)] * is_public_address(str(address))


@settings(deadline=None)
@given(st.ip_addresses(v=6, network="2a00::/12"))
def test_every_public_address_of_version_6_is_found(address):
    groups = sum(map(bool, str(address).split(":")))
    assert found(find_ip_addresses, f"<{address}>") == [str(address)] * (groups > 2)


@settings(deadline=None)
@given(st.text(st.sampled_from("1234567890.:abcf-/ \n"), max_size=60))
def test_what_is_found_is_an_address(text):
    for address in found(find_ip_addresses, text):
        assert ipaddress.ip_address(address).is_global


@settings(deadline=None)
@given(st.text(st.sampled_from("ab.@-_ \n:/é1"), max_size=60))
def test_what_is_found_has_an_at_sign_and_a_dot(text):
    spans = find_emails(text)
    assert all(span.stop <= other.start for span, other in itertools.pairwise(spans))
    for span in spans:
        local, _, domain = text[span.start : span.stop].partition("@")
        assert local and "." in domain and "@" not in domain
