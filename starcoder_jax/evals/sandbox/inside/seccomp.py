"""A filter of system calls: those that no program under test needs and that get around a limit."""

import ctypes
import errno
import os
import struct

from . import kernel

# What the limits on memory do not see (memory without an address, or of the kernel), and what
# widens the kernel's surface. Numbers on x86-64 and on 64-bit Arm; the kernel's tables
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Its flags lie in memory, where a filter cannot look: the C library falls back to clone.
    "clone3": (435, 435),
}
# A new user namespace would bring all capabilities, mounts of any size among them.
_NO_NEW_USER = {"clone": (56, 220), "unshare": (272, 97)}

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_…
_X32 = 0x40000000  # from here on: another numbering of the same calls, on x86-64

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.ENOSYS
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def filter_program(machine: str) -> bytes | None:
    """The filter as classic BPF; None if the numbers of this machine (as in uname) are unknown."""
    if machine not in _MACHINES:
        return None
    column, architecture = _MACHINES[machine]
    denied = [numbers[column] for numbers in _DENIED.values()]
    new_user = [numbers[column] for numbers in _NO_NEW_USER.values()]
    # Jumps count the instructions they skip; `refuse` is the last one, `allow` that before it,
    # and the check of flags the two before those.
    length = 5 + len(denied) + len(new_user) + 4
    refuse, flags = length - 1, length - 4
    code = [(_LOAD, 0, 0, _ARCHITECTURE)]

    def jump(operation: int, value: int, if_true: int | None, if_false: int | None) -> None:
        here = len(code) + 1
        offsets = [0 if target is None else target - here for target in (if_true, if_false)]
        code.append((operation, *offsets, value))

    jump(_EQUAL, architecture, None, refuse)
    code.append((_LOAD, 0, 0, _NUMBER))
    jump(_AT_LEAST, _X32, refuse, None)
    for number in denied:
        jump(_EQUAL, number, refuse, None)
    for number in new_user:
        jump(_EQUAL, number, flags, None)
    jump(_AT_LEAST, 0, length - 2, length - 2)
    code.append((_LOAD, 0, 0, _FIRST_ARGUMENT))
    jump(_ANY_BIT, kernel.CLONE_NEWUSER, refuse, None)
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    assert len(code) == length
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install() -> None:
    """Filters the calls of this process and of all that it starts.

    Raises:
        OSError: the kernel has no filters.
    """
    program = filter_program(os.uname().machine)
    if program is None:
        return
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    kernel.call("prctl", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(header), 0, 0)
