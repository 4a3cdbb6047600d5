import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from processes import children, descendants, is_running

from starcoder_jax.evals.sandbox import Program, Sandbox, missing_toolchains
from starcoder_jax.evals.sandbox import sandbox as module
from starcoder_jax.evals.sandbox.inside.languages import LANGUAGES

SLEEP = Program("python", "import subprocess; subprocess.run(['sleep', '60'])")


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def sleepers(process):
    """Those of the sandbox's processes that are the samples' own."""
    return [one for one in descendants(process) if is_running(one) and _name(one) == "sleep"]


def _name(process):
    try:
        with open(f"/proc/{process}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def test_nothing_is_lost_or_doubled(sandbox):
    programs = [(number, Program("python", f"assert {number} % 3")) for number in range(100)]
    outcomes = list(sandbox.run(programs))
    assert sorted(number for number, _ in outcomes) == list(range(100))
    assert all(outcome.passed == bool(number % 3) for number, outcome in outcomes)


def test_it_reads_little_ahead(sandbox):
    read = []

    def programs():
        for number in range(20):
            read.append(number)
            yield number, Program("python", "")

    for count, _ in enumerate(sandbox.run(programs())):
        assert len(read) <= count + 4  # two that run, two that may have ended together
    assert len(read) == 20


def test_a_worker_that_dies_is_replaced():
    before = descendants(os.getpid())
    with Sandbox(workers=1, isolation="namespaces") as sandbox:
        run = sandbox.run([(0, Program("python", "")), (1, SLEEP), (2, Program("python", ""))])
        assert next(run)[1].passed

        def kill():
            wait_until(lambda: sleepers(os.getpid()))
            [worker] = children(os.getpid()) - before
            os.kill(worker, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        outcomes = dict(run)
        thread.join()
    assert outcomes[1].reason == "killed" and not outcomes[1].passed
    assert outcomes[2].passed


def test_closing_early_leaves_no_process():
    before = descendants(os.getpid())
    with Sandbox(workers=2, isolation="namespaces") as sandbox:
        run = sandbox.run([(0, Program("python", "")), (1, SLEEP), (2, SLEEP)])
        next(run)
        wait_until(lambda: sleepers(os.getpid()))
        run.close()
        wait_until(lambda: not sleepers(os.getpid()))
        assert dict(sandbox.run([(0, Program("python", ""))]))[0].passed
    wait_until(lambda: descendants(os.getpid()) <= before)


SCRIPT = textwrap.dedent("""
    import sys
    from starcoder_jax.evals.sandbox import Program, Sandbox
    program = Program("python", sys.argv[2])
    unsafe = sys.argv[1] == "none"
    with Sandbox(workers=2, isolation=sys.argv[1], unsafe=unsafe) as sandbox:
        for _ in sandbox.run([(0, program), (1, program)]):
            pass
""")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_ends_with_the_caller(number):
    command = [sys.executable, "-c", SCRIPT, "namespaces", SLEEP.source]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as caller:
        wait_until(lambda: len(sleepers(caller.pid)) == 2 or caller.poll() is not None)
        processes = descendants(caller.pid)
        assert len(processes) >= 10
        caller.send_signal(number)
        caller.wait(20)
        wait_until(lambda: not any(is_running(process) for process in processes))


REAL_TIME = textwrap.dedent("""
    import os
    from starcoder_jax.evals.sandbox import Program, Sandbox
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    program = Program("python", "import os; assert os.sched_getscheduler(0) == os.SCHED_OTHER")
    with Sandbox(workers=1, isolation="namespaces") as sandbox:
        print([outcome.reason for _, outcome in sandbox.run([(0, program)])])
""")


# Who cannot have it cannot pass it on.
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have real-time priority")
def test_samples_have_no_real_time_priority(sandbox):
    result = subprocess.run([sys.executable, "-c", REAL_TIME], capture_output=True, text=True)
    if "PermissionError" in result.stderr:  # a container's root
        pytest.skip("this system gives no real-time priority")
    assert result.stdout.strip() == "['passed']", result.stderr


def test_time_limits_are_longer_on_a_slow_machine(monkeypatch):
    program = Program("python", "import time; time.sleep(0.5)", time_limit=0.1)
    with Sandbox(workers=1, isolation="namespaces") as sandbox:
        assert dict(sandbox.run([(0, program)]))[0].reason == "timeout"
        assert sandbox.description["time_scale"] >= 1
    monkeypatch.setattr(module, "REFERENCE_SECONDS", module.REFERENCE_SECONDS / 50)
    with Sandbox(workers=1, isolation="namespaces") as sandbox:
        assert sandbox.description["time_scale"] > 10
        assert dict(sandbox.run([(0, program)]))[0].passed


def test_description(sandbox):
    description = sandbox.description
    assert json.loads(json.dumps(description)) == description
    assert description["isolation"] == "namespaces"
    assert description["limits"]["memory"] == 2 << 30
    assert set(description["toolchains"]) == set(LANGUAGES) - set(missing_toolchains())
    assert all(description["toolchains"].values())


def test_a_missing_toolchain_is_named(sandbox, monkeypatch):
    monkeypatch.setattr(module, "missing_toolchains", lambda: {"rust": "rustc"})
    with pytest.raises(ValueError, match="rust programs cannot be run here: install rustc"):
        list(sandbox.run([(0, Program("rust", "fn main() {}"))]))


def test_a_fault_of_the_sandbox_is_no_fault_of_the_program(monkeypatch):
    monkeypatch.setattr(module, "find_tools", lambda: {"bash": "/usr/bin/no_such_shell"})
    before = descendants(os.getpid())
    with (
        Sandbox(workers=1, isolation="namespaces") as sandbox,
        pytest.raises(RuntimeError, match="No such file or directory"),
    ):
        list(sandbox.run([(0, Program("bash", "true"))]))
    assert descendants(os.getpid()) <= before


REFUSED = textwrap.dedent("""
    from starcoder_jax.evals.sandbox import Program, Sandbox
    from starcoder_jax.evals.sandbox.inside import kernel, seccomp
    kernel.drop_capabilities()
    seccomp.install()  # no user namespaces from here on
    try:
        Sandbox()
    except ValueError as error:
        print(error)
    with Sandbox(workers=1, unsafe=True) as sandbox:
        print(sandbox.description["isolation"])
        for key, outcome in sandbox.run([(0, Program("python", "assert True"))]):
            print(outcome.reason)
""")


def test_without_walls_it_refuses_unless_the_user_insists():
    command = [sys.executable, "-c", REFUSED]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    refusal, isolation, reason = result.stdout.splitlines()
    assert "namespaces: OSError" in refusal and "bubblewrap: " in refusal
    assert "install bubblewrap" in refusal and "unsafe=True" in refusal
    assert (isolation, reason) == ("none", "passed")


def test_without_walls_limits_hold_all_the_same():
    programs = {
        "loop": Program("python", "while True: pass", time_limit=0.3),
        "flood": Program("python", "while True: print('x' * 1000)"),
        "memory": Program("python", "bytearray(4 << 30)"),
        "left": Program("python", "import subprocess; subprocess.Popen(['sleep', '60'])"),
    }
    with Sandbox(workers=1, unsafe=True, isolation="none") as sandbox:
        outcomes = dict(sandbox.run(programs.items()))
        reasons = {name: outcome.reason for name, outcome in outcomes.items()}
        assert not sleepers(os.getpid())
    assert reasons == {"loop": "timeout", "flood": "output", "memory": "memory", "left": "passed"}


# The example has a program in JavaScript; node is no Python package.
@pytest.mark.skipif("javascript" in missing_toolchains(), reason="node is not installed")
def test_the_example_of_the_documentation(sandbox, capsys):
    text = (pathlib.Path(__file__).parents[3] / "docs" / "sandbox.md").read_text()
    exec(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1], {})
    lines = sorted(line.split()[:3] for line in capsys.readouterr().out.splitlines())
    early, right, wrong = (line for line in lines if line[1:2] in (["True"], ["False"]))
    assert early == ["early", "False", "exited"]
    assert right == ["right", "True", "passed"]
    assert wrong == ["wrong", "False", "failed"]


def test_choices_out_of_range():
    with pytest.raises(ValueError, match="workers is 0: at least 1 is needed"):
        Sandbox(workers=0)
    with pytest.raises(ValueError, match="isolation 'jail' is unknown: choose bubblewrap, names"):
        Sandbox(isolation="jail")
    with pytest.raises(ValueError, match="insist with unsafe=True"):
        Sandbox(isolation="none")


# Where it is, `test_escapes` tests what it does.
@pytest.mark.skipif(shutil.which("bwrap") is not None, reason="bubblewrap is installed")
def test_a_layer_that_is_asked_for_is_not_replaced():
    with pytest.raises(ValueError, match="bwrap is not installed"):
        Sandbox(isolation="bubblewrap", unsafe=True)
