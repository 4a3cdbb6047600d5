"""What was published with StarCoder's pipeline, where its files lie beside the repository."""

import csv
import json
import pathlib

import pytest

from starcoder_jax.stack.stages.redact import DETECTORS
from starcoder_jax.stack.stages.redact.replacement import IPV4, IPV6, substitute

DATA = pathlib.Path(__file__).parents[5] / "shared" / "data" / "bigcode-dataset"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}")


def found(text):
    return [
        text[span.start : span.stop] for detector in DETECTORS.values() for span in detector(text)
    ]


def test_replacements_are_seen_for_what_they_are():
    published = json.loads((DATA / "replacements.json").read_text())
    keys, emails = published["KEY"], published["EMAIL"]
    assert len(keys) == len(emails) == 10
    for key in keys:
        assert found(f'api_key = "{key}"') == [key]
    # What StarCoder replaced by is not to be replaced again.
    addresses = published["IP_ADDRESS"]
    for address in emails + addresses["IPv4"] + addresses["IPv6"]:
        assert found(f"server = '{address}'") == []


def test_notes_on_languages_hold_nothing_personal():
    with (DATA / "visual_inspection.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) > 300
    assert [value for row in rows for value in found(" ".join(row))] == []


def test_replacements_are_the_published_ones():
    file = DATA / "pii_ner_pii_redaction_replacements.json"
    published = json.loads(file.read_text())
    assert published.pop("IP_ADDRESS") == {"IPv4": list(IPV4), "IPv6": list(IPV6)}
    assert len(published) == 4
    for of, tokens in published.items():
        assert [substitute("starcoder", of, "x", "f", 0)[0]] == tokens
