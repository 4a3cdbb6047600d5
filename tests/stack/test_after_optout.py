"""A pipeline runs, somebody opts out, and it runs again."""

import json

import pyarrow as pa
import pytest

from starcoder_jax.stack import accounting, lookup, record
from starcoder_jax.stack.record import DOCUMENT, Output
from starcoder_jax.stack.removal import verify_removed
from starcoder_jax.stack.report import write_report
from starcoder_jax.stack.runner.run import RunnerConfig, run
from starcoder_jax.stack.runner.shards import Store
from starcoder_jax.stack.runner.steps import Map
from starcoder_jax.stack.stages import optout, publish
from starcoder_jax.stack.stages.optout import OptoutConfig, read_ledgers
from starcoder_jax.stack.stages.publish import PublishConfig

SHARDS = 4


def make_rows(table):
    """Shard n has repositories of owner n, and one file of a shared content that is dropped."""
    number = table["number"][0].as_py()
    start = {"kind": "file", "language": "C", "license_type": "permissive"}
    rows = [
        start
        | {
            "repository": f"owner{number}/r{n % 2}",
            "path": f"{n}.c",
            "content": f"int x{number}{n};\n".encode(),
            "swhid": f"swh:1:cnt:{number * 10 + n:040x}",
        }
        for n in range(5)
    ]
    return record.select(record.records(rows), [None, None, None, None, "too short"])


def make_documents(table):
    rows = [
        {
            **{name: row[name] for name in ("kind", "content", "marks", "repository", "language")},
            "licenses": ["MIT"],
            "license_type": "permissive",
            "files": [
                {name: row[name] for name in ("swhid", "repository", "path", "revision")}
                | {"license": "MIT", "start": 0, "stop": len(row["content"])}
            ],
        }
        for row in table.to_pylist()
    ]
    return Output(pa.Table.from_pylist(rows, schema=DOCUMENT))


@pytest.fixture
def pipeline(tmp_path):
    """A function of a ledger that runs the pipeline, and returns what each step wrote."""
    numbers = [pa.table({"number": [number]}) for number in range(SHARDS)]
    store = Store(str(tmp_path / "pipeline"))
    for number, table in enumerate(numbers):
        store.write("numbers", number, SHARDS, Output(table), "key", None)
    store.finish("numbers", [store.shard("numbers", n, SHARDS) for n in range(SHARDS)])

    def run_with(*entries):
        (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
        config = OptoutConfig([str(tmp_path / "ledger.jsonl")])
        steps = [Map("redact", ("numbers",), make_rows), *optout.steps(config, "redact")]
        steps.append(Map("format", ("optout",), make_documents))
        steps += publish.steps(PublishConfig(shards=2), "format")
        steps += lookup.index_steps("publish", 2)
        steps += accounting.steps(["redact", "optout", "format", "publish"])
        results = run(steps, store.folder, RunnerConfig(workers=1))
        report = accounting.account(
            store, list(results), opted_out=read_ledgers(config.ledgers), configuration="a = 1"
        )
        write_report(report, tmp_path, "Corpus")
        return results, report, read_ledgers(config.ledgers)

    return run_with


def test_after_an_opt_out_nothing_is_left_and_little_is_done_again(pipeline, tmp_path):
    folder = tmp_path / "pipeline"
    results, report, _ = pipeline()
    assert all(result.made == len(result.shards) for result in results.values())
    last = report["stages"][-1]
    assert last["out"]["rows"] == 4 * SHARDS and report["licenses"]["MIT"]["rows"] == 4 * SHARDS
    assert len(lookup.find(folder / "lookup", owner="owner2")) == 4
    assert "owner2" in (tmp_path / "report.html").read_text()

    entry = {"kind": "owner", "value": "Owner2", "date": "2026-01-31", "reference": "issue 7"}
    results, report, ledger = pipeline(entry)
    made = {name: result.made for name, result in results.items()}
    assert made["redact"] == made["accounting.redact"] == 0
    assert made["format"] == made["accounting.format"] == made["accounting.optout"] == 1
    stage = next(stage for stage in report["stages"] if stage["name"] == "optout")
    assert stage["dropped"]["rows"] == 4 and stage["samples"] == {}
    assert report["stages"][-1]["out"]["rows"] == 4 * (SHARDS - 1)
    assert len(lookup.find(folder / "lookup", owner="owner2")) == 0
    assert len(lookup.find(folder / "lookup", owner="owner1")) == 4
    left = verify_removed(ledger, folder)
    assert left and all(remnant.is_raw and "/redact/" in remnant.place for remnant in left)
    assert {remnant.what for remnant in left} == {"rows", "samples"}
    page = (tmp_path / "report.html").read_text()
    assert "owner2" not in page and "1 samples are not shown" in page

    again, _, _ = pipeline(entry)
    assert not any(result.made for result in again.values())
