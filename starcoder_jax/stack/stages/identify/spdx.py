"""Names of licenses, and which of them are permissive.

Names and categories are those of ScanCode's license database, which the license-expression package
carries. The Stack v2 calls a license permissive that ScanCode's categories "Permissive" and "Public
Domain" or the Blue Oak Council's list have (arXiv:2402.19173, section 2).
"""

import functools
from collections.abc import Iterable, Sequence

import license_expression

from starcoder_jax.data.licenses import PERMISSIVE_LICENSES

# Of a text or name that speaks of a license which is not recognized.
UNKNOWN = "LicenseRef-scancode-unknown-license-reference"
PROPRIETARY = "LicenseRef-scancode-proprietary-license"

# What stands in license files beside licenses and says nothing about the code, as in The Stack v2.
_NO_LICENSES = frozenset(
    f"LicenseRef-scancode-{name}"
    for name in (
        *("dco-1.1", "generic-cla", "generic-exception", "generic-export-compliance"),
        *("generic-tos", "generic-trademark", "google-cla", "jetty-ccla-1.1"),
        *("newton-king-cla", "warranty-disclaimer"),
    )
)
_MAX_EXPRESSION = 1000


def canonical(name: str) -> str | None:
    """The SPDX identifier of a license, whatever its case, or of its ScanCode key; else None."""
    return _identifiers().get(name.strip().lower())


@functools.cache
def permissive_licenses(further: tuple[str, ...] = ()) -> frozenset[str]:
    """SPDX identifiers of all permissive licenses.

    Args:
        further: Identifiers that count as permissive too, such as those of another list.

    Raises:
        ValueError: one of these is no SPDX identifier.
    """
    for name in further:
        if canonical(name) is None:
            raise ValueError(f"{name!r} is no SPDX identifier of a license, nor a ScanCode key")
    names = {
        entry["spdx_license_key"]
        for entry in _entries()
        if entry["category"] in ("Permissive", "Public Domain")
    }
    return frozenset((*names, *PERMISSIVE_LICENSES, *(canonical(name) for name in further)))


def held_licenses(expression: str, permissive: frozenset[str]) -> list[str]:
    """The licenses that an SPDX expression leaves one with.

    Of alternatives ("OR", or "/" of old) the first that is permissive as a whole is taken, and all
    of them where none is. An exception ("WITH") only ever grants more, and is left out. What is no
    expression, or names an unknown license, gives `UNKNOWN`.
    """
    text = expression.strip()
    if not text or len(text) > _MAX_EXPRESSION:
        return [UNKNOWN]
    if (name := canonical(text)) is not None:
        return [name]
    try:
        tree = license_expression.Licensing().parse(text.replace("/", " OR "))
    except (license_expression.ExpressionError, RecursionError, IndexError, AssertionError):
        # The last two are what the parser makes of "()" and "(AND MIT".
        return [UNKNOWN]
    return list(dict.fromkeys(_held(tree, permissive)))


def license_type(
    declared: Sequence[str], detected: Iterable[str], permissive: frozenset[str]
) -> str:
    """The Stack v2's rule: "permissive", "no_license" or "non_permissive".

    Args:
        declared: As the source of the data has it for the repository; alone it decides.
            "NOASSERTION" says that there is a license which was not recognized.
        detected: As found in files.
        permissive: See `permissive_licenses`.
    """
    known = [name for name in declared if name.upper() != "NOASSERTION"]
    if known:
        held = [name for expression in known for name in held_licenses(expression, permissive)]
        return "permissive" if permissive.issuperset(held) else "non_permissive"
    found = set(detected)
    if not found:
        return "non_permissive" if declared else "no_license"
    if found & permissive:
        found.discard(UNKNOWN)
    found -= _NO_LICENSES
    if not found:
        return "no_license"
    return "permissive" if found <= permissive else "non_permissive"


def _held(tree, permissive: frozenset[str]) -> list[str]:
    if isinstance(tree, license_expression.LicenseWithExceptionSymbol):
        tree = tree.license_symbol
    if isinstance(tree, license_expression.LicenseSymbol):
        return [_name(tree.key)]
    parts = [_held(part, permissive) for part in tree.args]
    if isinstance(tree, license_expression.Licensing().OR):
        for part in parts:
            if permissive.issuperset(part):
                return part
    return [name for part in parts for name in part]


def _name(key: str) -> str:
    if key.lower().startswith("licenseref-"):
        return canonical(key) or key
    return canonical(key) or UNKNOWN


@functools.cache
def _entries() -> list[dict]:
    index = license_expression.get_license_index()
    return [entry for entry in index if entry.get("spdx_license_key")]


@functools.cache
def _identifiers() -> dict[str, str]:
    names = {name.lower(): name for name in PERMISSIVE_LICENSES}
    # Official identifiers win over old ones, and those over ScanCode's own keys.
    entries = sorted(_entries(), key=lambda entry: entry["is_deprecated"])
    for entry in entries:
        names.setdefault(entry["spdx_license_key"].lower(), entry["spdx_license_key"])
    for entry in entries:
        for name in (*entry["other_spdx_license_keys"], entry["license_key"]):
            names.setdefault(name.lower(), entry["spdx_license_key"])
    return names
