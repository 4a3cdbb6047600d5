"""Python programs that try to get out: each passes if, and only if, it could not."""

import contextlib
import json
import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Iterator

from starcoder_jax.evals.sandbox import Outcome, Program, Sandbox
from starcoder_jax.evals.sandbox.toolchains import find_tools

ROOT = pathlib.Path(__file__).parents[3]
SECRET = "SANDBOX_TEST_SECRET"  # a variable of the environment, and the name of a file at home

_NETWORK = """
import errno, socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", {port})),
        (socket.AF_INET, ("192.0.2.1", 80)),
        (socket.AF_INET6, ("2001:db8::1", 80)),
        (socket.AF_UNIX, "\\0{port}"),
    ):
        try:
            end = socket.socket(family, kind)
            end.settimeout(1)
            end.connect(address)
            end.send(b"x")
            end.send(b"x")  # the first one may only have found nobody
        except OSError:
            continue
        raise AssertionError(address)
assert [name for _, name in socket.if_nameindex()] == ["lo"]
"""

_FILES = """
import glob, os
for path in {hidden!r}:
    assert not os.path.exists(path), path
assert not os.path.exists("/etc/passwd") and not os.path.exists("/etc/shadow")
for name in os.listdir("/etc"):
    assert name.startswith(("alternatives", "java", "ld.so")), name
mounts = [line.split() for line in open("/proc/self/mounts")]
writable = {{place for _, place, kind, options, *_ in mounts if "rw" in options.split(",")}}
devices = {{"/dev/" + name for name in ("null", "zero", "full", "random", "urandom")}}
assert writable - devices - {{"/proc"}} == {{"/tmp"}}, writable
for folder in ["/", "/usr", "/dev", "/proc", "/etc", *{prefixes!r}]:
    try:
        open(os.path.join(folder, "file"), "w")
    except OSError:
        continue
    raise AssertionError(folder)
"""

_ENVIRONMENT = """
import os, glob
assert {secret!r} not in os.environ
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        text = open(path, "rb").read()
    except OSError:
        continue
    assert {secret!r}.encode() not in text, path
"""

# Nothing to be gained by capabilities, of this process or of a namespace of its own.
_PRIVILEGES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for kind in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
    assert int(status[kind], 16) == 0, kind
assert status["NoNewPrivs"].strip() == "1"
for flags in (0x10000000, 0x10000000 | 0x00020000, 0x20000000, 0x40000000):
    assert libc.unshare(flags) == -1, flags
clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
assert libc.syscall(clone, 0x10000011, 0, 0, 0, 0) == -1
assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == -1
assert libc.umount2(b"/tmp", 2) == -1
assert libc.chroot(b"/tmp") == -1
for call in (os.setuid, os.setgid):
    for number in (2, 1000, 65534):
        try:
            call(number)
        except OSError:
            continue
        raise AssertionError(call)
try:
    os.memfd_create("x")
except OSError:
    pass
else:
    raise AssertionError("memory without an address")
"""

_PROCESSES = """
import os, signal
assert [name for name in os.listdir("/proc") if name.isdigit()] == ["1", str(os.getpid())]
for process in (1, os.getppid(), -1):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
        try:
            os.kill(process, number)
        except OSError:
            pass
for name in ("mem", "environ", "maps", "fd/0", "fd/3"):
    try:
        open(f"/proc/1/{name}", "rb")
    except OSError:
        continue
    raise AssertionError(name)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
assert libc.ptrace(16, 1, 0, 0) == -1  # attach
assert libc.ptrace(0x4206, 1, 0, 0) == -1  # seize
"""

# Names that a program before this one, of the same worker, would have left.
_LEAVE = """
import os
def places():
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "/", "/dev", "/usr", os.getcwd()):
        yield folder + "/left_by_another"
for place in places():
    assert not os.path.exists(place), place
for place in places():
    try:
        open(place, "w").write("x")
    except OSError:
        pass
if not os.fork():
    os.setsid()
    if not os.fork():
        import time
        time.sleep(60)
"""

_FILE_SIZE = """
import errno
try:
    with open("/tmp/big", "wb") as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
except OSError as error:
    assert error.errno in (errno.EFBIG, errno.ENOSPC), error
else:
    raise AssertionError("100 MiB were written")
"""

_SPACE = """
written = 0
try:
    for number in range(50):
        with open(f"/tmp/{number}", "wb") as file:
            for _ in range(32):
                written += file.write(bytes(1 << 20))
except OSError:
    assert written <= 300 << 20
else:
    raise AssertionError("1600 MiB were written")
"""

_ALLOCATION = """
try:
    bytearray(3 << 30)
except MemoryError:
    pass
else:
    raise AssertionError("3 GiB were allocated")
"""

_FORKS = """
import os, time
children = 0
try:
    while children < 1000:
        if not os.fork():
            time.sleep(30)
            os._exit(0)
        children += 1
except BlockingIOError:
    pass
assert 10 < children < 130, children
"""


def escapes(port: int, home: str) -> Iterator[tuple[str, Program]]:
    """The programs, by what they try.

    Args:
        port: where this machine listens, on its loopback and at an abstract address.
        home: the user's home; it holds a file named `SECRET`.
    """
    seen = [sys.prefix, sys.base_prefix, *find_tools().values()]
    folders = ["/home", "/root", "/var", "/run", "/sys", "/boot", "/mnt", "/srv", str(ROOT)]
    hidden = [f"{home}/{SECRET}", str(ROOT / "setup.py"), str(ROOT / "starcoder_jax")]
    hidden += [path for path in folders if not any(one.startswith(path) for one in seen)]
    assert os.path.exists(hidden[0]) and os.path.exists(hidden[1])
    sources = {
        "network": _NETWORK.format(port=port),
        "files": _FILES.format(hidden=hidden, prefixes=seen[:2]),
        "environment": _ENVIRONMENT.format(secret=SECRET),
        "privileges": _PRIVILEGES,
        "processes": _PROCESSES,
        "leave": _LEAVE,
        "find what was left": _LEAVE,
        "file size": _FILE_SIZE,
        "space": _SPACE,
        "allocation": _ALLOCATION,
        "forks": _FORKS,
    }
    for name, source in sources.items():
        yield name, Program("python", source)


def try_escapes(isolation: str) -> dict[str, Outcome]:
    """What became of them, one after another in one worker."""
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(workers=1, isolation=isolation))
        home = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        pathlib.Path(home, SECRET).write_text("secret")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = tcp.getsockname()[1]
        local = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        local.bind(f"\0{port}")
        local.listen()
        return dict(sandbox.run(escapes(port, home)))


if __name__ == "__main__":  # as another user
    os.environ[SECRET] = "secret"
    try:
        results = try_escapes(sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    for name, outcome in results.items():
        print(json.dumps([name, outcome.passed, outcome.detail]))
