"""What a run does and leaves undone, with processes of this machine."""

import dataclasses
import functools
import os
import pathlib
import re

import numpy as np
import pyarrow as pa
import pytest
import small_pipeline
from small_pipeline import ITEMS, SHARDS, Files, Limits, fail, files, steps

from starcoder_jax.stack.record import RECORD, Output
from starcoder_jax.stack.runner.lock import exclusive_run
from starcoder_jax.stack.runner.run import RunnerConfig, run
from starcoder_jax.stack.runner.steps import Map, Shuffle
from starcoder_jax.stack.runner.work import StepError

ONE = RunnerConfig(workers=1)


def test_what_a_run_writes_does_not_depend_on_processes_or_memory(tmp_path, run_steps):
    options = [
        RunnerConfig(workers=1),
        RunnerConfig(workers=2, memory_bytes=200),
    ]
    results = [run(steps(), tmp_path / str(i), option) for i, option in enumerate(options)]
    first, second = (files(tmp_path / str(i)) for i in range(len(options)))
    assert first == second
    assert len(first) == 2 * (SHARDS * 3 + 1 + 4) + SHARDS + len(steps())
    expected = run_steps(steps())
    for name, result in results[1].items():
        tables = [output.table for output in expected[name]]
        assert all(
            found.equals(table) for found, table in zip(result.tables(), tables, strict=True)
        )
        assert [dict(shard.counts) for shard in result.shards] == [
            dict(output.counts) for output in expected[name]
        ]
    # So that none of this is true of nothing.
    filtered = results[0]["filter"]
    assert sum(shard.drops.rows for shard in filtered.shards) > 2
    assert sum(shard.rows for shard in filtered.shards) > 10
    assert set(next(results[0]["told"].tables())["forks"].to_pylist()) == {
        sum(shard.rows for shard in filtered.shards)
    }


def test_what_is_there_is_not_made_again(tmp_path, called):
    folder = tmp_path / "run"
    first = run(steps(), folder, ONE)
    assert len(called()) > 20
    before = files(folder)
    second = run(steps(), folder, RunnerConfig(workers=2))
    assert called() == [] and files(folder) == before
    assert {name: result.made for name, result in second.items()} == dict.fromkeys(first, 0)
    assert all(first[name].shards == second[name].shards for name in first)
    (lost,) = folder.glob("told/shard-00001-of-*.parquet")
    lost.unlink()
    third = run(steps(), folder, ONE)
    # What comes after is not made again, as the shard comes out as it was.
    assert called() == ["told"] and files(folder) == before
    assert [result.made for result in third.values()] == [0, 0, 0, 1, 0]


def test_only_what_a_change_touches_is_made_again(tmp_path, called):
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    run(steps(), folder, ONE)
    called()
    # One of these is too long for the filter before and after.
    changed = (*ITEMS[:-1], Files("g/h", 10))
    result = run(steps(changed), folder, ONE)
    kinds = [line.split(" [")[0] for line in called()]
    assert sum(kind.startswith("collect from") for kind in kinds) == len(ITEMS)
    assert [kind for kind in kinds if not kind.startswith("collect from")] == ["collect", "filter"]
    assert [step.made for step in result.values()] == [1, 1, 0, 0, 0]
    assert run(steps(changed), fresh, ONE) and files(folder) == files(fresh)


def test_a_partition_with_the_same_rows_is_not_reduced_again(tmp_path, called):
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    run(steps(), folder, ONE)
    called()
    stricter = Limits(max_bytes=23)
    result = run(steps(limits=stricter), folder, ONE)
    lines = called()
    assert 0 < sum(line.startswith("words [") for line in lines) == result["words"].made < 4
    run(steps(limits=stricter), fresh, ONE)
    assert files(folder) == files(fresh)
    called()
    run(steps(limits=stricter), folder, ONE)
    assert called() == []


def test_another_number_of_shards_leaves_nothing_of_the_old(tmp_path):
    folder = tmp_path / "run"
    run(steps(), folder, ONE)
    run(steps(parts=2), folder, ONE)
    assert [path.name for path in sorted((folder / "words").iterdir())] == [
        *(f"shard-0000{i}-of-00002{end}" for i in range(2) for end in (".json", ".parquet")),
        "step.json",
    ]


def test_a_step_takes_what_an_earlier_run_has_made(tmp_path, called):
    folder = tmp_path / "run"
    first = run(steps(), folder, ONE)
    called()
    (folder / "words" / "step.json").unlink()
    (told,) = [step for step in steps(limits=Limits(1)) if step.name == "told"]
    result = run([told], folder, ONE)
    assert called() == [] and result == {"told": dataclasses.replace(first["told"], made=0)}
    with pytest.raises(ValueError, match=r"^step words is not complete in .*: run it first$"):
        run([Map("more", ("words",), Output)], folder, ONE)


def test_code_that_changed_is_run_again(tmp_path, called, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.syspath_prepend(tmp_path)
    source = f"from small_pipeline import note\n{_DOUBLE}"
    (tmp_path / "own_code_1.py").write_text(source)
    (tmp_path / "own_code_2.py").write_text(source.replace("2 *", "4 // 2 *"))
    assert __import__("own_code_1").add_up.__name__ == "add_up"
    first = run(steps(add_up=__import__("own_code_1").add_up), folder, ONE)
    called()
    second = run(steps(add_up=__import__("own_code_2").add_up), folder, ONE)
    assert [line for line in called() if not line.startswith("total from")] == ["total 2"]
    assert first["told.total"].shards[0].digest == second["told.total"].shards[0].digest


_DOUBLE = """
import small_pipeline
def add_up(table):
    note("total 2")
    return small_pipeline.Output(table.slice(0, 2 * 1))
"""


def emit_much(item):
    """256 MB, 2 MB at a time; the last row says what the process came to hold."""
    for number in range(128):
        yield np.array([0]), pa.table({"a": [bytes([number]) * 2**21]}, _BLOBS)
    yield np.array([1]), pa.table({"a": [_peak().encode()]}, _BLOBS)


_BLOBS = pa.schema([("a", pa.large_binary())])


def _peak() -> str:
    # Of this program alone: getrusage remembers what the process was before it ran it.
    status = pathlib.Path("/proc/self/status").read_text()
    return re.search(r"VmHWM:\s*(\d+) kB", status)[1]


def count_much(table):
    if table.nbytes > 2**20:
        return Output(table.slice(0, 0), counts={"bytes": table.nbytes})
    return Output(table)


# Linux alone records it per program; what is promised does not depend on the system.
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux says so in /proc")
def test_memory_of_a_shuffle_is_bounded(tmp_path):
    step = Shuffle("much", (), emit_much, _BLOBS, count_much, 2, (Files("a/b", 0),))
    result = run([step], tmp_path, RunnerConfig(workers=1, memory_bytes=2**24))["much"]
    assert result.shards[0].counts["bytes"] > 2**28
    (peak,) = list(result.tables())[1]["a"].to_pylist()
    assert int(peak) < 220_000  # kilobytes


def exit_hard(table):
    os.kill(os.getpid(), 9)


def emit_wrong(how, table):
    partitions = np.zeros(len(table), np.int64)
    if how == "schema":
        table = table.drop_columns(["path"])
    if how == "count":
        partitions = partitions[1:]
    if how == "partition":
        partitions[-1] = 2
    if how == "float":
        partitions = partitions.astype(np.float32)
    yield partitions, table


def as_it_is(table):
    return table


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            Map("next", ("collect",), functools.partial(fail, "c/d")),
            r"step next, shard \d of 3: KeyError: 'no such\\nthing as c/d'",
        ),
        (
            Map("next", ("collect",), exit_hard),
            r"step next, shard \d of 3: its process was killed by SIGKILL, "
            "perhaps for want of memory: try fewer workers",
        ),
        (
            Map("next", ("collect",), as_it_is),
            r"step next, shard \d of 3: ValueError: the function returned Table, not an Output.*",
        ),
        *(
            (
                Shuffle(
                    "next", ("collect",), functools.partial(emit_wrong, how), RECORD, Output, 2
                ),
                rf"step next, input \d of 3: ValueError: emit yielded {message}",
            )
            for how, message in (
                ("schema", "a table of another schema than the step's"),
                ("count", r"partitions int64\[\d\] for \d rows"),
                ("float", r"partitions float32\[\d\] for \d rows"),
                ("partition", r"a partition that is not in \[0, 2\)"),
            )
        ),
    ],
)
def test_a_failure_names_step_and_shard(tmp_path_factory, step, message):
    folder = tmp_path_factory.getbasetemp() / "collected"
    run(steps()[:1], folder, ONE)
    with pytest.raises(StepError) as caught:
        run([step], folder, RunnerConfig(workers=2))
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_a_failure_leaves_what_was_finished(tmp_path, called):
    shard = small_pipeline.part_of("c/d", SHARDS)
    bad = Map("next", ("collect",), functools.partial(fail, "c/d"))
    with pytest.raises(StepError):
        run([steps()[0], bad], tmp_path / "run", ONE)
    assert len(list((tmp_path / "run" / "next").glob("*.json"))) == shard
    called()
    run(steps()[:1], tmp_path / "run", ONE)
    assert called() == []


def test_the_trace_of_a_failure_can_be_seen(tmp_path):
    bad = Map("next", ("collect",), functools.partial(fail, "c/d"))
    with pytest.raises(StepError) as caught:
        run([steps()[0], bad], tmp_path, ONE)
    assert "raise KeyError" in caught.value.__notes__[0]


def test_one_run_at_a_time(tmp_path):
    with (
        exclusive_run(tmp_path),
        pytest.raises(ValueError, match=r"^another run is at work in .*: wait for its end$"),
    ):
        run(steps(), tmp_path, ONE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([steps()[1]], "step collect is not complete in"),
        ([*steps(), steps()[0]], "two steps are called collect"),
        (steps()[::-1], "step words comes before told, which it needs"),
        ([Map("../a", ("collect",), Output)], "'../a': a name has small letters"),
        ([Map("a", (), Output)], "step a has no input"),
        (
            [*steps(), Map("a", ("collect", "words"), Output)],
            "step a needs inputs with as many shards each: collect has 3, words has 4",
        ),
        ([dataclasses.replace(steps()[0], items=())], "collect needs either inputs or items"),
        ([dataclasses.replace(steps()[4], items=ITEMS)], "words needs either inputs or items"),
        ([dataclasses.replace(steps()[4], partitions=0)], "step words has 0 partitions"),
        (
            [steps()[0], Map("a", ("collect",), lambda table: Output(table))],
            "step a: .*<lambda> is not at the top of a module",
        ),
    ],
)
def test_steps_that_do_not_fit_are_named(tmp_path_factory, given, message):
    folder = tmp_path_factory.getbasetemp() / ("whole" if len(given) > 2 else "nothing")
    with pytest.raises(ValueError, match=message):
        run(given, folder, ONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "runner.engine = 'spark' must be one of local, beam"),
        ({"workers": 0}, "runner.workers = 0 must be a positive number or None"),
        ({"memory_bytes": None}, "runner.memory_bytes = None must be positive"),
        ({"beam_options": "--runner=x"}, "runner.beam_options must be a list"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RunnerConfig(**options)


def test_folders_elsewhere_need_beam():
    with pytest.raises(ValueError, match="gs://a/b is not of this machine"):
        run(steps(), "gs://a/b", ONE)
