"""The filter, executed instruction by instruction as the kernel does."""

from __future__ import annotations

import errno
import struct

import pytest

from ci_platform.runner import seccomp

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = (
    ERRNO | code for code in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
)
X86, ARM = "x86_64", "aarch64"
AUDIT = {X86: 0xC000003E, ARM: 0xC00000B7}
CLONE_NEWUSER, CLONE_NEWTIME, SIGCHLD = 0x10000000, 0x80, 17
TIOCSTI, TIOCGWINSZ = 0x5412, 0x5413


def judge(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the program answers for a call, in the words of seccomp's return values."""
    program = seccomp.program(machine)
    assert program is not None
    code = list(struct.iter_unpack("<HBBI", program))
    padded = (*arguments, *([0] * (6 - len(arguments))))
    data = struct.pack("<iIQ6Q", number, audit or AUDIT[machine], 0, *padded)
    at, value = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, constant)
        elif operation == 0x06:
            return int(constant)
        else:
            tests = {
                0x15: value == constant,
                0x25: value > constant,
                0x35: value >= constant,
                0x45: value & constant != 0,
            }
            at += if_true if tests[operation] else if_false


def test_another_architecture_is_killed_and_x32_is_unknown() -> None:
    assert judge(X86, 0, audit=0x40000003) == KILL
    assert judge(X86, 0x40000000 | 1) == ENOSYS


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        (X86, {"read": 0, "openat": 257, "execve": 59, "ptrace": 101, "rseq": 334}),
        (ARM, {"read": 63, "openat": 56, "execve": 221, "ptrace": 117, "rseq": 293}),
    ],
)
def test_ordinary_calls_pass(machine: str, numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        assert judge(machine, number) == ALLOW, name


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        (X86, {"mount": 165, "keyctl": 250, "bpf": 321, "setns": 308, "kexec_load": 246}),
        (ARM, {"mount": 40, "keyctl": 219, "bpf": 280, "setns": 268, "kexec_load": 104}),
    ],
)
def test_what_reaches_into_the_kernel_is_refused(machine: str, numbers: dict[str, int]) -> None:
    for name, number in numbers.items():
        assert judge(machine, number) == EPERM, name


@pytest.mark.parametrize("machine", [X86, ARM])
def test_calls_that_libraries_fall_back_from_and_calls_of_the_future_are_unknown(
    machine: str,
) -> None:
    for number in (425, 426, 427, 435, 471, 600):
        assert judge(machine, number) == ENOSYS


@pytest.mark.parametrize(("machine", "clone", "unshare"), [(X86, 56, 272), (ARM, 220, 97)])
def test_processes_may_be_made_but_no_namespaces(machine: str, clone: int, unshare: int) -> None:
    assert judge(machine, clone, SIGCHLD) == ALLOW
    assert judge(machine, clone, CLONE_NEWUSER | SIGCHLD) == EPERM
    assert judge(machine, unshare, 0x400) == ALLOW  # CLONE_FILES
    assert judge(machine, unshare, CLONE_NEWUSER) == EPERM
    assert judge(machine, unshare, CLONE_NEWTIME) == EPERM


@pytest.mark.parametrize(("machine", "ioctl"), [(X86, 16), (ARM, 29)])
def test_nothing_can_be_typed_into_a_terminal_whatever_the_upper_bits(
    machine: str, ioctl: int
) -> None:
    assert judge(machine, ioctl, 0, TIOCSTI) == EPERM
    assert judge(machine, ioctl, 0, TIOCSTI | 1 << 32) == EPERM
    assert judge(machine, ioctl, 0, 0x541C) == EPERM
    assert judge(machine, ioctl, 0, TIOCGWINSZ) == ALLOW


@pytest.mark.parametrize(("machine", "socket"), [(X86, 41), (ARM, 198)])
def test_only_socket_families_that_namespaces_cover_may_be_used(machine: str, socket: int) -> None:
    for family in (1, 2, 10):
        assert judge(machine, socket, family, 1, 0) == ALLOW
    assert judge(machine, socket, 16, 3, 0) == ALLOW  # netlink, route
    for family, protocol in ((16, 12), (16, 9), (17, 0), (38, 0), (40, 0)):
        assert judge(machine, socket, family, 1, protocol) == EAFNOSUPPORT


def test_there_is_no_filter_for_other_machines() -> None:
    assert seccomp.program("riscv64") is None
