"""System calls that Python 3.11 has no names for."""

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

_MNT_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> int:
    """A function of the C library that returns -1 on failure: raises OSError then."""
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(f"this system has no {name}()")
    result = function(*args)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Moves this process into new namespaces."""
    call("unshare", flags)


def setns(descriptor: int, kind: int) -> None:
    """Moves this process (of a PID namespace: its later children) into that namespace."""
    call("setns", descriptor, kind)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    args = [text.encode() or None for text in (source, target, kind)]
    call("mount", *args, ctypes.c_ulong(flags), options.encode() or None)


def protect(target: str) -> None:
    """Makes all mounts from `target` down read-only, without devices and set-user-id programs."""
    # struct mount_attr: to set, to clear, propagation, user namespace.
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    call(
        "syscall",
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        target.encode(),
        ctypes.c_long(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def change_root(new_root: str) -> None:
    """Makes a mount the root of everything; what was there before is out of reach."""
    os.chdir(new_root)
    # Onto itself, so that the old root lies over the new one and can be unmounted by its name.
    call("pivot_root", b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def die_with_parent() -> None:
    """Has this process killed when the thread that forked it ends."""
    call("prctl", _PR_SET_PDEATHSIG, 9, 0, 0, 0)


def hide_memory() -> None:
    """Closes this process's memory to /proc, also to itself, until it runs another program."""
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_capabilities() -> None:
    """Gives up all capabilities, those that a later program would bring as well."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
