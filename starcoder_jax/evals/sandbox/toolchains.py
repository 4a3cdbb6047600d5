"""The compilers and interpreters of this machine."""

import functools
import os
import platform
import shutil
import subprocess

_NEEDS = {
    "python": (),
    "javascript": ("node",),
    "java": ("javac", "java"),
    "cpp": ("g++",),
    "bash": ("bash",),
    "rust": ("rustc", "cc"),
}
_ASK_VERSION = {"javac": "-version"}


@functools.cache
def find_tools() -> dict[str, str]:
    """Paths of the tools that are there, by name."""
    names = {name for needs in _NEEDS.values() for name in needs}
    found = {name: path for name in sorted(names) if (path := shutil.which(name))}
    if "rustc" in found:
        # What is on the path may be rustup's, which looks into the user's home for the real one.
        root = _first_line([found.pop("rustc"), "--print", "sysroot"])
        if os.access(path := os.path.join(root, "bin", "rustc"), os.X_OK):
            found["rustc"] = path
    # Links elsewhere lead to what the sandbox shows; those of the system may depend on their name.
    return {
        name: path if path.startswith("/usr/") else os.path.realpath(path)
        for name, path in found.items()
    }


def missing_toolchains() -> dict[str, str]:
    """What is not there, by language; languages that can be run are left out."""
    found = find_tools()
    missing = {
        language: ", ".join(name for name in needs if name not in found)
        for language, needs in _NEEDS.items()
    }
    return {language: names for language, names in missing.items() if names}


@functools.cache
def toolchain_versions() -> dict[str, str]:
    """What each language that can be run is run by, as it names itself."""
    found, missing = find_tools(), missing_toolchains()
    versions = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for language, needs in _NEEDS.items():
        if needs and language not in missing:
            tool = needs[0]
            versions[language] = _first_line([found[tool], _ASK_VERSION.get(tool, "--version")])
    return versions


def _first_line(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (result.stdout or result.stderr).partition("\n")[0].strip()
