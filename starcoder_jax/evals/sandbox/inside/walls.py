"""The walls around a worker and, inside them, around each sample, made of Linux namespaces."""

import fcntl
import os
import resource
import socket
import stat
import struct
from collections.abc import Mapping, Sequence

from . import kernel, seccomp

DEVICES = ("null", "zero", "full", "random", "urandom")
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_NOBODY = 65534  # on the host
_SAMPLE = 1  # the same user inside, where the worker is 0
_TMP_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV
_WORKER_NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)


def enclose_worker(visible: Sequence[str]) -> None:
    """Goes on in a child that sees `visible` (read-only), no network and no other processes.

    This process waits for the child and ends with it. The child is the first process of a PID
    namespace: all processes of its samples end with it.

    Raises:
        OSError: this system does not allow it.
    """
    _new_namespaces()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    kernel.die_with_parent()
    socket.sethostname("sandbox")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        # Up: an interface of this namespace, which leads nowhere else.
        fcntl.ioctl(end, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    _new_root(visible)


def _new_namespaces() -> None:
    user, group, process = os.geteuid(), os.getegid(), os.getpid()
    wait, go = os.pipe()
    helper = os.fork()
    if not helper:  # only a process outside may map more users than its own
        os.close(go)
        os.read(wait, 1)
        try:
            _map_users(process, user, group)
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(wait)
    kernel.unshare(_WORKER_NAMESPACES)
    os.close(go)
    _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("users cannot be mapped into a user namespace here")


def _map_users(process: int, user: int, group: int) -> None:
    def write(name: str, text: str) -> None:
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(text)

    if user == 0:
        # The kernel exempts the host's root from limits on processes: samples run as nobody.
        try:
            write("uid_map", f"0 0 1\n{_SAMPLE} {_NOBODY} 1\n")
            write("gid_map", f"0 0 1\n{_SAMPLE} {_NOBODY} 1\n")
            return
        except OSError:  # a container with one user, whose root is not the host's
            pass
    write("uid_map", f"0 {user} 1\n")
    write("setgroups", "deny")
    write("gid_map", f"0 {group} 1\n")


def _new_root(visible: Sequence[str]) -> None:
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    # Held open, because the new root is built over /tmp, where some of them may lie.
    held = {path: os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in visible}
    devices = {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    kernel.mount("tmpfs", "/tmp", "tmpfs", _TMP_FLAGS, "mode=755")
    for path, descriptor in held.items():
        if _bind(descriptor, f"/tmp{path}"):
            kernel.protect(f"/tmp{path}")
    for path, descriptor in devices.items():
        _bind(descriptor, f"/tmp{path}")
    os.symlink("/tmp", "/tmp/dev/shm")
    os.symlink("/proc/self/fd", "/tmp/dev/fd")
    for descriptor in (*held.values(), *devices.values()):
        os.close(descriptor)
    for folder in ("/tmp/tmp", "/tmp/proc"):
        os.makedirs(folder, exist_ok=True)
    _mount_proc("/tmp/proc")
    kernel.change_root("/tmp")
    kernel.mount("", "/", "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | _TMP_FLAGS)


def _bind(descriptor: int, target: str) -> bool:
    """Whether there is a mount at `target` now; a symbolic link is made anew."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink("", dir_fd=descriptor), target)
        return False
    if stat.S_ISDIR(mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    kernel.mount(f"/proc/self/fd/{descriptor}", target, "", kernel.MS_BIND | kernel.MS_REC)
    return True


def _mount_proc(target: str) -> None:
    kernel.mount("proc", target, "proc", _TMP_FLAGS | kernel.MS_NOEXEC)


def enclose_sample(tmp_bytes: int) -> None:
    """Gives this process, the first of a new PID namespace, files of its own.

    Raises:
        OSError: this system does not allow it.
    """
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
    options = f"mode=1777,size={tmp_bytes},nr_inodes=20000"
    # An interpreter may lie in /tmp.
    held = {name: os.open(f"/tmp/{name}", os.O_PATH | os.O_NOFOLLOW) for name in os.listdir("/tmp")}
    kernel.mount("tmpfs", "/tmp", "tmpfs", _TMP_FLAGS, options)
    for name, descriptor in held.items():
        _bind(descriptor, f"/tmp/{name}")
        os.close(descriptor)
    _mount_proc("/proc")


def drop_privileges() -> None:
    """What the program under test runs with: nothing."""
    if os.geteuid() == 0 and _maps_sample():
        os.setgroups([])
        os.setresgid(_SAMPLE, _SAMPLE, _SAMPLE)
        os.setresuid(_SAMPLE, _SAMPLE, _SAMPLE)
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        # A fork bomb with real-time priority, taken over from the caller, would stop the machine.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    kernel.drop_capabilities()
    seccomp.install()


def _maps_sample() -> bool:
    with open("/proc/self/uid_map") as file:
        return any(int(line.split()[0]) == _SAMPLE for line in file)


def limit_resources(limits: Mapping[str, int]) -> None:
    """Sets the resource limits of these names (`AS` for RLIMIT_AS) for this process and others."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(kind, (value, value))
