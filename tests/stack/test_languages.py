import csv
import pathlib

import pytest

from starcoder_jax.stack.languages import LANGUAGE_SETS, STARCODER2_CAPS, expanded

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
# What Linguist calls now what The Stack called otherwise.
NEW_NAMES = {
    *("Rocq Prover", "Fortran", "FreeBASIC", "Genero 4gl", "Genero per", "Wolfram Language"),
    *("MATLAB", "Salt", "Vim script", "Visual Basic .NET", "Robots Exclusion Rules", "WDL"),
}


def test_numbers_of_languages():
    old = {name: languages - NEW_NAMES for name, languages in LANGUAGE_SETS.items()}
    assert len(old["starcoder"] - {"JSON", "YAML"}) == 86
    assert len(LANGUAGE_SETS["starcoder2_17"]) == 17 + 7
    # Fortran, MATLAB and Visual Basic .NET are names of The Stack v2, too.
    v2 = {"Fortran", "MATLAB", "Visual Basic .NET"}
    assert len(old["starcoder2_619"] | v2) == 605
    assert set(STARCODER2_CAPS) <= LANGUAGE_SETS["starcoder2_619"]


def test_sets_are_within_each_other():
    assert LANGUAGE_SETS["starcoder2_17"] <= LANGUAGE_SETS["starcoder2_619"]
    v1_only = {"FORTRAN", "Matlab", "Maple", "Visual Basic"}
    assert LANGUAGE_SETS["starcoder"] - LANGUAGE_SETS["starcoder2_619"] == v1_only


def test_names_and_sets_can_be_mixed():
    assert expanded(["C", "Makefile"]) == {"C", "Makefile"}
    assert expanded(["starcoder2_17", "Makefile"]) == LANGUAGE_SETS["starcoder2_17"] | {"Makefile"}


def test_published_labels():
    path = DATA / "the-stack-v2" / "language_labels.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    kept = {row["language"] for row in rows if row["include_final"] == "TRUE"}
    assert kept <= LANGUAGE_SETS["starcoder2_619"] <= kept | NEW_NAMES


def test_published_inspection():
    path = DATA / "bigcode-dataset" / "visual_inspection.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    kept = {row["language"] for row in rows if row["Include"] == "1"}
    names = LANGUAGE_SETS["starcoder"] - NEW_NAMES
    assert kept == {name.lower().replace(" ", "-").replace("#", "-sharp") for name in names}
