"""All stages on a small corpus, some of it hostile: what comes out, and that nothing else does."""

import html.parser
import json
import pathlib

import corpus_fixture
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_fixture import (
    ADDRESS,
    EMAIL,
    GONE,
    IMAGE,
    KEY,
    OUTSIDE,
    PROBLEM,
    SCRIPT,
    THERE,
    files,
)

from starcoder_jax import gin_files
from starcoder_jax.data import published
from starcoder_jax.gin_files import packaged_recipes, recipe_text
from starcoder_jax.stack import lookup, pipeline
from starcoder_jax.stack.accounting import STAGES
from starcoder_jax.stack.config import StackRecipe
from starcoder_jax.stack.runner.shards import Store

RECIPES = [name for name in packaged_recipes() if name.startswith("stack/")]


def recipe(finished, *overrides):
    return gin_files.load(StackRecipe, [str(finished / "sources" / "corpus.gin")], overrides)


def rows(corpus, step):
    return pa.concat_tables(Store(str(corpus)).load(step).tables()).to_pylist()


def drops(corpus):
    paths = sorted(corpus.glob("*/*.drops.parquet"))
    assert paths
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def texts(corpus):
    """The documents by the path of their first file; a notebook's two are put together."""
    found = {}
    for name in published.components(corpus / "published"):
        for document in published.read_component(corpus / "published", name):
            found[document.path] = found.get(document.path, "") + document.text
    return found


def test_what_must_be_gone_is_gone_for_its_reason(finished):
    found = drops(finished / "corpus")
    # Until it was too much, the bomb was read.
    bomb = [row for row in found if row["repository"] == "mallory/bomb" and row["path"]]
    assert 0 < len(bomb) < 10 and {row["reason"] for row in bomb} == {"binary"}
    others = [row for row in found if row not in bomb]
    assert {(row["repository"], row["path"]): row["reason"] for row in others} == GONE
    assert len(others) == len(GONE)
    details = {row["reason"]: row["detail"] for row in others}
    assert details["benchmark"] == "HumanEval/0"
    assert details["near duplicate"] == "carol/tool: tool.py"
    assert details["exact duplicate"] == "ada/parser: parser.py"


def test_what_must_be_there_is_there(finished):
    found = {}
    for row in rows(finished / "corpus", "publish"):
        for file in row["files"]:
            key = file["repository"], file["path"]
            found.setdefault(key, (set(), file["license"]))[0].add(row["component"])
    assert found == THERE
    documents = texts(finished / "corpus")
    assert corpus_fixture.module(17) in documents["lib.py"]
    assert "déjà payé à l'été" in next(text for text in documents.values() if "déj" in text)
    assert "Open the valve" in documents["index.html"] and "Home" not in documents["index.html"]
    assert "alert" not in documents["index.html"]
    assert "username_0: Whenever the humidity rises" in documents["issues/1"]
    assert "username_2: The hinge was oiled." in documents["issues/1"]
    components = published.components(finished / "corpus" / "published")
    assert components["python"].documents == 5 and components["go"].language == "Go"
    assert (finished / "said").read_text().startswith("published 10 documents, 0.0 MB, in 6 comp")


def test_nothing_is_left_of_secrets_benchmarks_and_what_stands_outside(finished):
    corpus = finished / "corpus"
    collected = b"".join(row["content"] for row in rows(corpus, "collect")).decode("latin-1")
    whole = "".join(texts(corpus).values())
    written = [corpus / "published" / name for name in ("report.html", "report.json", "README.md")]
    for secret in (EMAIL, KEY, ADDRESS, PROBLEM.upper()):
        assert secret in collected and secret not in whole
    for path in written:
        assert EMAIL not in path.read_text() and KEY not in path.read_text()
    for path in corpus.rglob("*.parquet"):
        assert OUTSIDE not in str(pq.read_table(path).to_pylist())
    tokens = {mark["token"] for row in rows(corpus, "publish") for mark in row["marks"]}
    assert {"<EMAIL>", "<KEY>", "<file_sep>", "<issue_start>", "<jupyter_start>"} <= tokens
    assert "<|endoftext|>" not in tokens and "<|endoftext|><repo_name>ada/forged" in whole


def test_books_balance(finished):
    report = json.loads((finished / "corpus" / "published" / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    before = None
    for stage in report["stages"]:
        went_in, out, dropped = (stage[name]["rows"] for name in ("in", "out", "dropped"))
        assert before is None or went_in == before
        # Documents are made of several rows.
        went_on = stage["parts"] if stage["name"] == "format" else out
        assert went_in + stage["made"] == went_on + dropped + stage["joined"]
        assert dropped == sum(about["dropped"]["rows"] for about in stage["reasons"].values())
        before = out
    assert before == 10 and report["stages"][0]["in"]["rows"] > len(GONE) + len(THERE)
    every = {reason: stage for stage in report["stages"] for reason in stage["reasons"]}
    assert every.keys() >= set(GONE.values()) and every["benchmark"]["name"] == "decontaminate"
    counts = every["benchmark"]["counts"] | report["stages"][STAGES.index("redact")]["counts"]
    assert counts["EMAIL replaced"] == 2 and counts["KEY replaced"] == 1


class _Page(html.parser.HTMLParser):
    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_report_and_card_show_what_is_hostile_and_escape_it(finished):
    folder = finished / "corpus" / "published"
    page = _Page((folder / "report.html").read_text())
    assert not {"script", "img"} & page.tags
    assert not any(name.startswith("on") for name in page.attributes)
    for hostile in (SCRIPT, f"{IMAGE}.py", "eve/<b>copyleft<b>"):
        assert hostile in page.text
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "- other\n" not in card.partition("\n---\n")[0]
    for hostile in ("<script", "<img", "<b>"):
        assert hostile not in card
    for reason in set(GONE.values()):
        assert reason in card
    for name in ("Python", "Go", "MIT", "Apache-2.0", "EMAIL replaced"):
        assert name in card


def test_lookup_finds_users_repositories_files_and_contents(finished):
    def found(**asked):
        answers = lookup.find(finished / "corpus" / "lookup", **asked).to_pylist()
        return [(row["repository"], row["path"], row["component"]) for row in answers]

    lib = [("heidi/lib", "lib.py", "python")]
    assert found(owner="Heidi") == found(repository="heidi/LIB") == found(path="lib.py") == lib
    assert found(swhid="swh:1:cnt:" + "c" * 40) == lib
    assert len(found(owner="ada")) == 7  # a notebook is two documents
    assert found(owner="eve") == found(repository="bob/none") == found(path="exact.py") == []


def test_seqio_mixtures_give_tokens(finished, prepared):
    import seqio

    from starcoder_jax.data.tokenizer import load_tokenizer
    from starcoder_jax.stack import mixtures

    tokenizer = load_tokenizer(prepared / "data" / "tokenizer.json")
    folder = finished / "corpus" / "published"
    names = mixtures.register(folder, tokenizer)
    assert names == ["stack", *(f"stack.{name}" for name in mixtures.LANGUAGE_SETS)]
    mixture = seqio.get_mixture_or_task("stack.starcoder2_17")
    there = published.components(folder)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {f"stack.{name}": float(entry.bytes) for name, entry in there.items()}
    lengths = {"targets": 9999}
    dataset = mixture.get_dataset(lengths, split="train", shuffle=False, num_epochs=None)
    for example in dataset.take(20).as_numpy_iterator():
        tokens = example["targets"].tolist()
        assert tokens.index(tokenizer.end_of_text_id) == len(tokens) - 1 > 10
    (go,) = seqio.get_mixture_or_task("stack.go").get_dataset(lengths, "train").as_numpy_iterator()
    tokens = go["targets"]
    assert tokens[0] in [tokenizer.special_id(name) for name in ("<repo_name>", "<file_sep>")]
    assert "package engine" in tokenizer.decode(tokens[1:-1])


def test_marks_become_special_tokens_in_a_token_store_and_forged_ones_do_not(finished, prepared):
    from starcoder_jax.data.store import TokenStore

    store = TokenStore(prepared / "data")
    special = {name: store.tokenizer.special_id(name) for name in ("<file_sep>", "<EMAIL>")}
    ids = {row["id"]: row for row in rows(finished / "corpus", "publish")}
    seen = set()
    for split in ("train", "validation"):
        part = store.split("code", split)
        for number in range(part.num_documents):
            row = ids[part.document_info(number)["id"]]
            tokens = part.document_tokens(number).tolist()
            for name, token in special.items():
                marks = [mark["token"] for mark in row["marks"]]
                assert tokens.count(token) == marks.count(name)
            assert store.tokenizer.end_of_text_id not in tokens
            seen.add(row["id"])
    assert seen == ids.keys()


def test_one_process_leaves_the_same_bytes_as_two(finished, tmp_path):
    pipeline.curate(recipe(finished, "runner.workers=1"), str(tmp_path / "corpus"))
    assert files(tmp_path / "corpus") == files(finished / "corpus")


def test_beam_leaves_the_same_bytes(finished, tmp_path, beam):
    pipeline.curate(recipe(finished, "runner.engine=beam"), str(tmp_path / "corpus"))
    assert files(tmp_path / "corpus") == files(finished / "corpus")


def test_packaged_recipes_are_found():
    folder = pathlib.Path(__file__).parents[2] / "gin" / "stack"
    assert sorted(f"stack/{path.name}" for path in folder.iterdir()) == RECIPES
    assert "stack/local.gin" in RECIPES and len(RECIPES) > 3


@pytest.mark.parametrize("name", RECIPES)
def test_a_packaged_recipe_resolves_and_its_text_reads_back_equal(name, tmp_path):
    if name != "stack/local.gin":
        with pytest.raises(ValueError, match=r"open what it must say: collect\.sources;"):
            gin_files.load(StackRecipe, [name])
    (tmp_path / "code").mkdir()
    source = f"collect.sources=('folder:{tmp_path / 'code'}',)"
    resolved = gin_files.load(StackRecipe, [name], [source])
    by_stage = pipeline.steps(resolved)
    assert list(by_stage) == list(STAGES) and all(by_stage.values())
    (tmp_path / "corpus.gin").write_text(recipe_text(resolved))
    assert gin_files.load(StackRecipe, [str(tmp_path / "corpus.gin")]) == resolved
