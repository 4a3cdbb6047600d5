"""Apache Beam on this machine does what the processes of this machine do."""

import functools
import os
import sys

import pytest
from small_pipeline import ITEMS, Files, Limits, fail, files, steps

from starcoder_jax.stack.runner.run import RunnerConfig, run
from starcoder_jax.stack.runner.steps import Map
from starcoder_jax.stack.runner.work import StepError

LOCAL = RunnerConfig(workers=1)
BEAM = RunnerConfig(engine="beam", memory_bytes=200)


def test_the_bytes_are_the_same_as_without_beam(tmp_path, beam):
    two = RunnerConfig(workers=2, memory_bytes=200)
    engines = {"one": LOCAL, "two": two, "beam": BEAM}
    results = {name: run(steps(), tmp_path / name, engine) for name, engine in engines.items()}
    one, two, beams = (files(tmp_path / name) for name in engines)
    assert one == two == beams
    drops = [shard.drops.rows for shard in results["beam"]["filter"].shards]
    words = [shard.counts["words"] for shard in results["beam"]["words"].shards]
    assert sum(drops) > 2 and sum(words) > 50 and results["beam"]["told"].made == 3


def test_several_processes_and_a_uri_make_no_difference(tmp_path, beam, monkeypatch):
    # Where Beam's processes find the functions.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    run(steps()[:2], tmp_path / "one", LOCAL)
    flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    options = RunnerConfig(engine="beam", beam_options=("--runner=FnApiRunner", *flags))
    run(steps()[:2], f"file://{tmp_path}/beam", options)
    assert files(tmp_path / "beam") == files(tmp_path / "one")


def test_what_another_engine_has_made_is_not_made_again(tmp_path, beam, called):
    folder = tmp_path / "run"
    run(steps(), folder, LOCAL)
    called()
    run(steps(), folder, BEAM)
    assert called() == []
    before = files(folder)
    for path in (*folder.glob("filter/shard-00001-*"), *folder.glob("words/shard-00002-*")):
        path.unlink()
    run(steps(), folder, BEAM)
    kinds = [line.split(" [")[0] for line in called()]
    assert kinds == ["filter", *["words from"] * 3, "words"]
    assert files(folder) == before


def test_beam_makes_again_what_the_processes_do(tmp_path, beam, called):
    run(steps(), tmp_path / "beam", BEAM)
    run(steps(), tmp_path / "one", LOCAL)
    whole = len(called()) // 2
    changed = (*ITEMS[:-1], Files("g/h", 10))
    for items, limits in ((changed, Limits()), (changed, Limits(23))):
        run(steps(items, limits), tmp_path / "beam", BEAM)
        with_beam = sorted(called())
        run(steps(items, limits), tmp_path / "one", LOCAL)
        assert with_beam == sorted(called()) and 0 < len(with_beam) < whole
        assert files(tmp_path / "beam") == files(tmp_path / "one")


def test_a_failure_names_step_and_shard(tmp_path, beam):
    bad = Map("next", ("collect",), functools.partial(fail, "c/d"))
    with pytest.raises(StepError) as caught:
        run([steps()[0], bad], tmp_path, BEAM)
    assert str(caught.value) == r"step next, shard 1 of 3: KeyError: 'no such\nthing as c/d'"


def test_beam_is_missed_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "starcoder_jax.stack.runner.beam", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'starcoder_jax\[beam\]'"):
        run(steps(), tmp_path, BEAM)
