"""Which licenses are permissive, and under which one a Python package declares itself."""

import re
from collections.abc import Sequence

# SPDX identifiers of licenses that ask for attribution at most.
PERMISSIVE_LICENSES = (
    *("0BSD", "Apache-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-2-Clause-Patent"),
    *("BSD-3-Clause", "BSD-3-Clause-Clear", "BlueOak-1.0.0", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "NCSA", "PostgreSQL"),
    *("PSF-2.0", "Python-2.0", "Python-2.0.1", "Unlicense", "UPL-1.0", "WTFPL", "X11"),
    *("Zlib", "ZPL-2.1", "LicenseRef-BSD", "LicenseRef-Public-Domain"),
)
_PERMISSIVE = {name.lower(): name for name in PERMISSIVE_LICENSES}

# What classifiers and free-text license fields call them. "BSD" alone leaves the number of clauses
# open, hence the LicenseRef.
_NAMES = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
    "blue oak model license (blueoak-1.0.0)": "BlueOak-1.0.0",
    "boost software license 1.0 (bsl-1.0)": "BSL-1.0",
    "bsd": "LicenseRef-BSD",
    "bsd license": "LicenseRef-BSD",
    "bsd 2-clause": "BSD-2-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "2-clause bsd": "BSD-2-Clause",
    "2-clause bsd license": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "modified bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "cc0": "CC0-1.0",
    "cc0 1.0 universal (cc0 1.0) public domain dedication": "CC0-1.0",
    "expat": "MIT",
    "historical permission notice and disclaimer (hpnd)": "HPND",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mit no attribution license (mit-0)": "MIT-0",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
    "public domain": "LicenseRef-Public-Domain",
    "psf": "PSF-2.0",
    "psf license": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense": "Unlicense",
    "the unlicense (unlicense)": "Unlicense",
    "universal permissive license (upl)": "UPL-1.0",
    "university of illinois/ncsa open source license": "NCSA",
    "zlib/libpng license": "Zlib",
    "zope public license": "ZPL-2.1",
}
_FULL_TEXTS = (
    (re.compile(r"apache license version 2\.0 january 2004 "), "Apache-2.0"),
    (re.compile(r"(the )?mit license .*permission is hereby granted free of charge"), "MIT"),
)
_COPYLEFT = re.compile(
    r"\b[al]?gpl|\bmpl\b|\bepl\b|\bcddl\b|\beupl\b|copyleft|general public license|mozilla public",
    re.IGNORECASE,
)
_COPYLEFT_NOTICE = re.compile(
    r"spdx-license-identifier: ?(?:[al]?gpl|mpl|epl|cddl|eupl)"
    r"|gnu (?:\w+ )?general public license|(?:mozilla|eclipse) public license"
)
_HEADER_LENGTH = 4000


def permissive_part(expression: str) -> str | None:
    """Returns the license that remains of an SPDX expression, or None if it is not permissive.

    Of alternatives ("OR") the first permissive one remains; of licenses that hold together ("AND")
    all must be permissive. An exception ("WITH") only ever grants more, and stays.
    """
    words = re.findall(r"[()]|[^\s()]+", expression)
    try:
        license, rest = _alternatives(words)
    except _MalformedError:
        return None
    return None if rest else license


def package_license(
    expression: str | None, field: str | None, classifiers: Sequence[str]
) -> str | None:
    """Returns the SPDX license of a Python package, or None unless it is clearly permissive.

    Args:
        expression: The metadata's License-Expression; where there is one, it alone counts.
        field: The metadata's free-text License.
        classifiers: The metadata's classifiers. Several licenses among them must all be permissive.
    """
    if expression:
        return permissive_part(expression)
    named = [name for name in (_classified_license(text) for text in classifiers) if name]
    if any(name not in _NAMES for name in named):
        return None
    by_field = _license_of_field(field) if field else None
    if field and by_field is None and "\n" not in field.strip() and _COPYLEFT.search(field):
        return None
    return by_field or " AND ".join(dict.fromkeys(_NAMES[name] for name in named)) or None


def has_copyleft_notice(text: str) -> bool:
    """Whether the first 4,000 characters of a file name a copyleft license."""
    header = text[:_HEADER_LENGTH].lower()
    if "public" not in header and "spdx" not in header:
        return False
    # A notice may be wrapped over several lines of a comment.
    return _COPYLEFT_NOTICE.search(re.sub(r"[\s#*/;]+", " ", header)) is not None


def license_names(value: object) -> str:
    """Returns a data set's license column, one name or a list of them, as one expression."""
    if isinstance(value, str):
        return value.strip() or "unknown"
    if isinstance(value, Sequence):
        return " AND ".join(str(name) for name in value) or "unknown"
    return "unknown"


class _MalformedError(Exception):
    pass


def _alternatives(words: list[str]) -> tuple[str | None, list[str]]:
    license, words = _conjunction(words)
    while words and words[0].upper() == "OR":
        alternative, words = _conjunction(words[1:])
        license = license or alternative
    return license, words


def _conjunction(words: list[str]) -> tuple[str | None, list[str]]:
    part, words = _term(words)
    parts = [part]
    while words and words[0].upper() == "AND":
        part, words = _term(words[1:])
        parts.append(part)
    return (None if None in parts else " AND ".join(dict.fromkeys(parts))), words


def _term(words: list[str]) -> tuple[str | None, list[str]]:
    if not words or words[0] == ")" or words[0].upper() in ("AND", "OR", "WITH"):
        raise _MalformedError
    if words[0] == "(":
        license, words = _alternatives(words[1:])
        if words[:1] != [")"]:
            raise _MalformedError
        return license, words[1:]
    license, words = _PERMISSIVE.get(words[0].lower()), words[1:]
    if words and words[0].upper() == "WITH":
        if len(words) < 2:
            raise _MalformedError
        license = license and f"{license} WITH {words[1]}"
        words = words[2:]
    return license, words


def _classified_license(classifier: str) -> str | None:
    parts = classifier.split(" :: ")
    if parts[0] != "License" or parts[-1] in ("License", "OSI Approved"):
        return None
    return parts[-1].strip().lower()


def _license_of_field(field: str) -> str | None:
    name = re.sub(r"[\s,]+", " ", field).strip().lower()
    if name in _NAMES:
        return _NAMES[name]
    for pattern, license in _FULL_TEXTS:
        if pattern.match(name):
            return license
    return permissive_part(field)
