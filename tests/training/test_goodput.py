import json

import jax
import micro
import pytest

from starcoder_jax.data.store import TokenStore
from starcoder_jax.recipes import load_recipe
from starcoder_jax.training import goodput, loop
from starcoder_jax.training.goodput import Cause, Clock, Journal, note_opening, read_account
from starcoder_jax.training.loop import open_workdir, train
from starcoder_jax.training.metrics import read_metrics
from starcoder_jax.training.program import make_devices


class Time:
    """The time of day, as a test sets it."""

    def __init__(self, monkeypatch):
        self.now = 1_000.0
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)


class Events:
    """Reports compilations that a test makes up."""

    seconds = 0.0

    def take_compile_seconds(self):
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def journal(workdir, time, start, opened, began):
    time.now = opened
    note_opening(workdir)
    return Journal(workdir, start, began)


def write(journal, time, now, step, **seconds):
    time.now = now
    return journal.write(step, {Cause[name]: value for name, value in seconds.items()})


def spent(workdir):
    """The account, without zeros."""
    return {cause.name: seconds for cause, seconds in read_account(workdir).items() if seconds}


def test_each_moment_belongs_to_one_cause(time):
    events = Events()
    clock = Clock(events)
    assert (clock.began, clock.cause) == (1_000, Cause.START)
    time.now += 5
    clock.switch(Cause.TRAINING)
    time.now += 30
    events.seconds = 20
    with clock.spending(Cause.EVALUATION):
        time.now += 4
        events.seconds = 1
        assert clock.cause == Cause.EVALUATION
    time.now += 2
    assert clock.take() == {
        Cause.START: 5,
        Cause.TRAINING: 12,
        Cause.COMPILATION: 21,
        Cause.EVALUATION: 3,
    }
    with pytest.raises(KeyError), clock.spending(Cause.CHECKPOINTS):
        time.now += 1
        raise KeyError
    assert clock.cause == Cause.TRAINING
    time.now -= 100  # the system's clock is set back
    seconds = clock.take()
    assert seconds[Cause.CHECKPOINTS] == 1
    assert all(value >= 0 for value in seconds.values())


def test_restarts_and_steps_done_again_are_lost(tmp_path, time):
    first = journal(tmp_path, time, start=0, opened=1_000, began=1_010)
    assert write(first, time, 1_060, 10, START=15, COMPILATION=5, TRAINING=30) == 0.5
    assert write(first, time, 1_100, 20, TRAINING=30, EVALUATION=10) == 0.6
    assert spent(tmp_path) == {
        "TRAINING": 60,
        "DATA": 10,
        "START": 15,
        "COMPILATION": 5,
        "EVALUATION": 10,
    }
    # Killed at step 25 or so; a start that fails; then one that goes on after step 10.
    time.now = 1_130
    note_opening(tmp_path)
    second = journal(tmp_path, time, start=10, opened=1_150, began=1_152)
    assert write(second, time, 1_200, 20, START=8, TRAINING=40) == 70 / 200
    assert spent(tmp_path) == {
        "TRAINING": 70,
        "DATA": 12,
        "START": 23,
        "COMPILATION": 5,
        "EVALUATION": 10,
        "REPEATED": 30,
        "STOPPED": 50,
    }
    write(second, time, 1_300, 30, TRAINING=100)
    # Back to the beginning, as when all checkpoints are moved away.
    third = journal(tmp_path, time, start=0, opened=1_300, began=1_300)
    assert write(third, time, 1_400, 10, TRAINING=100) == 100 / 400
    assert spent(tmp_path)["REPEATED"] == 200


def test_time_after_the_last_step_counts_once_there_is_another(tmp_path, time):
    done = journal(tmp_path, time, start=0, opened=1_000, began=1_000)
    write(done, time, 1_100, 10, TRAINING=100)
    before = spent(tmp_path)
    journal(tmp_path, time, start=10, opened=9_000, began=9_100)  # has nothing left to do
    assert spent(tmp_path) == before == {"TRAINING": 100}


def test_a_line_cut_by_a_kill_is_left_out_and_spoils_none_after_it(tmp_path, time):
    first = journal(tmp_path, time, start=0, opened=1_000, began=1_000)
    write(first, time, 1_010, 1, TRAINING=10)
    write(first, time, 1_020, 2, TRAINING=10)
    path = tmp_path / "goodput.jsonl"
    for cut in range(1, len(path.read_bytes().splitlines()[-1])):
        path.write_bytes(path.read_bytes()[:-1])
        assert spent(tmp_path) == {"TRAINING": 20 if cut == 1 else 10}
    second = journal(tmp_path, time, start=1, opened=1_030, began=1_030)
    write(second, time, 1_040, 2, TRAINING=10)
    assert spent(tmp_path) == {"TRAINING": 20, "STOPPED": 20}


def test_no_account_before_the_first_step(tmp_path, time):
    assert read_account(tmp_path) == {}
    note_opening(tmp_path)
    assert read_account(tmp_path) == {}
    # A second run by the same process, and one whose journal was removed.
    for _ in range(2):
        account = Journal(tmp_path, 0, began=1_005.0)
        write(account, time, 1_015, 1, TRAINING=10)
    assert spent(tmp_path) == {"TRAINING": 10, "DATA": 5, "REPEATED": 10}


def test_a_run_that_was_killed_accounts_for_all_of_its_time(
    trained, micro_folder, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    micro.without_checkpoints_after(trained, 30, workdir)
    before = [json.loads(line) for line in (workdir / "goodput.jsonl").read_text().splitlines()]
    lost = sum(line["seconds"]["training"] for line in before if line.get("step", 0) > 30)
    assert lost > 0
    monkeypatch.setattr(
        loop, "make_devices", lambda recipe: make_devices(recipe, jax.devices()[:1])
    )
    recipe = load_recipe([str(micro_folder / "micro.gin")])
    open_workdir(recipe, workdir)
    train(recipe, workdir, TokenStore(micro_folder / "data"))
    account = read_account(workdir)
    assert account[Cause.REPEATED] == pytest.approx(lost)
    assert all(seconds > 0 for seconds in account.values())
    lines = [json.loads(line) for line in (workdir / "goodput.jsonl").read_text().splitlines()]
    assert lines[: len(before)] == before
    total = lines[-1]["time"] - lines[0]["opened"]
    assert sum(account.values()) == pytest.approx(total, rel=1e-3)
    shares = [record["goodput"] for record in read_metrics(workdir)]
    assert all(0 < share < 1 for share in shares)
    assert shares[-1] == pytest.approx(account[Cause.TRAINING] / total, rel=0.2)
    assert shares[30] < shares[29]  # of the restart
    report = (workdir / "report.html").read_text()
    assert "Where the time went" in report and "steps done again" in report
