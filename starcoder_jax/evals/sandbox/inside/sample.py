"""The processes of one program: the first, which looks after the others, and the program's own."""

import contextlib
import os
import signal
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from . import kernel, walls
from .languages import Plan, Step

_REPORT = 3  # descriptor of a Python program's process


def live(
    plan: Plan,
    folder: str,
    limits: Mapping[str, Any],
    words: list[bytes],
    pipes: Mapping[str, int],
    enclosed: bool,
) -> NoReturn:
    """What a fresh fork of the worker does: runs the plan's steps, up to the first that fails.

    Args:
        plan: files and steps.
        folder: where.
        limits: of the `Keeper`.
        words: holds the word that shows the end; empty afterwards.
        pipes: writing ends: `output`, `errors`, `report`, and `status` with a line for each exit
            status, a line `run` before a step that does not compile, and a line `broken …`.
        enclosed: whether this is the first process of a new PID namespace.
    """
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # by the program: nothing to the first process
        os.setsid()
        if sys.platform == "linux":
            kernel.die_with_parent()
        if enclosed:
            walls.enclose_sample(limits["tmp"])
        nothing = os.open(os.devnull, os.O_RDWR)
        for source, target in ((nothing, 0), (pipes["output"], 1), (pipes["errors"], 2)):
            os.dup2(source, target)
        os.chdir(folder)
        for name, text in plan.files.items():
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(text)
        for step in plan.steps:
            if not step.compiling:
                os.write(pipes["status"], b"run\n")
            status = _run(step, folder, limits["resources"], words, pipes)
            os.write(pipes["status"], b"%d\n" % status)
            if status:
                break
    except BaseException as error:
        _give_up(error, pipes)
    finally:
        os._exit(0)


def _run(step: Step, folder: str, limits: Mapping[str, int], words: list, pipes: Mapping) -> int:
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _become(step, folder, limits, words, pipes)
        except BaseException as error:
            _give_up(error, pipes)
        finally:
            os._exit(1)
    while True:  # orphans of the program are adopted by this process
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def _give_up(error: BaseException, pipes: Mapping[str, int]) -> None:
    """Tells that the sandbox failed, not the program."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    os.write(pipes["status"], f"broken {text}\n".encode())


def _become(
    step: Step, folder: str, limits: Mapping[str, int], words: list, pipes: Mapping
) -> None:
    os.nice(10)  # of a hundred processes that never pause, the one that watches them is heard
    memory = {"AS"} if step.reserves else {"DATA"}
    walls.limit_resources({name: limits[name] for name in limits.keys() - memory})
    if sys.platform == "linux":
        walls.drop_privileges()
    if not step.command:
        os.dup2(pipes["report"], _REPORT)
        os.closerange(_REPORT + 1, os.sysconf("SC_OPEN_MAX"))
        if sys.platform == "linux":
            kernel.hide_memory()
        _run_python(os.path.join(folder, "main.py"), words)
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    if not step.compiling:
        reading, writing = os.pipe()
        os.write(writing, words.pop())
        os.dup2(reading, 0)
    os.execv(step.command[0], step.command)


def _run_python(path: str, words: list[bytes]) -> NoReturn:
    # What is called afterwards is held here: the program may put other functions in these places.
    write, leave, run, take = os.write, os._exit, exec, words.pop
    process, process_now = os.getpid(), os.getpid
    describe = traceback.format_exception

    def report(reason: bytes, error: BaseException) -> NoReturn:
        with contextlib.suppress(BaseException):  # descriptors may be closed, names be taken
            text = "".join(describe(None, error, error.__traceback__.tb_next, limit=-8))
            write(2, text.encode(errors="replace")[-8192:])
        try:
            if process_now() == process:  # not one that the program forked
                write(_REPORT, reason)
        finally:
            leave(1)

    module = types.ModuleType("__main__")
    module.__dict__["__file__"] = path
    sys.modules["__main__"] = module
    sys.argv = [path]
    for name in [name for name in sys.modules if name.startswith(__package__)]:
        del sys.modules[name]
    try:
        with open(path, encoding="utf-8", errors="surrogatepass") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        report(b"syntax", error)
    try:
        # The word is taken first, and while the program runs it lies on the interpreter's stack
        # alone: in no variable, and in nothing that the garbage collector tells of.
        word, _ = take(), run(code, module.__dict__)
        if process_now() == process:
            write(_REPORT, word)
    except AssertionError as error:
        report(b"failed", error)
    except MemoryError as error:
        report(b"memory", error)
    except SystemExit as error:
        report(b"exited", error)
    except BaseException as error:
        report(b"exception", error)
    leave(0)
