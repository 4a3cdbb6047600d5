"""Which files tell under which licenses a part of a repository is."""

import json
import posixpath
import re
from collections.abc import Callable, Mapping

from starcoder_jax.data.licenses import package_license
from starcoder_jax.stack.stages.identify.notices import licenses_of_text, noticed_licenses
from starcoder_jax.stack.stages.identify.spdx import PROPRIETARY, UNKNOWN, canonical, held_licenses

# Names that license files go by.
_LICENSE_FILE = re.compile(
    r"(?:[a-z0-9]{1,20}[-_.])?(?:un)?licen[cs]es?(?:[-_.].{0,60})?"
    r"|(?:copying|copyright|copyleft|eula)(?:[-_.].{0,60})?"
)
# Extensions of code that happens to be named so.
_CODE = re.compile(
    r".*\.(?:py|pyi|pyc|c|cc|cpp|cs|h|hpp|js|jsx|mjs|ts|tsx|go|java|kt|rs|rb|php|pl|pm|sh|lua|r|m"
    r"|swift|scala|css|scss|json|ya?ml|toml|xml|svg|vue|el|lock|csv|tsv|proto|sql|in|spec|template)"
)
_LICENSE_FOLDERS = ("licenses", "licences", "license", "licence")
_MAX_METADATA_BYTES = 256 * 1024
_MAX_FIELD = 1000
# No repository needs more levels; a path that has more is looked up by its first ones.
_MAX_DEPTH = 64

# Line by line: the standard library's parser takes memory in the square of a long dotted key.
_TOML_HEADER = re.compile(r"\[{1,2}[A-Za-z]")
_TOML_LICENSE = re.compile(r"license\s*=\s*[\"']([^\"']*)[\"']")
_TOML_LICENSE_TEXT = re.compile(r"license\s*=\s*\{\s*text\s*=\s*[\"']([^\"']*)[\"']")
_TOML_CLASSIFIER = re.compile(r"[\"'](License :: [^\"']*)[\"']")

# Debian's names of licenses that are not SPDX's (machine-readable copyright format 1.0).
_DEBIAN_FORMAT = "packaging-manuals/copyright-format/1.0"
_DEBIAN_NAMES = {
    "expat": "MIT",
    "public-domain": "LicenseRef-scancode-public-domain",
    "artistic": "Artistic-1.0-Perl",
    "bsd": "LicenseRef-BSD",
    "psf": "PSF-2.0",
    "gfdl-niv": "GFDL-1.3-only",
}
_DEBIAN_EXCEPTION = re.compile(r" with .{1,80}?exceptions?", re.IGNORECASE)
_DEBIAN_VERSION = re.compile(r"([al]?gpl|gfdl)-(\d)(?:\.(\d))?(?:\.0)?(\+?)")


def license_folder(path: str) -> str | None:
    """The folder that a file tells the license of, "" for the root; None if it tells of none."""
    folder, name = posixpath.split(path)
    lower = name.lower()
    above, within = posixpath.split(folder)
    if within.lower() in _LICENSE_FOLDERS and _is_license_file(lower):
        return above
    if within == "LICENSES" and canonical(name.removesuffix(".txt")) is not None:
        return above
    if within == "debian" and lower == "copyright":
        return above
    if lower == "metadata" and not within.endswith(".dist-info"):
        return None
    return folder if lower in _READERS or _is_license_file(lower) else None


def licenses_told(path: str, content: bytes, permissive: frozenset[str]) -> list[str]:
    """The licenses that a file with a `license_folder` tells; SPDX identifiers."""
    folder, name = posixpath.split(path)
    reader = _READERS.get(name.lower())
    if reader is None:
        # The layout of REUSE, where the name is the identifier.
        in_folder = posixpath.basename(folder) == "LICENSES"
        if in_folder and (license := canonical(name.removesuffix(".txt"))) is not None:
            return [license]
        found = _debian_copyright(content, permissive) or licenses_of_text(content, permissive)
        # A copyright line alone grants nothing, and takes nothing away.
        return [] if found == [UNKNOWN] and name.lower().startswith("copyright") else found
    if len(content) > _MAX_METADATA_BYTES:
        return []
    try:
        return list(dict.fromkeys(reader(content.decode(), permissive)))
    except (ValueError, RecursionError):
        return []


def packages_named(folder: str, contents: Mapping[str, bytes]) -> list[str]:
    """The files and folders that the metadata of an installed Python package speak for.

    Args:
        folder: Such as "site-packages/numpy-2.4.6.dist-info" or "….egg-info".
        contents: Of its files "RECORD" and "top_level.txt", by path, where there are such.
    """
    parent = posixpath.dirname(folder)
    record = contents.get(f"{folder}/RECORD", b"").decode(errors="replace")
    names = {line.partition(",")[0].partition("/")[0] for line in record.splitlines()}
    if not names:
        listed = contents.get(f"{folder}/top_level.txt", b"").decode(errors="replace").split()
        names = {name for module in listed for name in (module, f"{module}.py")}
    names -= {"", "..", "__pycache__"}
    return [posixpath.join(parent, name) for name in sorted(names)]


class LicenseTree:
    """The licenses of a repository's files: those told nearest above a file hold for it."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, None]] = {}

    def tell(self, place: str, licenses: list[str]) -> None:
        """Adds licenses to those of a folder (or file) and of what lies below."""
        if licenses:
            self._told.setdefault(place, {}).update(dict.fromkeys(licenses))

    def licenses_of(self, path: str) -> list[str]:
        """The licenses that hold for a path, in the order they were told."""
        if not self._told:
            return []
        parts = path.split("/", _MAX_DEPTH)
        for depth in range(len(parts), -1, -1):
            found = self._told.get("/".join(parts[:depth]))
            if found is not None:
                return list(found)
        return []


def _is_license_file(name: str) -> bool:
    return len(name) <= 100 and bool(_LICENSE_FILE.fullmatch(name)) and not _CODE.fullmatch(name)


def _package_json(text: str, permissive: frozenset[str]) -> list[str]:
    data = json.loads(text)
    if not isinstance(data, dict):
        return []
    # npm's old form, and Composer's: a list of alternatives.
    values = data.get("license") or data.get("licenses") or []
    values = values if isinstance(values, list) else [values]
    named = [value.get("type") if isinstance(value, dict) else value for value in values]
    named = [name for name in named if isinstance(name, str)]
    if not named or any(name.upper().startswith("SEE LICENSE") for name in named):
        return []
    if any(name.upper() in ("UNLICENSED", "PROPRIETARY") for name in named):
        return [PROPRIETARY]
    return held_licenses(" OR ".join(named), permissive)


def _pyproject(text: str, permissive: frozenset[str]) -> list[str]:
    lines = _toml_section(text, "[project]") or _toml_section(text, "[tool.poetry]")
    for line in lines:
        if license := _TOML_LICENSE.match(line):
            return held_licenses(license[1], permissive)
    fields = [field[1] for line in lines if (field := _TOML_LICENSE_TEXT.match(line))]
    classifiers = [text for line in lines for text in _TOML_CLASSIFIER.findall(line)]
    return _python_package(fields[0] if fields else None, classifiers, permissive)


def _cargo(text: str, permissive: frozenset[str]) -> list[str]:
    for line in _toml_section(text, "[package]"):
        if license := _TOML_LICENSE.match(line):
            return held_licenses(license[1], permissive)
    return []


def _toml_section(text: str, header: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    if header not in lines:
        return []
    section = lines[lines.index(header) + 1 :]
    end = next((place for place, line in enumerate(section) if _TOML_HEADER.match(line)), None)
    return section[:end]


def _package_info(text: str, permissive: frozenset[str]) -> list[str]:
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.strip():
            break
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip())
    expression = next(iter(fields.get("license-expression", ())), None)
    if expression:
        return held_licenses(expression, permissive)
    field = next(iter(fields.get("license", ())), None)
    return _python_package(field, fields.get("classifier", []), permissive)


def _python_package(
    field: str | None, classifiers: list[str], permissive: frozenset[str]
) -> list[str]:
    field = None if field is None or field.upper() in ("", "UNKNOWN") else field[:_MAX_FIELD]
    named = [text for text in classifiers if text.startswith("License :: ")]
    clear = package_license(None, field, named)
    if clear is not None:
        return held_licenses(clear, permissive)
    said = [*([field] if field else ()), *(name for name in named if "OSI Approved ::" in name)]
    if not said:
        return []
    noticed = noticed_licenses("\n".join(f"{text} license" for text in said).encode())
    return noticed or (held_licenses(field, permissive) if field else [UNKNOWN])


def _debian_copyright(content: bytes, permissive: frozenset[str]) -> list[str]:
    text = content[:_MAX_METADATA_BYTES].decode(errors="replace")
    if _DEBIAN_FORMAT not in text[:500]:
        return []
    found: list[str] = []
    for line in dict.fromkeys(text.splitlines()):
        if line[:8].lower() != "license:" or len(line) > 300:
            continue
        words = _DEBIAN_EXCEPTION.sub("", line[8:].replace("and/or", "or").replace(",", " "))
        words = re.sub(r"[^\s()]+", _debian_name, words.strip())
        if words:
            found += held_licenses(words, permissive)
    return list(dict.fromkeys(found))


def _debian_name(word: re.Match[str]) -> str:
    name = word[0].lower()
    if name in ("or", "and"):
        return name.upper()
    if name in _DEBIAN_NAMES:
        return _DEBIAN_NAMES[name]
    if version := _DEBIAN_VERSION.fullmatch(name):
        later = "or-later" if version[4] else "only"
        return f"{version[1].upper()}-{version[2]}.{version[3] or 0}-{later}"
    return word[0]


_READERS: dict[str, Callable[[str, frozenset[str]], list[str]]] = {
    "package.json": _package_json,
    "composer.json": _package_json,
    "pyproject.toml": _pyproject,
    "cargo.toml": _cargo,
    "pkg-info": _package_info,
    "metadata": _package_info,
}
