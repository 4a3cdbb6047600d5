import json
import os
import pathlib
import subprocess
import sys

import pytest
from escapes import ROOT, SECRET, escapes, try_escapes

from starcoder_jax.evals.sandbox import Program, Sandbox

NOBODY = 65534


def _python_of_anybody() -> str:
    """An interpreter that an unprivileged user may run."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        command = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if not subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[]).returncode:
                return path
        except OSError:
            continue
    # That user cannot read an interpreter in root's home, and pip cannot bring one elsewhere.
    pytest.skip("no interpreter of Python 3.11 that an unprivileged user may run")


@pytest.mark.parametrize("isolation", ["bubblewrap", "namespaces"])
def test_nothing_gets_out(isolation, monkeypatch):
    monkeypatch.setenv(SECRET, "secret")
    try:
        outcomes = try_escapes(isolation)
    except ValueError as error:  # bubblewrap is no Python package, and kernels may forbid both
        pytest.skip(str(error))
    assert {name: outcome.detail for name, outcome in outcomes.items() if not outcome.passed} == {}
    assert len(outcomes) == 11


# Others run the test above as themselves: unprivileged.
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("isolation", ["bubblewrap", "namespaces"])
def test_nothing_gets_out_of_an_unprivileged_user(isolation):
    script = str(pathlib.Path(__file__).with_name("escapes.py"))
    result = subprocess.run(
        [_python_of_anybody(), script, isolation],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        cwd="/",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    if "cannot be isolated here" in result.stderr:  # as above
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stderr
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert [outcome for outcome in outcomes if not outcome[1]] == []
    assert len(outcomes) == 11


def test_these_attempts_would_be_noticed(tmp_path):
    # Only what does no harm without walls.
    (tmp_path / SECRET).write_text("secret")
    programs = dict(escapes(0, str(tmp_path)))
    with Sandbox(workers=1, unsafe=True, isolation="none") as sandbox:
        (_, files), (_, environment) = sandbox.run(
            [
                ("files", programs["files"]),
                ("find", Program("python", "import os; assert os.getpid() < 10")),
            ]
        )
    assert (files.reason, environment.reason) == ("failed", "failed")


BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_a_fork_bomb_hurts_nobody_else(sandbox):
    neighbours = [(number, Program("python", "print(sum(range(10_000)))")) for number in range(30)]
    bomb = ("bomb", Program("python", BOMB, time_limit=1.0))
    outcomes = dict(sandbox.run([bomb, *neighbours]))
    assert outcomes.pop("bomb").reason in ("timeout", "memory")
    assert len(outcomes) == 30
    assert all(outcome.passed for outcome in outcomes.values())


HOARD = """
import os
for _ in range(30):
    if not os.fork():
        hoard = b"x" * (200 << 20)
        import time
        time.sleep(30)
import time
time.sleep(30)
"""


def test_memory_is_counted_over_all_processes(sandbox):
    [(_, outcome)] = sandbox.run([(0, Program("python", HOARD))])
    assert outcome.reason == "memory"
    assert outcome.seconds < 10
