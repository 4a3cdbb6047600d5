"""What becomes of programs, in each language that can be run here."""

import pytest

from starcoder_jax.evals.sandbox import Program, missing_toolchains

PYTHON = {
    "assert sum([1, 2]) == 3": "passed",
    "import sys\nassert __name__ == '__main__' and sys.argv[0] == __file__": "passed",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1": "passed",
    "import sys\nassert sys.stdin.read() == ''": "passed",
    "import os\nif not os.fork():\n    raise KeyError": "passed",
    "import subprocess\nassert subprocess.check_output(['echo', 'x']) == b'x\\n'": "passed",
    "from multiprocessing import Pool\nassert Pool(2).map(abs, [-1]) == [1]": "passed",
    "assert 1 == 2": "failed",
    "import unittest\nunittest.TestCase().assertEqual(1, 2)": "failed",
    "1 / 0": "exception",
    "raise KeyboardInterrupt": "exception",
    "def f(): f()\nf()": "exception",
    "import ctypes; ctypes.string_at(0)": "exception",
    "import os; os.abort()": "exception",
    "def f(:": "syntax",
    "x = '\ud800'": "syntax",
    "a = 1\0": "syntax",
    "(" * 500 + ")" * 500: "syntax",
    "x = bytearray(4 << 30)": "memory",
    "while True: pass": "timeout",
    "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: time.sleep(1)": "timeout",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)": "timeout",
    "input()": "exception",
    "while True: print('x' * 1000)": "output",
    "import os\nwhile True: os.write(2, b'x' * 100_000)": "output",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "killed",
}
# None of them may pass.
FORGED = {
    "import os; os._exit(0)": "exited",
    "import sys; sys.exit(0)": "exited",
    "exit()": "exited",
    "raise SystemExit": "exited",
    "import os; os.execv('/bin/true', ['true'])": "exited",
    "import os; os.closerange(0, 100); os._exit(0)": "exited",
    "import os; os.closerange(0, 100)": "exited",
    "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass\nos._exit(0)": "exited",
    "import os, signal; os.kill(0, signal.SIGKILL)": "killed",
    "import os, sys\nif os.fork():\n    os._exit(0)": "exited",
    "import atexit, os; atexit.register(os._exit, 0); raise KeyError": "exception",
    "import sys; sys.excepthook = lambda *a: None; raise KeyError": "exception",
    "import os, builtins\nos._exit = builtins.exec = os.write = print\nassert False": "failed",
}
# Programs that look for the word, and say what they find to all who may be listening.
SAY = """
import gc, os, re, sys
def say(words):
    for word in words:
        if not os.fork():
            for descriptor in range(1, 64):
                try:
                    os.write(descriptor, word)
                except OSError:
                    pass
            os._exit(0)
        os.wait()
    os._exit(0)
def of_frames():
    frame = sys._getframe()
    while frame:
        yield from gc.get_referents(frame)
        yield from frame.f_locals.values()
        yield from frame.f_globals.values()
        frame = frame.f_back
"""
FORGERIES = {
    "guess": 'say([b"passed", b"0\\n", b\'{"reason": "passed"}\', b"run\\n0\\n", bytes(8)])',
    "look": """
values = [*of_frames(), *gc.get_objects()]
inner = [one for value in values if type(value) in (list, tuple) for one in value]
say(list({one for one in values + inner if isinstance(one, bytes) and len(one) == 32})[:100])
""",
    "read": """
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        memory.seek(start)
        say(re.findall(rb"[0-9a-f]{32}", memory.read(end - start)))
""",
}

JAVA = "class Problem { public static void main(String[] args) { %s } }"
CPP = "#include <cassert>\n#include <cstdlib>\n#include <vector>\nint main() { %s }"
OTHERS = {
    "javascript": {
        "require('assert').deepEqual([1], [1]);": "passed",
        "setTimeout(() => {}, 1);": "passed",
        "console.assert(1 === 2);": "failed",
        "require('assert').deepEqual([1], [2]);": "failed",
        "Promise.reject(new Error('x'));": "exception",
        "undefined.x;": "exception",
        "JSON.parse('{');": "exception",
        "function (": "syntax",
        "process.exit(0);": "exited",
        "process.reallyExit(0);": "exited",
        "require('fs').readFileSync(0).length && process.exit(1);": "passed",
        "for (;;) {}": "timeout",
        "for (;;) require('fs').writeSync(1, 'x'.repeat(1000));": "output",
        "const all = []; for (;;) all.push(new Array(1e6).fill(0.5));": "memory",
    },
    "java": {
        JAVA % "assert 1 == 1;": "passed",
        "import org.javatuples.*;\n" + JAVA % "assert Pair.with(1, 2).equals(Pair.with(1, 2));": (
            "passed"
        ),
        "class Solution {}\npublic class Main {\n"
        "  public static void main(String[] args) { assert true; }\n}": "passed",
        JAVA % "assert 1 == 2;": "failed",
        JAVA % "throw new RuntimeException();": "exception",
        JAVA % "int x = true;": "syntax",
        JAVA % "System.exit(0);": "exited",
        JAVA % "while (true) new int[1].clone();": "timeout",
        JAVA
        % "var all = new java.util.ArrayList<int[]>(); while (true) all.add(new int[1<<24]);": (
            "memory"
        ),
    },
    "cpp": {
        CPP % "assert(1 == 1);": "passed",
        CPP % "assert(1 == 2);": "failed",
        CPP % "std::vector<int> v; return v.at(1);": "exception",
        CPP % "return 1;": "exception",
        CPP % "int x = ;": "syntax",
        CPP % "std::exit(0);": "exited",
        CPP % "std::_Exit(0);": "exited",
        CPP % "for (volatile int i = 0;;) {}": "timeout",
        CPP % "std::vector<char> v(4ull << 30);": "memory",
    },
    "bash": {
        "#!/bin/bash\nset -eu\n[[ $(echo 1) = 1 ]]": "passed",
        "set -e\n[[ 1 = 2 ]]\ntrue": "failed",
        "set -e\nno_such_command": "exception",
        "if [": "syntax",
        "exit 0": "exited",
        "while true; do :; done": "timeout",
        "yes": "output",
        "(sleep 100 &)": "passed",
        ":(){ :|:& };:\nsleep 100": "timeout",
    },
    "rust": {
        "fn main() { assert_eq!(1, 1); }": "passed",
        "fn main() { assert_eq!(1, 2); }": "failed",
        'fn main() { panic!("x"); }': "exception",
        "fn main() { let x: i32 = true; }": "syntax",
        "fn main() { std::process::exit(0); }": "exited",
        "fn main() { loop {} }": "timeout",
        "fn main() { vec![1u8; 4 << 30]; }": "memory",
    },
}
SHORT = {"timeout": 0.5, "output": 5.0, "memory": 5.0}


def _reasons(sandbox, language, expected):
    programs = (
        (source, Program(language, source, SHORT.get(reason, 10.0)))
        for source, reason in expected.items()
    )
    outcomes = dict(sandbox.run(programs))
    assert all(outcome.passed == (outcome.reason == "passed") for outcome in outcomes.values())
    return {source: outcome.reason for source, outcome in outcomes.items()}


def test_python(sandbox):
    assert _reasons(sandbox, "python", PYTHON) == PYTHON


def test_a_pass_cannot_be_forged(sandbox):
    assert _reasons(sandbox, "python", FORGED) == FORGED
    forgeries = [(name, Program("python", SAY + source)) for name, source in FORGERIES.items()]
    reasons = {name: outcome.reason for name, outcome in sandbox.run(forgeries)}
    assert reasons == {"guess": "exited", "look": "exited", "read": "exception"}


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages(language, sandbox):
    if missing := missing_toolchains().get(language):
        # Compilers are no Python packages. `evaluate` skips such a language too, by name.
        pytest.skip(f"not installed: {missing}")
    assert _reasons(sandbox, language, OTHERS[language]) == OTHERS[language]


def test_details_say_what_was_wrong(sandbox):
    programs = {
        "python": "def f():\n    assert 1 == 2, 'no'\nf()",
        "bash": "echo first >&2; echo last >&2; false",
    }
    outcomes = dict(
        sandbox.run((language, Program(language, text)) for language, text in programs.items())
    )
    assert outcomes["python"].detail.endswith("AssertionError: no")
    assert 'File "/tmp/main.py", line 2, in f' in outcomes["python"].detail
    assert "sample.py" not in outcomes["python"].detail
    assert outcomes["bash"].detail == "first\nlast"


def test_programs_out_of_range():
    with pytest.raises(ValueError, match="language 'cobol' is unknown: choose one of python, "):
        Program("cobol", "")
    with pytest.raises(ValueError, match="time_limit is 0: it must be above 0 s"):
        Program("python", "", time_limit=0)
