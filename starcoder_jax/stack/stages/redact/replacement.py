"""What stands for a person's data, and which findings of a model are replaced."""

import hashlib
import string
from collections.abc import Sequence

from starcoder_jax.stack.record import stable_hash
from starcoder_jax.stack.stages.redact.addresses import is_public_address
from starcoder_jax.stack.stages.redact.gibberish import is_gibberish
from starcoder_jax.stack.stages.redact.spans import IGNORED_TYPES, TYPES, Span

# Private addresses, published with StarCoder's pipeline.
IPV4 = ("172.16.31.10", "172.16.58.3", "172.16.17.32", "192.168.127.12", "192.168.3.11")
IPV6 = (
    *("fd00:c2b6:b24b:be67:2827:688d:e6a1:6a3b", "fd00:a516:7c1b:17cd:6d81:2137:bd2a:2c5b"),
    *("fc00:e968:6179::de52:7100", "fc00:db20:35b:7399::5", "fdf8:f53e:61e4::18"),
)

STYLES = ("starcoder", "santacoder")


def substitute(style: str, of: str, value: str, file: str, seed: int) -> tuple[str | None, str]:
    """What a value is replaced by: a special token or None, and text.

    Args:
        style: "starcoder": <EMAIL>, <KEY>, <NAME> and <PASSWORD>, which are special tokens of
            StarCoder2's vocabulary, and one of `IPV4` or `IPV6`. "santacoder": five random letters
            @example.com for an e-mail address, 32 random letters and digits for a key.
        of: one of `TYPES`.
        value: what is replaced; the same in the same file is replaced by the same.
        file: names the file.
        seed: of the choices.
    """
    identity = f"{file}\0{of}\0{value}"
    if of == "IP_ADDRESS":
        addresses = IPV6 if ":" in value else IPV4
        return None, addresses[stable_hash(identity, seed) % len(addresses)]
    if style == "santacoder" and of == "EMAIL":
        return None, _random(identity, seed, 5, string.ascii_lowercase) + "@example.com"
    if style == "santacoder" and of == "KEY":
        return None, _random(identity, seed, 32, string.ascii_lowercase + string.digits)
    return f"<{of}>", ""


def _random(identity: str, seed: int, count: int, alphabet: str) -> str:
    data = hashlib.shake_256(f"{seed}\0{identity}".encode()).digest(4 * count)
    numbers = (int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4))
    return "".join(alphabet[number % len(alphabet)] for number in numbers)


def accepted(text: str, spans: Sequence[Span], detector: str) -> list[Span]:
    """The spans of a model that StarCoder's rules replace.

    They have more than 3 characters; a key more than 8, which look random; a name has two words
    or more; an IP address is valid, not private, and none of the well-known `DNS_SERVERS`.

    Raises:
        ValueError: a span is not within the text, or of no known type.
    """
    chosen = []
    for span in spans:
        start, stop, of = span
        if not 0 <= start <= stop <= len(text):
            raise ValueError(
                f"redact.detectors: {detector} found a span [{start}, {stop}) in a text of "
                f"{len(text)} characters"
            )
        if of not in TYPES + IGNORED_TYPES:
            raise ValueError(
                f"redact.detectors: {detector} found a span of type {of!r}; there are "
                f"{', '.join(TYPES + IGNORED_TYPES)}"
            )
        value = text[start:stop]
        if (
            of in TYPES
            and len(value) > 3
            and (of != "KEY" or (len(value) > 8 and is_gibberish(value)))
            and (of != "NAME" or len(value.split()) > 1)
            and (of != "IP_ADDRESS" or is_public_address(value))
        ):
            chosen.append(Span(start, stop, of))
    return chosen
