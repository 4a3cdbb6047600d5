import base64
import pickle
import random

import pytest

from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.stack import record
from starcoder_jax.stack.runner.keys import key
from starcoder_jax.stack.stages import filter as filter_stage
from starcoder_jax.stack.stages.filter import FilterConfig

CODE = b"def f(x):\n    return x + 1\n"


def file(content, path="a/b.py", language="Python", **more):
    return {
        **{"kind": "file", "repository": "o/r", "path": path, "content": content},
        **{"language": language, "license_type": "permissive", **more},
    }


@pytest.fixture
def reason(run_steps):
    """A function of a row, and fields of the config, that gives the reason to drop it, or None."""

    def run(row, **fields):
        steps = filter_stage.steps(FilterConfig(**fields), "render")
        assert [step.name for step in steps] == ["filter"]
        steps = pickle.loads(pickle.dumps(steps))
        (output,) = run_steps(steps, render=[record.records([row])])["filter"]
        assert output.table.schema == record.RECORD and output.drops.schema == record.DROP
        assert len(output.table) + len(output.drops) == 1
        return output.drops["reason"].to_pylist()[0] if len(output.drops) else None

    return run


def test_rows_are_kept_as_they_are_and_drops_written_down(run_steps):
    table = record.records(
        [file(CODE, "1.py"), file(b" \n", "2.py"), file(CODE, "3.py", marks=[]), file(b"", "4.py")]
    )
    (output,) = run_steps(filter_stage.steps(FilterConfig(), "render"), render=[table])["filter"]
    assert output.table.equals(table.take([0, 2]))
    assert [(drop["path"], drop["reason"]) for drop in output.drops.to_pylist()] == [
        ("2.py", "empty"),
        ("4.py", "empty"),
    ]


@pytest.mark.parametrize(
    ("license_type", "license_types", "expected"),
    [
        ("permissive", ("permissive", "no_license"), None),
        ("no_license", ("permissive", "no_license"), None),
        (None, ("permissive", "no_license"), None),
        ("non_permissive", ("permissive", "no_license"), "non-permissive license"),
        ("no_license", ("permissive",), "no license"),
        (None, ("permissive",), "no license"),
        ("permissive", ("non_permissive",), "permissive license"),
        ("non_permissive", None, None),
    ],
)
def test_licenses(reason, license_type, license_types, expected):
    row = file(CODE, license_type=license_type)
    assert reason(row, license_types=license_types) == expected


def lines(count):
    return b"x y\n" * count


@pytest.mark.parametrize(
    ("content", "language", "fields", "expected"),
    [
        (lines(100), "C", {"max_lines": 100}, None),
        (lines(101), "C", {"max_lines": 100}, "too many lines"),
        (lines(101), "C", {"max_lines": None}, None),
        # The published limit.
        (b"x y\n" * 100_000, "C", {}, None),
        (b"x y\n" * 100_001, "C", {}, "too many lines"),
        # Longest and mean line.
        (b"ab (" * 250 + b"\n" + b"x y\n" * 50, "C", {}, None),
        (b"ab (" * 250 + b"c\n" + b"x y\n" * 50, "C", {}, "long lines"),
        (b"ab (" * 250 + b"c\n" + b"x y\n" * 50, "C", {"max_line_length": 1001}, None),
        (b"a b;" * 25 + b"\n", "C", {}, None),
        (b"a b;" * 25 + b"c\n", "C", {}, "long lines"),
        (b"a b;" * 25 + b"c\n", "C", {"max_mean_line_length": None}, None),
        # Characters, not bytes.
        ("é ü;".encode() * 25 + b"\n", "C", {}, None),
        # Languages of long lines.
        (b"a b;" * 25_000 + b"\n", "Markdown", {}, None),
        (b"a b;" * 25_000 + b"c\n", "Markdown", {}, "long lines"),
        (b"a b;" * 25_000 + b"c\n", "Markdown", {"max_long_line_length": None}, None),
        (b"a b;" * 50 + b"\n", "Markdown", {"long_line_languages": ()}, "long lines"),
        # Data.
        (b"a: b\n" * 512, "YAML", {}, None),
        (b"a: b\n" * 513, "YAML", {}, "long data file"),
        (b"a: b\n" * 513, "YAML", {"max_data_lines": None}, None),
        (b"a: b\n" * 513, "YAML", {"data_languages": ("JSON",)}, None),
        (b"a: b\n" * 513, "Python", {}, None),
        (b"a b\n", "JSON", {"data_sizes": {"JSON": (4, 8)}}, None),
        (b"a b\n", "JSON", {"data_sizes": {"JSON": (5, 8)}}, "small data file"),
        (b"a b c d\n", "JSON", {"data_sizes": {"JSON": (4, 8)}}, None),
        (b"a b c d e\n", "JSON", {"data_sizes": {"JSON": (4, 8)}}, "large data file"),
        (b"a b c d e\n", "YAML", {"data_sizes": {"JSON": (4, 8)}}, None),
        # Letters.
        (b"abc" + b"1" * 9, "C", {}, None),
        (b"abc" + b"1" * 10, "C", {}, "few letters"),
        (b"abc" + b"1" * 10, "C", {"min_alphabetic_fraction": None}, None),
        ("éüß".encode() + b"1" * 9, "C", {}, None),
        ("éüß".encode() + b"1" * 10, "C", {}, "few letters"),
        (b"abc" + b"1" * 9, "C", {"alphabetic_fractions": {"C": 0.5}}, "few letters"),
        (b"abc" + b"1" * 3, "C", {"alphabetic_fractions": {"C": 0.5}}, None),
        (b"abc" + b"1 " * 90, "WebAssembly", {"max_mean_line_length": None}, None),
        (b"a1" + b"(" * 6, "WebAssembly", {}, None),
        (b"a1" + b"(" * 7, "WebAssembly", {}, "few letters"),
        (
            b"a1" + b"(" * 6,
            "C",
            {"min_alphabetic_fraction": None, "min_alphanumeric_fraction": 0.25},
            None,
        ),
        (
            b"a1" + b"(" * 7,
            "C",
            {"min_alphabetic_fraction": None, "min_alphanumeric_fraction": 0.25},
            "few letters and digits",
        ),
        # XML.
        (b' <?xml version="1.0"?><a/>', "XML", {}, None),
        (b' <?xml version="1.0"?><a/>', "XML", {"xml": False}, "XML"),
        (
            b"x " * 43 + b"<?xml version=",
            "C",
            {"xml": False, "min_alphabetic_fraction": None},
            "XML",
        ),
        (b"x " * 43 + b" <?xml version=", "C", {"xml": False, "max_mean_line_length": None}, None),
        # Comments.
        (b"# 89\nabcde\n", "Python", {"comment_fractions": {"Python": (0.2, 0.5)}}, None),
        (b"# 89\nabcde\n", "Python", {"comment_fractions": {"Python": (0.4, 0.5)}}, "few comments"),
        (
            b"# 89\nabcde\n",
            "Python",
            {"comment_fractions": {"Python": (0.1, 0.3)}},
            "mostly comments",
        ),
        (b"# 89\nabcde\n", "Ruby", {"comment_fractions": {"Python": (0.4, 0.5)}}, None),
    ],
)
def test_thresholds(reason, content, language, fields, expected):
    assert reason(file(content, "a/readme.x", language), **fields) == expected


def base64_text(size):
    return base64.b64encode(random.Random(0).randbytes(size))[:size]


@pytest.mark.parametrize(
    ("size", "code", "fields", "expected"),
    [
        (1024, 200, {}, None),
        (1025, 200, {}, "encoded data"),
        (1025, 200, {"max_encoded_run": None}, None),
        (200, 6, {}, "encoded data"),
        (200, 10, {}, None),
        (200, 6, {"max_encoded_fraction": None}, None),
        (200, 6, {"max_encoded_fraction": 0.6}, None),
        (4000, 1, {"max_encoded_fraction": None, "max_encoded_run": None}, None),
    ],
)
def test_encoded_data(reason, size, code, fields, expected):
    fields = {"max_line_length": None, "max_mean_line_length": None, **fields}
    content = CODE * code + b'x = "' + base64_text(size) + b'"\n'
    assert reason(file(content), **fields) == expected


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        (b"# This file is generated by x\n" + CODE, {}, "generated"),
        (b"#\n#\n#\n#\n# AUTO-GENERATED\n" + CODE, {}, "generated"),
        (b"#\n#\n#\n#\n#\n# AUTO-GENERATED\n" + CODE, {}, None),
        (b"# AUTO-GENERATED\n" + CODE, {"generated_markers": ()}, None),
        (b"# made by hand\n" + CODE, {"generated_markers": ("by hand",)}, "generated"),
        (b"#\n# by hand\n", {"generated_markers": ("by hand",), "generated_lines": 1}, None),
    ],
)
def test_generated_markers(reason, content, fields, expected):
    assert reason(file(content), **fields) == expected


@pytest.mark.parametrize(
    ("path", "language", "content"),
    [
        ("package-lock.json", "JSON", b'{"name": "thing"}\n'),
        ("x/Cargo.lock", "TOML", b'[[package]]\nname = "a"\n'),
        ("a.min.js", "JavaScript", b"function f(a){return a}" * 30 + b"\n"),
        ("x/node_modules/a/index.js", "JavaScript", b"module.exports = 1\n"),
        (
            "a_pb2.py",
            "Python",
            b"# Generated by the protocol buffer compiler.  DO NOT EDIT!\n#\n\n",
        ),
        ("a.pb.go", "Go", b"// Code generated by protoc-gen-go. DO NOT EDIT.\n\npackage x\n"),
    ],
)
def test_files_linguist_takes_for_generated(reason, path, language, content):
    assert reason(file(content, path, language)) == "generated"
    limits = {"max_line_length": None, "max_mean_line_length": None}
    assert reason(file(content, path, language), generated=True, **limits) is None


def test_vendored_files_stay_unless_asked(reason):
    row = file(b"$(function () { return 1 })\n", "vendor/jquery.js", "JavaScript")
    assert reason(row) is None
    assert reason(row, vendored=False) == "vendored"
    assert reason(file(CODE), vendored=False) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("requirements.txt", None),
        ("dev/Requirements-test.txt", None),
        ("README", None),
        ("a/ReadMe.txt", None),
        ("TODO.txt", None),  # one of the names that StarCoder2 keeps
        ("CMakeLists.txt", None),
        ("story.txt", "plain text"),
        ("readme.old.txt", "plain text"),
        ("requirements/story.txt", "plain text"),
    ],
)
def test_plain_text_has_a_telling_name(reason, path, expected):
    assert reason(file(b"some words\n", path, "Text")) == expected
    assert reason(file(b"some words\n", path, "Text"), text_names=None) is None
    assert reason(file(b"some words\n", path, "C")) is None


def page(shown, hidden):
    # Words, as one long word would be encoded data.
    return (
        b"<p>"
        + b"ab"
        + b" a" * (shown // 2 - 1)
        + b"</p>"
        + b"<!--"
        + b"h " * (hidden // 2)
        + b"-->"
    )


@pytest.mark.parametrize(
    ("shown", "hidden", "fields", "expected"),
    [
        (100, 0, {}, None),
        (98, 0, {}, "little visible text"),
        (98, 0, {"min_html_text": None}, None),
        (200, 786, {}, None),
        (200, 788, {}, "little visible text"),
        (200, 788, {"min_html_text_fraction": None}, None),
        (2, 900, {"min_html_text": None, "min_html_text_fraction": None}, None),
    ],
)
def test_html_shows_text(reason, shown, hidden, fields, expected):
    assert reason(file(page(shown, hidden), "a.html", "HTML"), **fields) == expected
    assert reason(file(page(shown, hidden), "a.html", "Markdown"), **fields) is None


def test_stars(reason):
    assert reason(file(CODE, stars=5), min_stars=5) is None
    assert reason(file(CODE, stars=4), min_stars=5) == "few stars"
    assert reason(file(CODE), min_stars=1) == "few stars"
    assert reason(file(CODE)) is None


def test_characters_per_token(reason, tmp_path):
    tokenizer = train_tokenizer(["return x + 1\n" * 20], kind="bpe", vocab_size=300)
    tokenizer.save(tmp_path)
    ratio = len(CODE) / len(tokenizer.encode(CODE.decode())) - 1e-9
    for language, least, expected in (
        ("Python", ratio, None),
        ("Python", ratio + 0.01, "many tokens"),
        ("C", ratio + 0.01, None),
    ):
        fields = {"tokenizer": str(tmp_path), "min_characters_per_token": {"Python": least}}
        assert reason(file(CODE, language=language), **fields) == expected


def test_another_tokenizer_is_another_step(tmp_path):
    config = FilterConfig(tokenizer=str(tmp_path), min_characters_per_token={"Python": 2.5})
    with pytest.raises(ValueError, match="holds neither a tokenizer"):
        filter_stage.steps(config, "render")
    keys = set()
    for text in ("return x + 1\n", "import os\n", "import os\n"):
        train_tokenizer([text * 20], kind="bpe", vocab_size=300).save(tmp_path)
        (step,) = filter_stage.steps(config, "render")
        keys.add(key(step.function))
    assert len(keys) == 2


LONG_LINE = b"some words; " * 200 + b"\n"
FEW_LETTERS = b"1 2 3 4 5 6 7 8 9 0 a\n" * 3


@pytest.mark.parametrize(
    "kind", ["commit", "ir", "kaggle", "notebook_script", "notebook_structured", "pull_request"]
)
def test_rows_with_code_and_prose(reason, kind):
    row = file(LONG_LINE, None, None, kind=kind)
    assert reason(row) is None
    assert reason(row, max_long_line_length=1000) == "long lines"
    assert reason({**row, "license_type": "non_permissive"}) == "non-permissive license"
    assert reason({**row, "content": FEW_LETTERS}) == "few letters"
    assert reason({**row, "content": b"x y\n" * 100_001}) == "too many lines"
    assert reason({**row, "content": b"'" + base64_text(1100) + b"'"}) == "encoded data"
    assert reason({**row, "content": b"a: b\n" * 600, "language": "YAML"}) is None


@pytest.mark.parametrize("kind", ["issue", "question", "documentation"])
def test_rows_of_prose(reason, kind):
    row = file(LONG_LINE, None, None, kind=kind, license_type="non_permissive")
    assert reason(row) is None
    assert reason({**row, "content": FEW_LETTERS}) == "few letters"
    assert reason({**row, "content": b"\n"}) == "empty"
    assert reason({**row, "content": b"'" + base64_text(1100) + b"'"}) == "encoded data"


def test_rows_that_are_not_rendered_are_refused(reason):
    with pytest.raises(ValueError, match="'event': run render before it"):
        reason(file(b"{}", kind="event"))
    kinds = set(record.KINDS) - {name for name in record.KINDS if name.endswith("event")} - {"page"}
    for kind in kinds:
        assert reason(file(CODE, kind=kind)) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"license_types": ("mit",)}, "'mit' is none of permissive"),
        ({"min_alphabetic_fraction": 25}, "between 0 and 1: got 25"),
        ({"alphabetic_fractions": {"C": -0.1}}, r"alphabetic_fractions\[C\]"),
        ({"max_lines": -1}, "max_lines cannot be negative"),
        ({"data_sizes": {"JSON": (5, 4)}}, "least and the most"),
        ({"comment_fractions": {"C": (0.5,)}}, "least and the most"),
        ({"generated_markers": ("Generated",)}, "lower case"),
        ({"tokenizer": "x"}, "both or neither"),
        ({"min_characters_per_token": {"C": 2}}, "both or neither"),
    ],
)
def test_bad_options_are_named(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        FilterConfig(**fields)
    assert "\n" not in str(error.value)


def test_files_of_no_known_language_are_left_out(reason):
    unknown = file(CODE, language=None, path="NEWS")
    assert reason(unknown) == "unknown language"
    assert reason(unknown, unknown_languages=True) is None
    assert reason(unknown | {"kind": "issue"}) is None
