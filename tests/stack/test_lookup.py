import json
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starcoder_jax.data.lineage import steps_that_saw
from starcoder_jax.data.store import StoreWriter, TokenStore
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.stack import lookup
from starcoder_jax.stack.lookup import find
from starcoder_jax.stack.stages.publish import PUBLISHED


def swhid(number):
    return f"swh:1:cnt:{number:040x}"


def part(repository, path, number=0, license="MIT"):
    of = {"repository": repository, "path": path, "swhid": swhid(number), "license": license}
    return of | {"revision": None, "start": 0, "stop": 1}


def documents(*lists):
    rows = [
        {"component": "python", "id": f"{number:064x}", "bytes": 1, "kind": "file", "content": b"x"}
        | {
            "marks": [],
            "repository": "",
            "language": "Python",
            "licenses": [],
            "files": list(files),
        }
        for number, files in enumerate(lists)
    ]
    return pa.Table.from_pylist(rows, schema=PUBLISHED)


@pytest.fixture
def index(run_steps, tmp_path):
    """A function of shards of published documents, which writes the index of so many partitions."""

    def write(*shards, partitions=3, row_group_size=2):
        steps = lookup.index_steps("publish", partitions)
        outputs = run_steps(steps, publish=shards)["lookup"]
        for number, output in enumerate(outputs):
            path = tmp_path / f"shard-{number:05}-of-{partitions:05}.parquet"
            pq.write_table(output.table, path, row_group_size=row_group_size)
            (tmp_path / f"{path.stem}.json").write_text("{}")
        return tmp_path

    return write


SHARDS = (
    documents([part("Me/a", "x.py", 1), part("Me/a", "y.py", 2)], [part("me/b", "x.py", 1)]),
    documents([], [part("you/a", "x.py", 3, None)], [part("numpy", "x.py", 4), part(None, None)]),
)


@pytest.mark.parametrize("partitions", [1, 3, 64])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"owner": "ME"}, ["Me/a x.py 0", "Me/a y.py 0", "me/b x.py 1"]),
        ({"owner": "m"}, []),
        ({"owner": "numpy"}, ["numpy x.py 2"]),
        ({"repository": "me/A"}, ["Me/a x.py 0", "Me/a y.py 0"]),
        ({"repository": "me"}, []),
        ({"path": "x.py"}, ["Me/a x.py 0", "me/b x.py 1", "numpy x.py 2", "you/a x.py 1"]),
        ({"path": "X.py"}, []),
        ({"swhid": swhid(1)}, ["Me/a x.py 0", "me/b x.py 1"]),
        ({"swhid": swhid(9)}, []),
        ({"repository": "me/a", "path": "y.py"}, ["Me/a y.py 0"]),
        ({"owner": "you", "path": "x.py"}, ["you/a x.py 1"]),
        ({"owner": "you", "repository": "me/a"}, []),
        ({"swhid": swhid(1), "owner": "me", "repository": "me/b"}, ["me/b x.py 1"]),
    ],
)
def test_questions(index, partitions, asked, expected):
    found = find(index(*SHARDS, partitions=partitions), **asked)
    assert found.schema == lookup.FOUND
    rows = found.to_pylist()
    names = [f"{row['repository']} {row['path']} {int(row['document'], 16)}" for row in rows]
    assert names == expected
    for row in rows:
        assert (row["component"], row["language"], row["kind"]) == ("python", "Python", "file")
        assert row["license"] == (None if row["repository"] == "you/a" else "MIT")


def test_the_index_does_not_depend_on_shards(run_steps):
    steps = lookup.index_steps("publish", 2)
    whole = run_steps(steps, publish=[documents(*SHARDS[0]["files"].to_pylist())])["lookup"]
    again = run_steps(steps, publish=[SHARDS[0].slice(1), SHARDS[0].slice(0, 1)])["lookup"]
    assert [o.table for o in whole] == [o.table for o in again]
    assert sum(len(output.table) for output in whole) == 9


def test_bad_questions(index, tmp_path):
    folder = index(*SHARDS)
    with pytest.raises(ValueError, match="nothing to look for"):
        find(folder)
    with pytest.raises(ValueError, match="must be swh:1:cnt: and 40"):
        find(folder, swhid="12")
    with pytest.raises(ValueError, match="no complete index"):
        find(tmp_path / "none", owner="me")
    (tmp_path / "shard-00000-of-00007.parquet").touch()
    with pytest.raises(ValueError, match="no complete index"):
        find(folder, owner="me")


def test_an_answer_takes_less_than_a_second_with_the_start_of_python(index):
    files = [[part(f"owner{n % 500}/r", f"p{n}.py", n)] for n in range(20_000)]
    folder = index(documents(*files), partitions=1, row_group_size=10_000)
    started = time.perf_counter()
    assert len(find(folder, owner="owner7")) == 40
    assert time.perf_counter() - started < 0.5
    code = (
        "import sys; from starcoder_jax.stack.lookup import find;"
        f"assert len(find({str(folder)!r}, swhid={swhid(777)!r})) == 1;"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_steps_of_a_run(tmp_path):
    texts = [f"x{number} = {number}\n" * 9 for number in range(40)]
    vocabulary = train_tokenizer(texts, kind="bpe", vocab_size=295)
    workdir = tmp_path / "run"
    workdir.mkdir()
    with StoreWriter(workdir / "data", vocabulary) as writer:
        rows = [
            ({"id": f"{n:064x}", "path": "", "repository": "", "license": "", "bytes": 1},
             np.append(vocabulary.encode(text), vocabulary.end_of_text_id))
            for n, text in enumerate(texts)
        ]  # fmt: skip
        writer.write_split("python", "train", rows)
        writer.finish({})
    run = {"batch_size": 24, "sequence_length": 16, "seed": 5}
    fields = {**run, "total_steps": 50}
    (workdir / "config.gin").write_text(
        "include 'tiny.gin'\ndata.sources = {'python': 'environment:'}\n"
        "data.rates = {'python': 1.0}\n"
        + "".join(f"train.{name} = {value}\n" for name, value in fields.items())
    )
    ids = [f"{n:064x}" for n in (0, 17, 99)]
    assert [len(rows) for rows in lookup.training_steps(workdir, ids).values()] == [0, 0]
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (10, 20)]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    found = lookup.training_steps(workdir, ids)
    store = TokenStore(workdir / "data")
    expected = steps_that_saw(store, ids, rates={"python": 1.0}, steps=20, **run)
    assert list(found) == list(expected) == ids[:2]
    for name, rows in expected.items():
        assert len(rows) and found[name].tolist() == rows.tolist()
    with pytest.raises(ValueError, match="it has no config"):
        lookup.training_steps(tmp_path, ids)
