"""The system call filter, read back as instructions."""

from __future__ import annotations

import struct

import pytest

from ci_platform.sandbox.confine import seccomp_filter

ALLOW, REFUSE, KILL, ABSENT = 0x7FFF_0000, 0x0005_0001, 0x8000_0000, 0x0005_0026
ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}


def decide(code: bytes, *, arch: int, number: int, argument: int = 0) -> int:
    """Run the filter as the kernel does."""
    program = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    data = {0: number, 4: arch, 16: argument}
    at = held = 0
    while True:
        operation, if_true, if_false, value = program[at]
        at += 1
        if operation == 0x20:
            held = data[value]
        elif operation == 0x15:
            at += if_true if held == value else if_false
        elif operation == 0x45:
            at += if_true if held & value else if_false
        else:
            assert operation == 0x06
            return int(value)


@pytest.mark.parametrize(
    ("machine", "read", "execve", "socket", "openat", "clone"),
    [("x86_64", 0, 59, 41, 257, 56), ("aarch64", 63, 221, 198, 56, 220)],
)
def test_the_filter_allows_threads_and_messages_and_refuses_the_rest(
    machine: str, read: int, execve: int, socket: int, openat: int, clone: int
) -> None:
    code, arch = seccomp_filter(machine), ARCH[machine]
    assert decide(code, arch=arch, number=read) == ALLOW
    for number in (execve, socket, openat, 0x4000_0000 + read):
        assert decide(code, arch=arch, number=number) == REFUSE
    assert decide(code, arch=arch, number=clone, argument=0x3D0F00) == ALLOW  # a thread
    assert decide(code, arch=arch, number=clone, argument=0x1200011) == REFUSE  # a process
    assert decide(code, arch=arch, number=435) == ABSENT  # clone3: libc falls back to clone
    assert decide(code, arch=ARCH["x86_64"] ^ 1, number=read) == KILL
