import itertools
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from starcoder_jax.data import tokenizer as tokenizer_module
from starcoder_jax.data.fim import FillInTheMiddle, FimConfig
from starcoder_jax.data.tokenizer import END_OF_TEXT, load_tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.inference.infilling import (
    FimTokens,
    Repository,
    fim_tokens,
    infill_prompt,
    read_repository,
    split_at,
)

CORPUS = [pathlib.Path(tokenizer_module.__file__).read_text(encoding="utf-8"), "é中😀\r\n" * 20]
UNDERSCORES = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
SPECIAL_TOKENS = {
    "santacoder": (END_OF_TEXT, *(name.replace("_", "-") for name in UNDERSCORES)),
    "starcoder": (END_OF_TEXT, *UNDERSCORES, "<filename>", "<gh_stars>", "<reponame>"),
    "starcoder2": (END_OF_TEXT, *UNDERSCORES, "<repo_name>", "<file_sep>"),
    "bloom": (END_OF_TEXT,),
}
# Prefix and suffix that touch inside what belongs together, and that spell special tokens.
TOUCHING = [
    ("", ""),
    ("x", ""),
    ("", "x"),
    ("a\r", "\nb"),
    ("a\n", "\r\nb"),
    ("👩", "\u200d💻"),
    ("👩\u200d", "💻"),
    ("e", "\u0301"),
    ("if x:\n    ", "    y\n"),
    ("\t ", " \t"),
    ("12", "34"),
    ("<fim_", "middle>"),
    ("<fim_middle>", "<fim_prefix><|endoftext|>"),
    ("<file_sep>a.py\n", "<repo_name>x"),
    ("\ufeff", "\0"),
    ("\ud83d", "\ude00"),
]
CONTEXT = Repository(
    "owner/project",
    "src/main.py",
    (("src/near.py", "near = 1\n"), ("src/long.py", "x = 1\n" * 40), ("far.py", "far = 2\n" * 3)),
)


@pytest.fixture(scope="module")
def tokenizers():
    return {
        name: train_tokenizer(CORPUS, kind="bpe", vocab_size=400, special_tokens=special)
        for name, special in SPECIAL_TOKENS.items()
    } | {
        "sentencepiece": train_tokenizer(
            CORPUS,
            kind="sentencepiece",
            vocab_size=400,
            special_tokens=SPECIAL_TOKENS["starcoder2"],
        )
    }


def parts(prompt, marks, order):
    """Tokens of what was before and after the gap."""
    prompt = prompt.tolist()
    if order == "psm":
        assert prompt[0] == marks.prefix and prompt[-1] == marks.middle
        middle = prompt.index(marks.suffix)
        return prompt[1:middle], prompt[middle + 1 : -1]
    assert prompt[:2] == [marks.prefix, marks.suffix]
    middle = prompt.index(marks.middle)
    return prompt[middle + 1 :], prompt[2:middle]


@pytest.mark.parametrize("order", ["psm", "spm"])
@pytest.mark.parametrize("name", ["santacoder", "starcoder", "starcoder2", "sentencepiece"])
def test_every_character_stays_on_its_side_of_the_gap(tokenizers, name, order):
    tokenizer = tokenizers[name]
    marks = fim_tokens(tokenizer)
    special = set(tokenizer.special_tokens.values())
    for prefix, suffix in TOUCHING:
        prompt = infill_prompt(tokenizer, prefix, suffix, order=order)
        assert prompt.dtype == np.int32 and special & {*prompt.tolist()} == {
            *(marks.prefix, marks.middle, marks.suffix)
        }
        before, after = parts(prompt, marks, order)
        for tokens, text in ((before, prefix), (after, suffix)):
            spelled = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
            assert tokenizer.decode_bytes(tokens) == spelled.encode()


def test_the_tokens_bear_the_names_of_the_vocabulary(tokenizers):
    for name, mark in (("starcoder2", "_"), ("santacoder", "-")):
        prompt = infill_prompt(tokenizers[name], "a", "b")
        expected = f"<fim{mark}prefix>a<fim{mark}suffix>b<fim{mark}middle>"
        assert tokenizers[name].decode(prompt) == expected
        assert prompt.tolist() == tokenizers[name].encode_prompt(expected).tolist()
        prompt = infill_prompt(tokenizers[name], "a", "b", order="spm")
        expected = f"<fim{mark}prefix><fim{mark}suffix>b<fim{mark}middle>a"
        assert tokenizers[name].decode(prompt) == expected


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_the_prompt_is_what_training_showed(tokenizers, order):
    """Prompt and middle together are a permuted document."""
    tokenizer = tokenizers["starcoder2"]
    text = "def count(words):\n    total = 0\n    for word in words:\n        total += 1\n"
    permute = FillInTheMiddle(FimConfig(rate=1.0, spm_rate=float(order == "spm")), tokenizer)
    document = np.pad(tokenizer.encode(text), (0, 20))
    document[len(tokenizer.encode(text)) :] = tokenizer.end_of_text_id
    found = 0
    for seed in range(6):
        permuted = permute(document, np.random.default_rng(seed)).tolist()
        permuted = permuted[: permuted.index(tokenizer.end_of_text_id)]
        matches = [
            (start, stop)
            for start, stop in itertools.combinations_with_replacement(range(len(text) + 1), 2)
            if permuted
            == [
                *infill_prompt(tokenizer, text[:start], text[stop:], order=order),
                *tokenizer.encode(text[start:stop]),
            ]
        ]
        found += len(matches) > 0
    assert found == 6


@pytest.mark.parametrize("name", ["starcoder2", "sentencepiece"])
@pytest.mark.parametrize("order", ["psm", "spm"])
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    prefix=st.text(max_size=40), suffix=st.text(max_size=40), limit=st.integers(5, 60)
)
def test_what_is_nearest_to_the_gap_stays(tokenizers, name, order, prefix, suffix, limit):
    tokenizer = tokenizers[name]
    before, after = tokenizer.encode(prefix).tolist(), tokenizer.encode(suffix).tolist()
    prompt = infill_prompt(tokenizer, prefix, suffix, order=order, max_tokens=limit)
    kept_before, kept_after = parts(prompt, fim_tokens(tokenizer), order)
    assert before[len(before) - len(kept_before) :] == kept_before
    assert after[: len(kept_after)] == kept_after
    room = limit - 3
    assert len(prompt) == min(limit, 3 + len(before) + len(after))
    for kept, whole, other in (
        (kept_before, before, kept_after),
        (kept_after, after, kept_before),
    ):
        # Cut only to leave the other side its half.
        assert kept == whole or len(kept) >= room // 2
        assert kept == whole or len(other) <= room - room // 2


def test_without_room_or_tokens_or_order(tokenizers):
    tokenizer = tokenizers["starcoder2"]
    assert len(infill_prompt(tokenizer, "ab" * 9, "cd" * 9, max_tokens=5)) == 5
    for limit in (4, 0, -7):
        with pytest.raises(ValueError, match=r"^\d tokens are left .* fewer new tokens$"):
            infill_prompt(tokenizer, "ab" * 9, "cd" * 9, max_tokens=limit)
    with pytest.raises(ValueError, match="no infilling tokens"):
        infill_prompt(tokenizers["bloom"], "a", "b")
    with pytest.raises(ValueError, match="order 'mps' is unknown: give 'psm' or 'spm'"):
        infill_prompt(tokenizer, "a", "b", order="mps")


def test_other_names_of_the_tokens(tokenizers):
    tokenizer = tokenizers["starcoder2"]
    tokens = FimTokens(*map(tokenizer.special_id, ("<fim_pad>", "<file_sep>", "<repo_name>")))
    prompt = infill_prompt(tokenizer, "a", "b", tokens=tokens)
    assert tokenizer.decode(prompt) == "<fim_pad>a<repo_name>b<file_sep>"


def test_a_repository_as_starcoder2_saw_it(tokenizers):
    tokenizer = tokenizers["starcoder2"]
    others = (
        "<repo_name>owner/project<file_sep>far.py\n"
        + "far = 2\n" * 3
        + "<file_sep>src/long.py\n"
        + "x = 1\n" * 40
        + "<file_sep>src/near.py\nnear = 1\n<file_sep>"
    )
    for order, file in (
        ("psm", "<fim_prefix>src/main.py\n    a<fim_suffix>b<fim_middle>"),
        ("spm", "<fim_prefix><fim_suffix>b<fim_middle>src/main.py\n    a"),
    ):
        prompt = infill_prompt(tokenizer, "    a", "b", order=order, context=CONTEXT)
        # As one text, path and code included: as it was tokenized for training.
        assert len(tokenizer.encode("\n    a")) < 1 + len(tokenizer.encode("    a"))
        assert prompt.tolist() == tokenizer.encode_prompt(others + file).tolist()


def test_a_file_as_starcoder_saw_it(tokenizers):
    context = Repository("owner/project", "main.py")
    prompt = infill_prompt(tokenizers["starcoder"], "a", "b", context=context)
    expected = "<fim_prefix><reponame>owner/project<filename>main.py\na<fim_suffix>b<fim_middle>"
    assert prompt.tolist() == tokenizers["starcoder"].encode_prompt(expected).tolist()
    with pytest.raises(ValueError, match="no token <file_sep>"):
        infill_prompt(tokenizers["starcoder"], "a", "b", context=CONTEXT)
    with pytest.raises(ValueError, match="no tokens for the names of repository and file"):
        infill_prompt(tokenizers["santacoder"], "a", "b", context=context)


def test_files_go_before_the_text_around_the_gap_and_the_names_stay(tokenizers):
    tokenizer = tokenizers["starcoder2"]
    prefix, suffix = "value = 1\n" * 3, "print(value)\n" * 3
    whole = len(infill_prompt(tokenizer, prefix, suffix, context=CONTEXT))
    shown = []
    for limit in range(whole + 1, 0, -1):
        try:
            prompt = infill_prompt(tokenizer, prefix, suffix, max_tokens=limit, context=CONTEXT)
        except ValueError as error:
            assert str(error).endswith("tokens or give no context")
            break
        assert len(prompt) <= limit
        text = tokenizer.decode(prompt)
        files = [path for path, _ in CONTEXT.files if f"<file_sep>{path}\n" in text]
        for path, content in CONTEXT.files:
            assert path not in files or f"<file_sep>{path}\n{content}<file_sep>" in text
        assert text.startswith("<repo_name>owner/project<file_sep>")
        assert "<file_sep><fim_prefix>src/main.py\n" in text
        cut = f"\n{prefix}<fim_suffix>{suffix}<fim_middle>" not in text
        assert not (files and cut)
        if not shown or shown[-1] != (files, cut):
            shown.append((files, cut))
    near, long, far = (path for path, _ in CONTEXT.files)
    kept = [[near, long, far], [near, long], [near, far], [near], []]
    assert shown == [*((files, False) for files in kept), ([], True)]
    assert limit < whole / 2


def test_names_and_code_of_a_repository_are_text(tokenizers):
    tokenizer = tokenizers["starcoder2"]
    forged = Repository("<repo_name>", "<fim_middle>", (("<file_sep>", "<|endoftext|>"),))
    prompt = infill_prompt(tokenizer, "", "", context=forged).tolist()
    counts = {name: prompt.count(index) for name, index in tokenizer.special_tokens.items()}
    assert counts == {
        **dict.fromkeys(UNDERSCORES[:3], 1),
        **{"<fim_pad>": 0, END_OF_TEXT: 0, "<repo_name>": 1, "<file_sep>": 2},
    }


def write(root, **files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_read_repository(tmp_path):
    root = tmp_path / "project"
    names = ["top.py", "a/b/one.py", "a/b/two.py", "a/three.py", "a/b/c/four.py", "d/five.py"]
    write(root, **{name: f"name = {name!r}\n" for name in names})
    skipped = ["a/b/other.js", ".venv/x.py", "a/.hidden.py"]
    write(root, **{name: "value = 'x'\n" for name in skipped})
    write(root, **{"a/b/empty.py": "", "a/b/generated.py": "# @generated\nx = 1\n"})
    (root / "a/b/link.py").symlink_to(root / "top.py")
    found = read_repository(root, root / "a/b/one.py", max_bytes=10_000)
    assert (found.name, found.path) == ("project", "a/b/one.py")
    order = ["a/b/two.py", "a/b/c/four.py", "a/three.py", "top.py", "d/five.py"]
    assert found.files == tuple((name, f"name = {name!r}\n") for name in order)

    write(root, **{"a/b/two.py": "x = 'a long line'\n" * 9})
    limit = len("name = 'a/b/c/four.py'\n" + "name = 'a/three.py'\n")
    found = read_repository(root, root / "a/b/one.py", max_bytes=limit)
    assert [name for name, _ in found.files] == ["a/b/c/four.py", "a/three.py"]


def test_read_repository_takes_a_file_of_it(tmp_path, monkeypatch):
    write(tmp_path, **{"project/a.py": "one = 1\n", "project/b.py": "two = 2\n", "c.py": ""})
    monkeypatch.chdir(tmp_path / "project")
    found = read_repository(".", "a.py", max_bytes=100)
    assert found == Repository("project", "a.py", (("b.py", "two = 2\n"),))
    with pytest.raises(ValueError, match=r"the file \.\./c\.py is not in the folder \."):
        read_repository(".", "../c.py", max_bytes=100)


@pytest.mark.parametrize("name", ["starcoder1", "starcoder2"])
def test_published_vocabularies(name, published_vocabulary):
    tokenizer = load_tokenizer(published_vocabulary(name))
    assert fim_tokens(tokenizer) == FimTokens(prefix=1, middle=2, suffix=3)
    context = Repository("r", "p.py")
    prompt = infill_prompt(tokenizer, "", "", context=context).tolist()
    r, path = tokenizer.encode("r").tolist(), tokenizer.encode("p.py\n").tolist()
    assert (
        prompt
        == {
            "starcoder1": [1, 18, *r, 5, *path, 3, 2],
            "starcoder2": [5, *r, 6, 1, *path, 3, 2],
        }[name]
    )


@pytest.mark.parametrize(
    ("text", "cursor", "before"),
    [
        ("one\ntwo\n", "1:1", ""),
        ("one\ntwo\n", "1:3", "on"),
        ("one\ntwo\n", "1:4", "one"),
        ("one\ntwo\n", "2:1", "one\n"),
        ("one\ntwo\n", "3:1", "one\ntwo\n"),
        ("one\ntwo", "2:4", "one\ntwo"),
        ("one\n\n\n", "3:1", "one\n\n"),
        ("one\r\ntwo\r\n", "2:1", "one\r\n"),
        ("one\r\ntwo", "1:5", "one\r"),
        ("", "1:1", ""),
        ("\n", "2:1", "\n"),
        ("é漢\nx", "1:3", "é漢"),
        ("# one\x0c\u2028still one\ntwo", "2:2", "# one\x0c\u2028still one\nt"),
    ],
)
def test_split_at(text, cursor, before):
    prefix, suffix = split_at(text, cursor)
    assert prefix == before and prefix + suffix == text


@pytest.mark.parametrize(
    "cursor",
    ["", "1", ":", "1:", ":1", "0:1", "1:0", "-1:1", "1:5", "3:2", "4:1", "a:b", "1:1:1", "²:1"],
)
def test_split_at_refuses_what_is_no_place(cursor):
    with pytest.raises(ValueError, match=r"^cursor .* (must be LINE:COLUMN|is outside)"):
        split_at("one\ntwo\n", cursor)
