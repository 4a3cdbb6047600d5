import itertools
import pickle
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starcoder_jax.stack.record import part_of, records
from starcoder_jax.stack.runner.steps import Map
from starcoder_jax.stack.stages import dedup
from starcoder_jax.stack.stages.dedup.bands import REPRESENTATIVES

TYPES = ("permissive", "no_license", "non_permissive")


def code(seed: int, tokens: int = 300) -> bytes:
    """A file of random words."""
    draw = np.random.default_rng(seed)
    return b" ".join(b"word%d" % number for number in draw.integers(0, 10**6, tokens)) + b"\n"


def changed(content: bytes, seed: int, share: float) -> bytes:
    """The same with the last words replaced."""
    words = content.split()
    keep = round(len(words) * (1 - share))
    return b" ".join([*words[:keep], *code(seed, len(words) - keep).split()])


def row(repository: str, path: str, content: bytes, kind: str = "file", **rest) -> dict:
    return {"kind": kind, "repository": repository, "path": path, "content": content, **rest}


@pytest.fixture
def deduplicate(run_steps):
    """A function of rows; returns those that stay and those dropped, and the steps' outputs."""

    def run(files, partitions=1, **config):
        shards = [[] for _ in range(partitions)]
        for values in sorted(files, key=lambda row: (row["repository"], row["path"])):
            shards[part_of(values["repository"], partitions)].append(values)
        steps = dedup.steps(dedup.DedupConfig(**config), "filter", partitions)
        outputs = run_steps(steps, filter=[records(shard) for shard in shards])
        assert list(outputs)[-1] == "dedup"
        kept = [row for output in outputs["dedup"] for row in output.table.to_pylist()]
        dropped = [
            drop
            for name in outputs
            for output in outputs[name]
            if output.drops is not None
            for drop in output.drops.to_pylist()
        ]
        assert len(kept) + len(dropped) == len(files)
        return (
            sorted((row["repository"], row["path"]) for row in kept),
            sorted(
                (drop["repository"], drop["path"], drop["reason"], drop["detail"])
                for drop in dropped
            ),
            outputs,
        )

    return run


def test_exact_and_near_duplicates_are_told_apart_and_name_who_stays(deduplicate):
    original = code(0)
    rows = [
        row("a/a", "copy", original, stars=1),
        row("b/b", "original", original, stars=9),
        row("c/c", "edited", changed(original, 1, 0.05), stars=5),
        row("d/d", "indented", original.replace(b" ", b"\n    "), stars=8),
        row("e/e", "other", code(2)),
        row("f/f", "half", changed(original, 3, 0.5)),
    ]
    kept, dropped, _ = deduplicate(rows, partitions=3)
    assert kept == [("b/b", "original"), ("e/e", "other"), ("f/f", "half")]
    assert dropped == [
        ("a/a", "copy", "exact duplicate", "b/b: original"),
        ("c/c", "edited", "near duplicate", "b/b: original"),
        ("d/d", "indented", "near duplicate", "b/b: original"),
    ]


def test_what_similar_ones_link_is_one_group(deduplicate):
    first, second = code(0), changed(code(0), 1, 0.12)
    third = b" ".join([*code(9, 36).split(), *second.split()[36:]])
    contents = (first, second, third)
    rows = [row("o/r", name, content) for name, content in zip("abc", contents, strict=True)]
    assert len(deduplicate([rows[0], rows[2]])[0]) == 2
    kept, dropped, _ = deduplicate(rows)
    assert kept == [("o/r", "a")]
    assert [drop[3] for drop in dropped] == ["o/r: a", "o/r: a"]


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        ({}, {"exact duplicate": 1, "near duplicate": 1}),
        ({"threshold": None}, {"exact duplicate": 1}),
        ({"exact": False}, {"near duplicate": 2}),
        ({"threshold": 0.99}, {"exact duplicate": 1}),
        ({"threshold": 0.99, "bands": 256, "rows": 1}, {"exact duplicate": 1}),
        ({"kinds": ("issue",)}, {}),
    ],
)
def test_parts_can_be_switched_off(deduplicate, config, reasons):
    rows = [
        *(row("o/r", "a", code(0)), row("o/r", "b", code(0))),
        row("o/r", "c", changed(code(0), 1, 0.05)),
    ]
    _, dropped, _ = deduplicate(rows, **config)
    found = [drop[2] for drop in dropped]
    assert {reason: found.count(reason) for reason in found} == reasons


def test_kinds_have_duplicates_among_their_own_only(deduplicate):
    kinds = ("file", "issue", "pull_request", "commit", "notebook_script", "documentation")
    alone = [
        *(row("o/r", kind, code(0), kind) for kind in kinds),
        *(row("o/r", f"{kind} edited", changed(code(1), 2, 0.05), kind) for kind in kinds[:1]),
        *(row("o/r", f"{kind} 2", code(1), kind) for kind in kinds[1:2]),
    ]
    assert deduplicate(alone)[1] == []
    questions = [row("o/r", f"question {number}", code(0), "question") for number in range(2)]
    again = [row("x/y", "again", code(0), "issue")]
    kept, dropped, _ = deduplicate([*alone, *questions, *again])
    assert dropped == [("x/y", "again", "exact duplicate", "o/r: issue")]
    assert len(kept) == len(alone) + 2


def test_files_of_few_tokens_have_no_near_duplicates(deduplicate):
    rows = [
        *(row("o/r", "1", b"import os, sys"), row("o/r", "2", b"import  os, sys")),
        *(row("o/r", "3", b""), row("o/r", "4", b""), row("o/r", "5", b"\n")),
        *(row("o/r", "6", b"a b c d e"), row("o/r", "7", b"a b\nc d e")),
    ]
    assert [drop[:3] for drop in deduplicate(rows)[1]] == [
        ("o/r", "4", "exact duplicate"),
        ("o/r", "7", "near duplicate"),
    ]


def shingles(content: bytes) -> set[tuple]:
    tokens = [token for token in re.split(rb"[^A-Za-z_0-9]", content) if token]
    return {tuple(tokens[start : start + 3]) for start in range(len(tokens) - 2)}


def survivors(rows: list[dict], threshold: float) -> list[tuple[str, str]]:
    """What stays by comparing all with all."""
    sets = [shingles(row["content"]) for row in rows]
    groups = list(range(len(rows)))
    for first, second in itertools.combinations(range(len(rows)), 2):
        either = len(sets[first] | sets[second])
        same = rows[first]["content"] == rows[second]["content"]
        if same or (either and len(sets[first] & sets[second]) >= threshold * either):
            old, new = groups[second], groups[first]
            groups = [new if group == old else group for group in groups]

    def rank(row):
        return (
            *(TYPES.index(row["license_type"]), -row["stars"], -row["timestamp"]),
            *(row["repository"], row["path"]),
        )

    best = {}
    for group, values in zip(groups, rows, strict=True):
        if group not in best or rank(values) < rank(best[group]):
            best[group] = values
    return sorted((values["repository"], values["path"]) for values in best.values())


FILES = st.fixed_dictionaries(
    {
        "repository": st.sampled_from(["a/a", "b/b", "c/c", "d/d"]),
        "content": st.lists(st.sampled_from("pqrs"), max_size=12).map(" ".join).map(str.encode),
        "license_type": st.sampled_from(TYPES),
        "stars": st.integers(0, 2),
        "timestamp": st.integers(0, 1),
    }
)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(FILES, min_size=1, max_size=14), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_what_stays_is_what_comparing_all_with_all_says(deduplicate, files, threshold):
    rows = [{"kind": "file", "path": f"{number:02}", **file} for number, file in enumerate(files)]
    # One row a band: whoever shares a shingle is a candidate, all but surely.
    config = {"threshold": threshold, "bands": 256, "rows": 1, "ngram": 3}
    results = [deduplicate(rows, partitions, **config)[:2] for partitions in (1, 3)]
    assert results[0][0] == survivors(rows, threshold)
    assert results[0] == results[1]


def corpus(count: int) -> list[dict]:
    draw = np.random.default_rng(5)
    contents = [code(seed, int(draw.integers(5, 400))) for seed in range(count // 4)]
    rows = []
    for number in range(count):
        content = contents[draw.integers(len(contents))]
        if draw.random() < 0.8:
            content = changed(content, number, float(draw.choice([0.02, 0.1, 0.2, 0.3])))
        repository = f"owner/{draw.integers(30)}"
        rows.append(row(repository, f"{number:04}", content, stars=int(draw.integers(3))))
    return rows


def test_shards_do_not_matter(deduplicate):
    rows = corpus(400)
    first, *others = (deduplicate(rows, partitions)[:2] for partitions in (1, 2, 7))
    reasons = {drop[2] for drop in first[1]}
    assert reasons == {"exact duplicate", "near duplicate"} and 100 < len(first[0]) < 300
    for other in others:
        assert other == first


def test_candidates_are_verified(deduplicate):
    """With one row a band nearly everything with anything in common is a candidate."""
    rows = corpus(200)
    kept, _, outputs = deduplicate(rows, partitions=2, exact=False, bands=256, rows=1, ngram=3)
    counts = [output.counts for output in outputs["dedup.edges"]]
    pairs = sum(count["candidate pairs"] for count in counts)
    compared = sum(count["compared pairs"] for count in counts)
    edges = sum(len(output.table) for output in outputs["dedup.edges"])
    assert pairs > compared > edges > 10
    assert kept == survivors(
        [{"license_type": "permissive", "timestamp": 0, **values} for values in rows], 0.7
    )


def test_a_giant_bucket_takes_no_quadratic_time(deduplicate):
    license_text = code(0, 400)
    rows = [
        row("o/r", f"{number:05}", license_text + b"\nfile%d" % number) for number in range(2_000)
    ]
    start = time.process_time()
    kept, _, outputs = deduplicate(rows)
    assert time.process_time() - start < 20
    assert kept == [("o/r", "00000")]
    pairs = outputs["dedup.pairs"][0].table
    # Buckets differ, and so do the documents that stand for them: with all pairs it were 2 million.
    assert len(pairs) < 2 * REPRESENTATIVES * len(rows)
    # All have the same shingles but for the last: one comparison links each.
    assert outputs["dedup.edges"][0].counts["compared pairs"] < 2 * len(rows)


def test_steps_can_be_sent_to_other_processes_and_name_their_inputs():
    steps = dedup.steps(dedup.DedupConfig(), "filter", 4)
    assert pickle.loads(pickle.dumps(steps)) is not steps
    known = {"filter"}
    for step in steps:
        assert set(step.inputs) <= known
        known.add(step.name)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and names[-1] == "dedup"
    assert all(name == "dedup" or name.startswith("dedup.") for name in names)
    assert [step.name for step in steps if not isinstance(step, Map) and step.partitions == 1] == [
        "dedup.components"
    ]


def test_a_shard_with_repositories_of_others_is_refused(run_steps):
    shards = [records([row(f"owner/{number}", "a", code(number)) for number in range(8)])] * 2
    with pytest.raises(ValueError, match=r"repositories of 2 of 2 shards: .* by part_of"):
        run_steps(dedup.steps(dedup.DedupConfig(), "filter", 2), filter=shards)


def test_shards_in_another_order_are_refused(run_steps):
    names = sorted((f"owner/{number}" for number in range(8)), key=lambda name: part_of(name, 2))
    shards = [records([row(name, "a", code(0))]) for name in (names[-1], names[0])]
    with pytest.raises(ValueError, match="rows of another shard"):
        run_steps(dedup.steps(dedup.DedupConfig(), "filter", 2), filter=shards)


def test_nothing_to_do(deduplicate):
    kept, dropped, outputs = deduplicate([], partitions=2)
    assert kept == dropped == []
    assert outputs["dedup"][1].drops is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"exact": False, "threshold": None}, "leave the stage out"),
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"threshold": 1.1}, "threshold must be above 0"),
        ({"ngram": 0}, "must be positive"),
        ({"num_hashes": 0}, "must be positive"),
        ({"bands": 4}, "both bands and rows"),
        ({"bands": 26, "rows": 10}, "need 260 num_hashes: got 256"),
        ({"bands": 0, "rows": 10}, "must be positive"),
        ({"keep": ("stars", "age")}, "keep: age unknown: there are license_type"),
        ({"kinds": ("file", "gist")}, "kinds: gist unknown"),
    ],
)
def test_bad_settings_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as error:
        dedup.DedupConfig(**config)
    assert "\n" not in str(error.value)
