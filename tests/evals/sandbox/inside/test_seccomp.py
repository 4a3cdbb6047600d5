"""The filter, read by an interpreter of the instructions that it is made of."""

import struct

import pytest

from starcoder_jax.evals.sandbox.inside import kernel, seccomp

ALLOW, REFUSE = 0x7FFF0000, 0x00050026  # the latter: SECCOMP_RET_ERRNO with ENOSYS
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
# read, openat, execve, clone, unshare, memfd_create, shmget, clone3, io_uring_setup
NUMBERS = {
    "x86_64": (0, 257, 59, 56, 272, 319, 29, 435, 425),
    "aarch64": (63, 56, 221, 220, 97, 279, 194, 435, 425),
}


def run(program: bytes, number: int, architecture: int, first_argument: int = 0) -> int:
    data = struct.pack("IIQQ", number, architecture, 0, first_argument)
    code = list(struct.iter_unpack("HBBI", program))
    place, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[place]
        place += 1
        if operation == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("I", data, value)
        elif operation == 0x06:  # return
            return value
        else:
            true = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: accumulator & value,
            }[operation]
            place += if_true if true else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_is_refused(machine):
    program, architecture = seccomp.filter_program(machine), ARCHITECTURES[machine]
    read, openat, execve, clone, unshare, *denied = NUMBERS[machine]
    for number in (read, openat, execve, clone, unshare):
        assert run(program, number, architecture) == ALLOW
    for number in (clone, unshare):
        flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS
        assert run(program, number, architecture, flags) == REFUSE
        assert run(program, number, architecture, kernel.CLONE_NEWNS) == ALLOW
    assert run(program, read, architecture, kernel.CLONE_NEWUSER) == ALLOW
    for number in denied:
        assert run(program, number, architecture) == REFUSE
    # Calls by other numberings of the same kernel.
    assert run(program, read, 0x40000003) == REFUSE
    assert run(program, 0x40000000 | read, architecture) == REFUSE


def test_a_machine_whose_numbers_are_unknown():
    assert seccomp.filter_program("riscv64") is None
