import pytest

from starcoder_jax.data.licenses import (
    has_copyleft_notice,
    license_names,
    package_license,
    permissive_part,
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("GPL-3.0-only", None),
        ("MPL-2.0", None),
        ("MIT OR GPL-2.0-or-later", "MIT"),
        ("GPL-2.0-or-later OR MIT", "MIT"),
        ("MPL-2.0 AND MIT", None),
        ("BSD-3-Clause AND 0BSD AND MIT", "BSD-3-Clause AND 0BSD AND MIT"),
        ("(MIT OR LGPL-2.1) AND (GPL-3.0 OR Apache-2.0)", "MIT AND Apache-2.0"),
        ("MIT AND (GPL-3.0 OR LGPL-3.0)", None),
        # AND binds more tightly than OR.
        ("GPL-3.0 AND MIT OR ISC", "ISC"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("GPL-3.0 WITH Classpath-exception-2.0", None),
        ("", None),
        ("MIT OR", None),
        ("(MIT", None),
        ("MIT)", None),
        ("MIT MIT", None),
        ("AND", None),
        ("MIT WITH", None),
    ],
)
def test_what_remains_of_an_expression(expression, expected):
    assert permissive_part(expression) == expected


OSI = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("expression", "field", "classifiers", "expected"),
    [
        ("Apache-2.0", None, [], "Apache-2.0"),
        ("GPL-3.0-only", "MIT", [OSI + "MIT License"], None),
        (None, "Apache License, Version 2.0", [], "Apache-2.0"),
        (None, "3-Clause BSD License", [], "BSD-3-Clause"),
        (None, "BSD", [OSI + "BSD License"], "LicenseRef-BSD"),
        (None, "BSD-3-Clause", [OSI + "BSD License"], "BSD-3-Clause"),
        (None, "MIT OR AFL-2.1", [], "MIT"),
        (None, "MPL-2.0 AND MIT", [], None),
        (None, None, [OSI + "ISC License (ISCL)"], "ISC"),
        (None, None, [OSI + "Python Software Foundation License"], "PSF-2.0"),
        (
            None,
            "Dual License",
            [OSI + "MIT License", OSI + "BSD License"],
            "MIT AND LicenseRef-BSD",
        ),
        (None, "MIT", [OSI + "GNU General Public License v3 (GPLv3)"], None),
        (None, "GPLv3", [OSI + "MIT License"], None),
        (None, "see LICENSE", [OSI + "MIT License"], "MIT"),
        (None, "see LICENSE", [], None),
        (None, "UNKNOWN", [], None),
        (None, None, ["License :: OSI Approved", "Topic :: Software Development"], None),
        (None, None, ["License :: Other/Proprietary License"], None),
        (
            None,
            "MIT License\n\nCopyright X\n\nPermission is hereby granted, free of charge",
            [],
            "MIT",
        ),
        (None, "  Apache License\n   Version 2.0, January 2004\n   http://x", [], "Apache-2.0"),
        (None, "Copyright X. All rights reserved.\nGPL", [OSI + "BSD License"], "LicenseRef-BSD"),
    ],
)
def test_the_license_of_a_package(expression, field, classifiers, expected):
    assert package_license(expression, field, classifiers) == expected


def test_copyleft_notices_are_found_across_comment_lines():
    assert has_copyleft_notice("# it under the terms of the GNU General\n# Public License as")
    assert has_copyleft_notice("/* GNU Lesser General Public\n * License */")
    assert has_copyleft_notice("# SPDX-License-Identifier: GPL-2.0-only\n")
    assert has_copyleft_notice("# subject to the terms of the Mozilla Public License, v. 2.0")
    assert not has_copyleft_notice("# SPDX-License-Identifier: Apache-2.0\npublic = 1")
    assert not has_copyleft_notice("x = 1\n" * 1000 + "# GNU General Public License")


def test_license_columns():
    assert license_names("MIT") == "MIT"
    assert license_names(["MIT", "Apache-2.0"]) == "MIT AND Apache-2.0"
    assert license_names([]) == license_names(None) == license_names(" ") == "unknown"
