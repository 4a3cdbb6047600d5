import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.stages.identify.sources import (
    LicenseTree,
    license_folder,
    licenses_told,
    packages_named,
)
from starcoder_jax.stack.stages.identify.spdx import PROPRIETARY, UNKNOWN, permissive_licenses

PERMISSIVE = permissive_licenses()
MIT = b"Permission is hereby granted, free of charge, to any person obtaining a copy. The above "
MIT += b"copyright notice and this permission notice shall be included.\n"


def told(path, content):
    return licenses_told(path, content, PERMISSIVE)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LICENSE", ""),
        ("a/b/LICENSE.txt", "a/b"),
        ("licence.md", ""),
        ("COPYING", ""),
        ("COPYING.LESSER", ""),
        ("LICENSE-APACHE", ""),
        ("MIT-LICENSE.txt", ""),
        ("UNLICENSE", ""),
        ("doc/pkg/copyright", "doc/pkg"),
        ("debian/copyright", ""),
        ("x/LICENSES/MIT.txt", "x"),
        ("x/licenses/LICENSE.foo", "x"),
        ("x/licenses/AUTHORS", None),
        ("package.json", ""),
        ("a/Cargo.toml", "a"),
        ("pyproject.toml", ""),
        ("a-1.0.dist-info/METADATA", "a-1.0.dist-info"),
        ("a/METADATA", None),
        ("a.egg-info/PKG-INFO", "a.egg-info"),
        ("license.py", None),
        ("licenses.json", None),
        ("src/license.rs", None),
        ("README.md", None),
        ("NOTICE", None),
        ("licensed.txt", None),
        ("a/" * 100_000 + "LICENSE" + "x" * 100_000, None),
    ],
)
def test_which_files_tell(path, expected):
    assert license_folder(path) == expected


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("package.json", '{"license": "MIT"}', ["MIT"]),
        ("package.json", '{"license": "(MIT OR GPL-3.0)"}', ["MIT"]),
        ("package.json", '{"license": {"type": "ISC", "url": ""}}', ["ISC"]),
        ("package.json", '{"licenses": [{"type": "GPL-2.0"}, {"type": "MIT"}]}', ["MIT"]),
        ("package.json", '{"license": "UNLICENSED"}', [PROPRIETARY]),
        ("package.json", '{"license": "SEE LICENSE IN x"}', []),
        ("package.json", '{"license": 3}', []),
        ("package.json", "[]", []),
        ("package.json", "{", []),
        ("package.json", "[" * 100_000, []),
        ("composer.json", '{"license": ["LGPL-2.1-only", "Apache-2.0"]}', ["Apache-2.0"]),
        ("pyproject.toml", '[project]\nlicense = "MIT AND Zlib"', ["MIT", "Zlib"]),
        ("pyproject.toml", '[project]\nlicense = {text = "BSD-3-Clause"}', ["BSD-3-Clause"]),
        ("pyproject.toml", '[project]\nlicense = {file = "LICENSE"}', []),
        (
            "pyproject.toml",
            '[project]\nclassifiers = ["License :: OSI Approved :: MIT License"]',
            ["MIT"],
        ),
        ("pyproject.toml", '[tool.poetry]\nlicense = "GPL-3.0-or-later"', ["GPL-3.0-or-later"]),
        ("pyproject.toml", "[build-system]", []),
        ("pyproject.toml", "project = 3", []),
        ("pyproject.toml", "= nothing", []),
        ("pyproject.toml", '[other]\nlicense = "MIT"\n[project]\nname = "a"', []),
        ("pyproject.toml", '[project]\nname = "a"\n[other]\nlicense = "MIT"', []),
        ("Cargo.toml", '[package]\nlicense = "MIT/Apache-2.0"', ["MIT"]),
        ("Cargo.toml", '[package]\nlicense = "MPL-2.0"', ["MPL-2.0"]),
        ("Cargo.toml", "[package]\nlicense.workspace = true", []),
        ("PKG-INFO", "Name: a\nLicense-Expression: Apache-2.0\n\nLicense: GPL", ["Apache-2.0"]),
        ("PKG-INFO", "License: BSD\nClassifier: License :: OSI Approved", ["LicenseRef-BSD"]),
        (
            "PKG-INFO",
            "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
            ["GPL-3.0-only"],
        ),
        ("PKG-INFO", "License: Our own\n", [UNKNOWN]),
        ("PKG-INFO", "License: UNKNOWN\nName: a\n", []),
        ("LICENSES/Zlib.txt", "whatever", ["Zlib"]),
        ("LICENSE", MIT.decode(), ["MIT"]),
        ("LICENSE", "", [UNKNOWN]),
    ],
)
def test_what_they_tell(path, content, expected):
    assert told(path, content.encode()) == expected


def test_large_metadata_is_left_alone():
    small = json.dumps({"x": "y" * 200_000, "license": "MIT"})
    large = json.dumps({"x": "y" * 300_000, "license": "MIT"})
    assert told("package.json", small.encode()) == ["MIT"]
    assert told("package.json", large.encode()) == []


DEBIAN = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: a

Files: *
Copyright: 2020 A. Person
License: {}

License: {}
 The text.
"""


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Expat", "Expat", ["MIT"]),
        ("GPL-2+", "LGPL-2.1", ["GPL-2.0-or-later", "LGPL-2.1-only"]),
        ("GPL-3+ with autoconf exception", "BSD-3-clause", ["GPL-3.0-or-later", "BSD-3-Clause"]),
        ("Expat or GPL-2", "Apache-2.0", ["MIT", "Apache-2.0"]),
        ("Artistic or GPL-1+", "Zlib", ["Artistic-1.0-Perl", "GPL-1.0-or-later", "Zlib"]),
        ("GPL-2+ and Expat", "public-domain",
         ["GPL-2.0-or-later", "MIT", "LicenseRef-scancode-public-domain"]),
        ("its-own", "Expat", [UNKNOWN, "MIT"]),
    ],
)  # fmt: skip
def test_debians_copyright_files(first, second, expected):
    assert told("doc/a/copyright", DEBIAN.format(first, second).encode()) == expected


def test_debians_prose():
    text = b"This is free software. See /usr/share/common-licenses/LGPL-2.1 for the license.\n"
    assert told("doc/a/copyright", text) == ["LGPL-2.1-only"]


def test_a_copyright_line_is_no_license():
    assert told("COPYRIGHT", b"Copyright 2024 A. Person. All rights reserved.\n") == []
    assert told("LICENSE", b"Copyright 2024 A. Person. All rights reserved.\n") == [UNKNOWN]


def test_packages_of_a_dist_info():
    folder = "lib/a-1.0.dist-info"
    record = b"a/__init__.py,sha256=x,1\na.py,,\n../../bin/a,,\na-1.0.dist-info/RECORD,,\n"
    record += b"__pycache__/a.pyc,,\n"
    expected = ["lib/a", "lib/a-1.0.dist-info", "lib/a.py"]
    assert packages_named(folder, {f"{folder}/RECORD": record}) == expected
    modules = {f"{folder}/top_level.txt": b"b\n_c\n"}
    assert packages_named(folder, modules) == ["lib/_c", "lib/_c.py", "lib/b", "lib/b.py"]
    assert packages_named(folder, {}) == []


def test_the_nearest_licenses_hold():
    tree = LicenseTree()
    assert tree.licenses_of("a/b.py") == []
    tree.tell("", ["MIT"])
    tree.tell("vendor/x", ["GPL-2.0-only"])
    tree.tell("vendor/x", ["Zlib", "GPL-2.0-only"])
    tree.tell("empty", [])
    tree.tell("one.py", ["ISC"])
    assert tree.licenses_of("a/b.py") == ["MIT"]
    assert tree.licenses_of("vendor/x/y/z.c") == ["GPL-2.0-only", "Zlib"]
    assert tree.licenses_of("vendor/x") == ["GPL-2.0-only", "Zlib"]
    assert tree.licenses_of("vendor/xy/z.c") == ["MIT"]
    assert tree.licenses_of("empty/z.c") == ["MIT"]
    assert tree.licenses_of("one.py") == ["ISC"]


def test_a_deep_path_is_looked_up_quickly():
    tree = LicenseTree()
    tree.tell("a/a", ["MIT"])
    start = time.monotonic()
    assert tree.licenses_of("a/" * 500_000 + "b") == ["MIT"]
    assert time.monotonic() - start < 1


BEGINNINGS = {
    "pyproject.toml": "[project]\nlicense = ",
    "Cargo.toml": "[package]\nlicense = ",
    "package.json": '{"license": "',
    "PKG-INFO": "License: ",
    "copyright": DEBIAN.partition("{")[0],
    "LICENSE": "",
}


@pytest.mark.parametrize("path", BEGINNINGS)
@pytest.mark.parametrize(
    "unit", ["a.", "[", '"', "(", "MIT OR ", "{", "[a.", "9", "\\", "License: (\n", "\n[project]\n"]
)
def test_time_is_bounded(path, unit):
    content = BEGINNINGS[path] + unit * (260_000 // len(unit))
    start = time.monotonic()
    told(path, content.encode())
    assert time.monotonic() - start < 5


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        ["package.json", "pyproject.toml", "Cargo.toml", "PKG-INFO", "copyright", "LICENSE"]
    ),
    st.sampled_from([b"", b'{"license": ', b"[project]\nlicense=", b"License: ", DEBIAN.encode()]),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=80),
)
def test_any_content_tells_names(path, start, content):
    found = told(path, start + content.encode())
    assert all(isinstance(name, str) and name for name in found)
