import pickle
import time

import pytest
import redaction_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder_jax.data.marks import joined, pieces
from starcoder_jax.stack import record
from starcoder_jax.stack.stages import redact
from starcoder_jax.stack.stages.redact import DETECTORS, RedactConfig
from starcoder_jax.stack.stages.redact.spans import Span

KEY = redaction_labels.ISSUED["github"]()


def names_and_passwords(texts):
    """A model that knows one name, one password and one user."""
    known = {"Jo Doe": "NAME", "hunter22": "PASSWORD", "jodoe99": "USERNAME", "Jo": "NAME"}
    return [
        [Span(text.find(value), text.find(value) + len(value), of) for value, of in known.items()
         if value in text]
        for text in texts
    ]  # fmt: skip


def one_too_few(texts):
    """A model that forgets a text."""
    return [[]] * (len(texts) - 1)


MODEL = f"{__name__}:names_and_passwords"


def redacted(rows, **fields):
    (step,) = redact.steps(RedactConfig(**fields), "decontaminate")
    assert (step.name, step.inputs) == ("redact", ("decontaminate",))
    output = pickle.loads(pickle.dumps(step)).function(record.records(rows))
    assert output.drops is None and output.table.schema == record.RECORD
    assert output.table.num_rows == len(rows)
    return output


def written_out(row):
    """A row's content with its marks as text."""
    return "".join(
        (token or "") + text.decode() for token, text in pieces(row["content"], row["marks"])
    )


def redacted_text(text, kind="file", marks=(), **fields):
    row = {"kind": kind, "content": text.encode(), "marks": list(marks), "repository": "a/b"}
    return written_out(redacted([row], **fields).table.to_pylist()[0])


def test_special_tokens_stand_where_something_was():
    text = f'# jo@corp.com, Zoë <zoë@corp.com>\nkey = "{KEY}"\nip = "93.184.216.34"  # 8.8.8.8\n'
    row = {"kind": "file", "content": text.encode(), "swhid": "swh:1:cnt:1", "path": "a.py"}
    output = redacted([row, {**row, "content": b"nothing", "swhid": "swh:1:cnt:2"}])
    first, second = output.table.to_pylist()
    expected = '# <EMAIL>, Zoë <<EMAIL>>\nkey = "<KEY>"\nip = "172.16.17.32"  # 8.8.8.8\n'
    assert written_out(first) == expected
    assert second["content"] == b"nothing" and first["path"] == "a.py"
    assert [mark["token"] for mark in first["marks"]] == ["<EMAIL>", "<EMAIL>", "<KEY>"]
    assert output.counts == {
        **{"rows changed": 1, "EMAIL replaced": 2, "KEY replaced": 1, "IP_ADDRESS replaced": 1}
    }


def test_marks_keep_their_places():
    parts = [
        (None, b"x"),
        ("<issue_start>", "Title: é jo@corp.com\n".encode()),
        ("<issue_comment>", b"al@corp.com"),
        ("<issue_closed>", b""),
        ("<issue_comment>", b"jo@corp"),
        ("<pr_diff>", b".com"),
        ("<pr>", b""),
    ]
    content, marks = joined(parts)
    row = {"kind": "issue", "content": content, "marks": marks}
    assert written_out(redacted([row]).table.to_pylist()[0]) == (
        "x<issue_start>Title: é <EMAIL>\n<issue_comment><EMAIL><issue_closed>"
        "<issue_comment>jo@corp<pr_diff>.com<pr>"
    )


def test_the_same_address_is_replaced_by_the_same_within_a_file():
    addresses = [f"93.184.216.{number}" for number in range(40)]
    text = "\n".join(addresses * 2).encode()
    rows = [{"kind": "file", "content": text, "path": path} for path in ("a", "b")]
    first, second = (row["content"].decode().split() for row in redacted(rows).table.to_pylist())
    assert first[:40] == first[40:] and len(set(first)) == 5
    assert first != second
    assert first != redacted(rows, seed=1).table["content"][0].as_py().decode().split()


def test_detectors_types_and_styles():
    text = f'jo@corp.com 93.184.216.34 token "{KEY}"'
    assert redacted_text(text, detectors=("email",)) == text.replace("jo@corp.com", "<EMAIL>")
    assert redacted_text(text, kind="documentation") == '<EMAIL> 93.184.216.34 token "<KEY>"'
    assert redacted_text(text, types={"file": ("KEY",)}) == text.replace(KEY, "<KEY>")
    santacoder = redacted_text(text, style="santacoder")
    assert "@example.com 1" in santacoder and "<" not in santacoder and KEY not in santacoder
    assert redacted_text(text, detectors=()) == text


def test_models_find_names_and_passwords():
    text = "Jo Doe (jodoe99) wrote jo@corp.com; password hunter22"
    expected = "<NAME> (jodoe99) wrote <EMAIL>; password <PASSWORD>"
    assert redacted_text(text, detectors=("email", MODEL)) == expected
    expected = "<NAME> (jodoe99) wrote <EMAIL>; password hunter22"
    assert redacted_text(text, kind="documentation", detectors=("email", MODEL)) == expected
    assert redacted_text("Jo", detectors=(MODEL,)) == "Jo"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"detectors": ("phone",)}, "'phone' is unknown; there are email, ip_address, key"),
        ({"detectors": "email"}, "not one string"),
        ({"detectors": ("no_such_module:detect",)}, "cannot be imported"),
        ({"detectors": (f"{__name__}:no_such_function",)}, "cannot be imported"),
        ({"detectors": (f"{__name__}:one_too_few",)}, "spans of 0 texts for 1 texts"),
        ({"style": "bloom"}, "'bloom' is unknown"),
        ({"types": {"files": ()}}, "'files' is unknown"),
        ({"types": {"file": ("PHONE",)}}, "'PHONE' is unknown"),
    ],
)
def test_bad_settings_give_one_line(fields, message):
    with pytest.raises(ValueError, match=r"redact\.") as error:
        redacted_text("a", **fields)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_was_redacted_has_nothing_more_to_redact():
    rows = [
        {"kind": "file", "content": text.encode(), "path": language}
        for language, (text, _) in redaction_labels.LABELS.items()
    ]
    once = redacted(rows)
    assert once.counts["rows changed"] == len(rows)
    twice = redacted(once.table.to_pylist())
    assert twice.counts == {"rows changed": 0} and twice.table == once.table


def test_empty_shards_and_empty_files():
    assert redacted([]).counts == {"rows changed": 0}
    assert redacted([{"kind": "file", "content": b""}]).counts == {"rows changed": 0}


TEXT = st.text(st.sampled_from("jo@corp.com 93.184:216\n\"'é<>") | st.characters(codec="utf-8"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["<pr>", "<file_sep>"]), TEXT), max_size=4), TEXT)
def test_marks_and_what_is_no_ones_stay(tail, head):
    parts = [(None, head.encode()), *((token, text.encode()) for token, text in tail)]
    content, marks = joined(parts)
    (row,) = redacted([{"kind": "commit", "content": content, "marks": marks}]).table.to_pylist()
    offsets = [mark["offset"] for mark in row["marks"]]
    assert offsets == sorted(offsets) and all(0 <= at <= len(row["content"]) for at in offsets)
    kept = [mark["token"] for mark in row["marks"] if mark["token"] not in ("<EMAIL>", "<KEY>")]
    assert kept == [token for token, _ in tail]
    row["content"].decode()


SIZE = 1_000_000
UNITS = (
    *("a", "@", "a@", "a@b.", "a.", "\\n@", "é@é.", "http://a:", "1.", "9.9.9.8 ", "version 1.2."),
    *("2a01:", ":", "eyJ", "eyJa.", '"', "'a1", "AKIA", "AC", "SK", "xoxb-1-", "glpat-a"),
    *("pypi-AgEIcHlwaS5vcmc", "//a/:_authToken=", "//", "secret_key:", "token = ", "aws key "),
    *("-----BEGIN PRIVATE KEY-----", "Private-Lines: 1\nAAAA\n", "M" * 24 + ".", "1234567890:"),
    *('"0123456789abcdef0"', '"deadbeef01234567" key ', "cloudant key ", "\n", "SG.", "T3BlbkFJ"),
)  # fmt: skip
HOSTILE = {unit: unit * (SIZE // len(unit)) for unit in UNITS} | {
    "spaces": "key" + " " * SIZE,
    "token": "eyJ" + "a" * SIZE + ".",
    "string": '"' + "a1" * (SIZE // 2) + '"',
    "keys": "\n".join(f'key{i} = "{KEY[4:30]}{i:06}"' for i in range(SIZE // 50)),
    "people": "\n".join(f"jo{i}@corp.com, 93.184.{i % 256}.7" for i in range(SIZE // 30)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_takes_seconds_whatever_it_is(text):
    # Most take some milliseconds, the slowest three seconds; what is quadratic takes hours.
    for detector in DETECTORS.values():
        start = time.process_time()
        detector(text)
        assert time.process_time() - start < 15
