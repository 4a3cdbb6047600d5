"""Recognizes licenses by what a text says: whole license texts, and notices of a few lines."""

import dataclasses
import functools
from collections.abc import Iterator

import re2
from identify.vendor.licenses import LICENSES

from starcoder_jax.stack.stages.identify.spdx import PROPRIETARY, UNKNOWN, canonical, held_licenses

# Notices stand at the beginning of a file.
_NOTICE_BYTES = 4000
_MAX_TEXT_BYTES = 200_000
_TAG = re2.compile(rb"SPDX-License-Identifier:[ \t]*([^\r\n]{1,400})")
_TAG_END = re2.compile(rb"\s*(?:\*/|-->|--%>|\*\)|#\}|%\}|\|#|=#|-\}|\"\"\"|''').*$|[\s\"'`;,]+$")

# A license text is found where nearly all sequences of so many of its words are.
_SEQUENCE = 4
_MIN_CONTAINED = 0.9

# ASCII letters in lower case and digits stay, anything else separates words.
_TO_WORDS = bytes(
    ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else ord(" ")
    for byte in range(256)
)

# Phrases over `_words`. Alternatives are bounded: all of them are searched for at once, by one
# automaton whose size must stay small.
_LICENSE = "licen[cs]e"
_UNDER = "(?:under|by|is) (?:the |a )?(?:terms of )?(?:the )?"
_PHRASES = {
    "mit grant": "permission is hereby granted free of charge to any person obtaining a copy",
    "mit notice": "(?:above|this) (?:copyright|permission) notice",
    "mit name": f"{_UNDER}(?:mit|expat|mit x11|x11)(?: style)? {_LICENSE}"
    f"|(?:the|licensed) (?:mit|expat) {_LICENSE}|{_LICENSE}s? mit\\b",
    "bsd grant": "redistribution and use in source and binary forms",
    "bsd advertising": "all advertising materials mentioning",
    "bsd endorsement": "neither the names? |(?:may|must) not be used to endorse",
    "bsd name": f"{_UNDER}(?:new |modified |simplified |revised |[234] clause )?bsd"
    f"(?: style| [234] clause)? {_LICENSE}|3 clause bsd {_LICENSE}|bsd 3 clause {_LICENSE}",
    "isc grant": "permission to use copy modify and (?:or )?distribute this software for any "
    "purpose with or without fee is hereby granted",
    "isc condition": "hereby granted provided",
    "isc name": f"{_UNDER}isc {_LICENSE}",
    "hpnd grant": "permission to use copy modify (?:and )?(?:distribute|sell)",
    "apache": f"apache {_LICENSE} version 2|apache 2 0 {_LICENSE}|apache {_LICENSE} 2 0",
    "boost": f"boost software {_LICENSE}",
    "zlib grant": "in no event will the authors be held liable",
    "zlib condition": "software must not be misrepresented",
    "zlib name": f"{_UNDER}zlib(?: libpng)? {_LICENSE}",
    "unlicense": "this is free and unencumbered software released into the public domain",
    "cc0": "cc0 1 0|creative commons zero|publicdomain zero 1 0",
    "blessing": "the author disclaims copyright to this source code",
    "public domain": "(?:is|are|been|it|hereby) (?:hereby )?"
    "(?:in|(?:placed|put|released|dedicated) (?:in|into|to)) the public domain",
    "psf": f"psf {_LICENSE} agreement|licensed to psf under a contributor agreement"
    f"|python software foundation {_LICENSE}",
    "upl": f"universal permissive {_LICENSE}",
    "ncsa": f"university of illinois (?:ncsa )?open source {_LICENSE}",
    "postgresql": f"postgresql {_LICENSE}",
    "wtfpl": f"do what the fuck you want to public {_LICENSE}",
    "fsfap": "copying and distribution of this file with or without modification are permitted",
    "fsfullr": "free software foundation gives unlimited permission to copy",
    "zope": f"zope public {_LICENSE}",
    "php": f"version 3 01? of the php {_LICENSE}",
    "w3c": f"w3c software (?:notice and )?{_LICENSE}",
    "perl": "same terms as (?:the )?perl(?: 5)?(?: programming language system)? itself",
    "artistic": f"the artistic {_LICENSE}",
    "artistic 2": f"artistic {_LICENSE} (?:version )?2",
    "mpl": f"mozilla public {_LICENSE}",
    "mpl 1.0": f"mozilla public {_LICENSE} (?:version |v )?v?1 0",
    "mpl 1.1": f"mozilla public {_LICENSE} (?:version |v )?v?1 1",
    "epl": f"eclipse public {_LICENSE}",
    "epl 1": f"eclipse public {_LICENSE} (?:version |v )?v?1",
    "cddl": f"common development and distribution {_LICENSE}",
    "cpl": f"common public {_LICENSE}",
    "eupl": f"european union public {_LICENSE}",
    "osl": f"open software {_LICENSE}",
    "lppl": f"latex project public {_LICENSE}",
    "ofl": f"sil open font {_LICENSE}",
    "gfdl": f"gnu free documentation {_LICENSE}",
    "ms-rl": f"microsoft reciprocal {_LICENSE}",
    "ms-pl": f"microsoft public {_LICENSE}",
    "sspl": f"server side public {_LICENSE}",
    "busl": f"business source {_LICENSE}",
    "cc-by": "creative commons attribution",
    "cc-by-nc": "creative commons attribution non ?commercial",
    "cc-by-sa": "creative commons attribution share ?alike",
    "cc-by-nd": "creative commons attribution no ?deriv",
    "proprietary": "proprietary and confidential|confidential and proprietary"
    "|unauthorized (?:copying|use|distribution) of this (?:file|software)",
}
# Groups of similar licenses: of each, the first whose phrases are all there counts.
_RULES: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...] = (
    (("MIT", ("mit grant", "mit notice")), ("MIT-0", ("mit grant",)), ("MIT", ("mit name",))),
    (
        ("BSD-4-Clause", ("bsd grant", "bsd advertising")),
        ("BSD-3-Clause", ("bsd grant", "bsd endorsement")),
        ("BSD-2-Clause", ("bsd grant",)),
        ("LicenseRef-BSD", ("bsd name",)),
    ),
    (
        ("ISC", ("isc grant", "isc condition")),
        ("0BSD", ("isc grant",)),
        ("ISC", ("isc name",)),
        ("PostgreSQL", ("postgresql",)),
        ("HPND", ("hpnd grant",)),
    ),
    (("Apache-2.0", ("apache",)),),
    (("BSL-1.0", ("boost",)),),
    (("Zlib", ("zlib grant", "zlib condition")), ("Zlib", ("zlib name",))),
    (
        ("Unlicense", ("unlicense",)),
        ("CC0-1.0", ("cc0",)),
        ("blessing", ("blessing",)),
        ("LicenseRef-scancode-public-domain", ("public domain",)),
    ),
    (("PSF-2.0", ("psf",)),),
    (("UPL-1.0", ("upl",)),),
    (("NCSA", ("ncsa",)),),
    (("WTFPL", ("wtfpl",)),),
    (("FSFAP", ("fsfap",)),),
    (("FSFULLR", ("fsfullr",)),),
    (("ZPL-2.1", ("zope",)),),
    (("PHP-3.01", ("php",)),),
    (("W3C", ("w3c",)),),
    (("Artistic-1.0-Perl AND GPL-1.0-or-later", ("perl",)),),
    (("Artistic-2.0", ("artistic 2",)), ("Artistic-1.0", ("artistic",))),
    (("MPL-1.0", ("mpl 1.0",)), ("MPL-1.1", ("mpl 1.1",)), ("MPL-2.0", ("mpl",))),
    (("EPL-1.0", ("epl 1",)), ("EPL-2.0", ("epl",))),
    (("CDDL-1.0", ("cddl",)),),
    (("CPL-1.0", ("cpl",)),),
    (("EUPL-1.2", ("eupl",)),),
    (("OSL-3.0", ("osl",)),),
    (("LPPL-1.3c", ("lppl",)),),
    (("OFL-1.1", ("ofl",)),),
    (("GFDL-1.3-only", ("gfdl",)),),
    (("MS-RL", ("ms-rl",)), ("MS-PL", ("ms-pl",))),
    (("SSPL-1.0", ("sspl",)),),
    (("BUSL-1.1", ("busl",)),),
    (
        ("CC-BY-NC-4.0", ("cc-by-nc",)),
        ("CC-BY-SA-4.0", ("cc-by-sa",)),
        ("CC-BY-ND-4.0", ("cc-by-nd",)),
        ("CC-BY-4.0", ("cc-by",)),
    ),
    ((PROPRIETARY, ("proprietary",)),),
)
_GNU = re2.compile(
    rb"gnu (lesser |library |affero |)general public licen[cs]e"
    rb"|common licenses (lgpl|gpl)|\b(l|a|)gpl ?(?:v|version )[123]"
)
_GNU_NAMES = {
    b"": ("GPL", "1.0"),
    b"lesser ": ("LGPL", "2.0"),
    b"library ": ("LGPL", "2.0"),
    b"affero ": ("AGPL", "3.0"),
    b"lgpl": ("LGPL", "2.0"),
    b"gpl": ("GPL", "1.0"),
    b"l": ("LGPL", "2.0"),
    b"a": ("AGPL", "3.0"),
}
# Python's license says so of other software.
_NO_GRANT = b"material that was previously distributed under the "
_GNU_VERSION = re2.compile(rb"(?:\b(?:version |v ?)|gpl |gplv)([123])(?: ([01])\b)?")


def tagged_license(content: bytes, permissive: frozenset[str]) -> list[str]:
    """The licenses of the SPDX-License-Identifier tags within a file's first 4,000 bytes."""
    head = content[:_NOTICE_BYTES]
    if b"SPDX-License-Identifier:" not in head:
        return []
    found: dict[str, None] = {}
    for tag in _TAG.finditer(head):
        expression = _TAG_END.sub(b"", tag[1]).decode(errors="replace")
        found.update(dict.fromkeys(held_licenses(expression, permissive)))
    return list(found)


def noticed_licenses(content: bytes) -> list[str]:
    """The licenses that the first 4,000 bytes of a file say it is under."""
    return _noticed(_words(content[:_NOTICE_BYTES]))


def licenses_of_text(content: bytes, permissive: frozenset[str]) -> list[str]:
    """The licenses in the text of a license file; `UNKNOWN` where none is recognized.

    Whole texts are looked for first, those of choosealicense.com, which the identify package
    carries. Unless one of these is not permissive, notices count too: the texts of copyleft
    licenses speak of each other. The first 200,000 bytes are looked at.
    """
    text = _words(content[:_MAX_TEXT_BYTES])
    found = _contained(text.split())
    if permissive.issuperset(found):
        # What these texts themselves say is no further notice.
        own = {notice for known in _texts() if known.license in found for notice in known.notices}
        found += [notice for notice in _noticed(text) if notice not in found and notice not in own]
    return found or [UNKNOWN]


def _words(content: bytes) -> bytes:
    return b" ".join(content.translate(_TO_WORDS).split())


@functools.cache
def _phrases() -> re2.Set:
    options = re2.Options()
    options.max_mem = 64 << 20
    phrases = re2.Set.SearchSet(options)
    for pattern in _PHRASES.values():
        phrases.Add(pattern.encode())
    phrases.Compile()
    return phrases


def _noticed(words: bytes) -> list[str]:
    labels = list(_PHRASES)
    present = {labels[number] for number in _phrases().Match(words) or ()}
    found: dict[str, None] = {}
    for rules in _RULES if present else ():
        for name, phrases in rules:
            if present.issuperset(phrases):
                found.update(dict.fromkeys(name.split(" AND ")))
                break
    found.update(dict.fromkeys(_gnu_licenses(words)))
    return list(found)


def _gnu_licenses(words: bytes) -> Iterator[str]:
    versions: dict[str, str | None] = {}
    oldest = {}
    for mention in _GNU.finditer(words):
        if words.endswith(_NO_GRANT, 0, mention.start()):
            continue
        name, first = _GNU_NAMES[mention[1] or mention[2] or mention[3] or b""]
        oldest[name] = first
        if versions.get(name):
            continue
        around = words[max(mention.start() - 20, 0) : mention.end() + 160]
        version = _GNU_VERSION.search(around)
        versions[name] = None
        if version is not None:
            later = "or-later" if b"later" in around else "only"
            minor = "1" if name == "LGPL" and version[2] == b"1" else "0"
            versions[name] = f"{name}-{version[1].decode()}.{minor}-{later}"
    for name, version in versions.items():
        yield canonical(version or "") or f"{name}-{oldest[name]}-or-later"


@dataclasses.dataclass(frozen=True)
class _Text:
    license: str
    sequences: frozenset[tuple[bytes, ...]]
    notices: tuple[str, ...]


@functools.cache
def _texts() -> list[_Text]:
    return [
        _Text(canonical(name) or name, frozenset(_sequences(words.split())), tuple(_noticed(words)))
        for name, words in ((name, _words(text.encode())) for name, text in LICENSES)
    ]


def _sequences(words: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    return zip(*(words[start:] for start in range(_SEQUENCE)), strict=False)


def _contained(words: list[bytes]) -> list[str]:
    left = set(_sequences(words))
    found = []
    while left:
        # The text that explains most goes first: others that share much of it are then gone.
        shared = [(len(text.sequences & left), text) for text in _texts()]
        matches = [
            (count, text.license, text)
            for count, text in shared
            if count >= _MIN_CONTAINED * len(text.sequences)
        ]
        if not matches:
            break
        _, _, text = max(matches, key=lambda match: match[:2])
        found.append(text.license)
        left -= text.sequences
    return found
