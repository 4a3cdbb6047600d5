import json
import pathlib
import time

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st
from identify.vendor.licenses import LICENSES

from starcoder_jax.data.licenses import PERMISSIVE_LICENSES
from starcoder_jax.stack.stages.identify import notices, spdx
from starcoder_jax.stack.stages.identify.notices import (
    licenses_of_text,
    noticed_licenses,
    tagged_license,
)
from starcoder_jax.stack.stages.identify.spdx import (
    PROPRIETARY,
    UNKNOWN,
    canonical,
    held_licenses,
    license_type,
    permissive_licenses,
)

DATA = pathlib.Path(__file__).parents[5] / "shared" / "data"
PERMISSIVE = permissive_licenses()
TEXTS = dict(LICENSES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mit", "MIT"),
        (" Apache-2.0 ", "Apache-2.0"),
        ("GPL-2.0", "GPL-2.0-only"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("bsd-new", "BSD-3-Clause"),
        ("LicenseRef-scancode-public-domain", "LicenseRef-scancode-public-domain"),
        ("LicenseRef-BSD", "LicenseRef-BSD"),
        ("no such license", None),
        ("", None),
    ],
)
def test_names(name, expected):
    assert canonical(name) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", ["MIT"]),
        ("MIT AND Zlib", ["MIT", "Zlib"]),
        ("GPL-3.0-only OR MIT", ["MIT"]),
        ("MIT/Apache-2.0", ["MIT"]),
        ("GPL-2.0+ OR LGPL-3.0", ["GPL-2.0-or-later", "LGPL-3.0-only"]),
        ("(MIT OR GPL-2.0) AND (MPL-2.0 OR ISC)", ["MIT", "ISC"]),
        ("MIT AND (GPL-3.0 OR LGPL-3.0)", ["MIT", "GPL-3.0-only", "LGPL-3.0-only"]),
        ("GPL-3.0 OR (MIT AND MPL-2.0)", ["GPL-3.0-only", "MIT", "MPL-2.0"]),
        ("Apache-2.0 WITH LLVM-exception", ["Apache-2.0"]),
        ("GPL-2.0 WITH Classpath-exception-2.0", ["GPL-2.0-only"]),
        ("LicenseRef-Ours", ["LicenseRef-Ours"]),
        ("some words", [UNKNOWN]),
        ("MIT OR", [UNKNOWN]),
        ("(MIT", [UNKNOWN]),
        ("", [UNKNOWN]),
        ("(" * 400 + "MIT" + ")" * 400, ["MIT"]),
        ("MIT OR " * 1000 + "MIT", [UNKNOWN]),
    ],
)
def test_expressions(expression, expected):
    assert held_licenses(expression, PERMISSIVE) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("MIT ORANDWH()+-./0gpl\u00e9\n"), max_size=60))
def test_any_expression_gives_names(expression):
    found = held_licenses(expression, PERMISSIVE)
    assert found and all(isinstance(name, str) and name for name in found)


@pytest.mark.parametrize(
    ("declared", "detected", "expected"),
    [
        # What the source declares decides alone.
        (["MIT"], [], "permissive"),
        (["mit"], ["GPL-3.0-only"], "permissive"),
        (["GPL-3.0"], ["MIT"], "non_permissive"),
        (["other"], ["MIT"], "non_permissive"),
        (["MIT", "GPL-3.0"], [], "non_permissive"),
        (["MIT OR GPL-3.0"], [], "permissive"),
        # It declares that there is one, which it did not recognize.
        (["NOASSERTION"], [], "non_permissive"),
        (["NOASSERTION"], ["MIT"], "permissive"),
        (["noassertion"], ["GPL-3.0-only"], "non_permissive"),
        # What was found.
        ([], [], "no_license"),
        ([], ["MIT", "Apache-2.0"], "permissive"),
        ([], ["MIT", "GPL-3.0-only"], "non_permissive"),
        ([], ["MIT", UNKNOWN], "permissive"),
        ([], [UNKNOWN], "non_permissive"),
        ([], ["GPL-3.0-only", UNKNOWN], "non_permissive"),
        # What is no license at all.
        ([], ["LicenseRef-scancode-dco-1.1"], "no_license"),
        ([], ["LicenseRef-scancode-generic-cla", "MIT"], "permissive"),
        ([], ["LicenseRef-scancode-generic-cla", UNKNOWN], "non_permissive"),
        ([], ["LicenseRef-Ours"], "non_permissive"),
    ],
)
def test_the_stacks_rule(declared, detected, expected):
    assert license_type(declared, detected, PERMISSIVE) == expected


def test_further_permissive_licenses():
    assert license_type([], ["Artistic-2.0"], PERMISSIVE) == "non_permissive"
    further = permissive_licenses(("artistic-2.0",))
    assert license_type([], ["Artistic-2.0"], further) == "permissive"
    with pytest.raises(ValueError, match=r"'Artistic-9\.0' is no SPDX identifier"):
        permissive_licenses(("Artistic-9.0",))


def test_the_packages_own_list_is_within():
    assert set(PERMISSIVE_LICENSES) < PERMISSIVE
    assert not [name for name in PERMISSIVE if name.startswith(("GPL", "LGPL", "AGPL", "MPL"))]


def test_categories_agree_with_scancode():
    file = DATA / "licence-lists" / "scancode-index-slim.json"
    if not file.exists():
        pytest.skip(f"ScanCode's index is not at {file}")
    entries = [entry for entry in json.loads(file.read_text()) if entry["spdx_license_key"]]
    differing = [
        entry["spdx_license_key"]
        for entry in entries
        if canonical(entry["spdx_license_key"]) == entry["spdx_license_key"]
        and (entry["category"] in ("Permissive", "Public Domain"))
        != (entry["spdx_license_key"] in PERMISSIVE)
    ]
    known = [entry for entry in entries if canonical(entry["spdx_license_key"])]
    # The index is half a year newer than the package's.
    assert len(known) > 0.97 * len(entries) > 2000
    assert len(differing) <= 5, differing


def test_what_is_no_license_is_what_the_stack_left_out():
    file = DATA / "the-stack-v2" / "licence-type-lists.json"
    if not file.exists():
        pytest.skip(f"The Stack's list is not at {file}")
    assert set(json.loads(file.read_text())["non_license_whitelist"]) == spdx._NO_LICENSES


@pytest.mark.parametrize("name", TEXTS)
def test_whole_texts(name):
    text = TEXTS[name].replace("[year]", "2024").replace("[fullname]", "A. Person").encode()
    expected = canonical(name)
    assert licenses_of_text(text, PERMISSIVE) == [expected]
    # Re-wrapped, as a comment, and with a title above.
    wrapped = b"Our License\n\n" + b"\n".join(b" * " + line for line in text.split(b" "))
    assert expected in licenses_of_text(wrapped, PERMISSIVE)


def test_several_texts_in_one_file():
    both = (TEXTS["MIT"] + "\n\n" + TEXTS["Apache-2.0"]).encode()
    assert licenses_of_text(both, PERMISSIVE) == ["Apache-2.0", "MIT"]
    mixed = (TEXTS["MIT"] + "\nParts are under the GNU General Public License, version 2.").encode()
    assert licenses_of_text(mixed, PERMISSIVE) == ["MIT", "GPL-2.0-only"]


def test_texts_that_differ_in_few_words_are_told_apart():
    for pair in (("GPL-3.0", "AGPL-3.0"), ("BSD-2-Clause", "BSD-3-Clause"), ("MS-PL", "MS-RL")):
        for name in pair:
            assert licenses_of_text(TEXTS[name].encode(), PERMISSIVE) == [canonical(name)]


def test_an_unknown_text_is_a_license_all_the_same():
    assert licenses_of_text(b"You may look at this on Tuesdays.\n", PERMISSIVE) == [UNKNOWN]
    assert licenses_of_text(b"", PERMISSIVE) == [UNKNOWN]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Licensed under the Apache License, Version 2.0 (the \"License\");", ["Apache-2.0"]),
        ("// Distributed under the MIT License.", ["MIT"]),
        ("/* released under the terms of the BSD 3-Clause License */", ["LicenseRef-BSD"]),
        ("# Permission is hereby granted, free of charge, to any person obtaining\n"
         "# a copy of this software ... The above copyright notice and this", ["MIT"]),
        ("# Redistribution and use in source and binary forms, with or without\n"
         "# modification, are permitted ... Neither the name of X", ["BSD-3-Clause"]),
        ("Redistribution and use in source and binary forms are permitted", ["BSD-2-Clause"]),
        ("Redistribution and use in source and binary forms ... All advertising materials\n"
         "mentioning features", ["BSD-4-Clause"]),
        ("Permission to use, copy, modify, and/or distribute this software for any purpose with\n"
         "or without fee is hereby granted, provided that", ["ISC"]),
        ("dnl under the terms of the GNU General Public License as published by\n"
         "the Free Software Foundation; either version 2 of the License, or (at your option)\n"
         "any later version.", ["GPL-2.0-or-later"]),
        ("under version 2 of the GNU General Public License only", ["GPL-2.0-only"]),
        ("the GNU Lesser General Public License as published by the Free Software Foundation;\n"
         "either version 2.1 of the License, or later", ["LGPL-2.1-or-later"]),
        ("under the GNU Affero General Public License v3", ["AGPL-3.0-only"]),
        ("the GNU General Public License, and the GNU Lesser General Public License",
         ["GPL-1.0-or-later", "LGPL-2.0-or-later"]),
        ("see /usr/share/common-licenses/GPL-3", ["GPL-3.0-only"]),
        ("# License: GPLv3 or later", ["GPL-3.0-or-later"]),
        ("subject to the terms of the Mozilla Public License, v. 2.0.", ["MPL-2.0"]),
        ("Mozilla Public License Version 1.1", ["MPL-1.1"]),
        ("under the Eclipse Public License v1.0", ["EPL-1.0"]),
        ("This is free software under the same terms as Perl itself.",
         ["Artistic-1.0-Perl", "GPL-1.0-or-later"]),
        ("This file is in the public domain.", ["LicenseRef-scancode-public-domain"]),
        ("Hereby placed into the public domain", ["LicenseRef-scancode-public-domain"]),
        ("CC0 1.0 Universal", ["CC0-1.0"]),
        ("Creative Commons Attribution-NonCommercial 4.0", ["CC-BY-NC-4.0"]),
        ("Creative Commons Attribution 4.0", ["CC-BY-4.0"]),
        ("Proprietary and confidential.", [PROPRIETARY]),
        ("Unauthorized copying of this file is prohibited", [PROPRIETARY]),
        ("Licensed to PSF under a Contributor Agreement.", ["PSF-2.0"]),
        # No notices.
        ("import os\n", []),
        ("# Copyright 2024 A. Person. All rights reserved.", []),
        ("def is_license(name): ...  # the license of a package", []),
        ("raise RuntimeError('permission denied')", []),
        ("material that was previously distributed under the GNU General Public License", []),
        ("read in the public domain of keys", []),
    ],
)  # fmt: skip
def test_notices(text, expected):
    assert noticed_licenses(text.encode()) == expected


def test_notices_stand_at_the_beginning():
    notice = b"Licensed under the MIT License\n"
    assert noticed_licenses(b"#\n" * 1900 + notice) == ["MIT"]
    assert noticed_licenses(b"#\n" * 2000 + notice) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("// SPDX-License-Identifier: MIT", ["MIT"]),
        ("/* SPDX-License-Identifier: GPL-2.0-only */", ["GPL-2.0-only"]),
        ("<!-- SPDX-License-Identifier: Apache-2.0 -->", ["Apache-2.0"]),
        ("# SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause", ["BSD-3-Clause"]),
        ("/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */ #x", ["GPL-2.0-only"]),
        ('"""SPDX-License-Identifier: MIT"""', ["MIT"]),
        ("x = 'SPDX-License-Identifier: MIT'", ["MIT"]),
        ("# SPDX-License-Identifier: no idea", [UNKNOWN]),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: Zlib", ["MIT", "Zlib"]),
        ("# SPDX-License-Identifier:", []),
        ("# SPDX-License: MIT", []),
    ],
)
def test_tags(line, expected):
    assert tagged_license(f"#!/bin/sh\n{line}\ncode\n".encode(), PERMISSIVE) == expected


def test_the_phrases_searched_together_are_found_as_one_by_one():
    texts = [text.encode() for text in TEXTS.values()] + [b"a b c", b"no phrase"]
    words = [notices._words(text) for text in (*texts, b" ".join(texts))]
    for text in words:
        alone = {
            number
            for number, pattern in enumerate(notices._PHRASES.values())
            if re2.search(pattern.encode(), text)
        }
        assert set(notices._phrases().Match(text) or ()) == alone
    assert len(alone) > 30


@pytest.mark.parametrize(
    "unit",
    [b"gnu general public license ", b"permission to use copy modify ", b"a ", b"\xff", b"\n",
     b"SPDX-License-Identifier: (", b"redistribution and use in source and binary forms "],
)  # fmt: skip
def test_time_is_bounded(unit):
    content = unit * (1_000_000 // len(unit))
    start = time.monotonic()
    licenses_of_text(content, PERMISSIVE)
    noticed_licenses(content)
    tagged_license(content, PERMISSIVE)
    assert time.monotonic() - start < 3
