"""Takes from the sandbox process what it does not need: the second wall, behind WebAssembly's.

Two moments: `leave_network` while the process has one thread, `confine` once everything it will
ever open is open. Each measure is taken where the kernel offers it, and reported in words; none of
them is what isolation rests on. Linux only; elsewhere nothing is taken.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x1000_0000, 0x4000_0000, 0x0800_0000
_CLONE_THREAD = 0x0001_0000
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
DESCRIPTORS_MAX = 64

# name: (x86_64, aarch64); None where that machine has no such call. What CPython and wasmtime use
# between the messages of a running sandbox: memory, threads, time, and descriptors already open.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "writev": (20, 66),
    "select": (23, None),
    "pselect6": (270, 72),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "exit": (60, 93),
    "uname": (63, 160),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_setaffinity": (203, 122),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "tgkill": (234, 131),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
}
_CLONE = (56, 220)  # for threads only
_CLONE3 = (435, 435)  # its flags cannot be looked at: refused, so that libc uses clone
_ARCHES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def leave_network() -> list[str]:
    """Move into a network of one's own, with nothing in it. Before any thread starts."""
    if _libc is None:
        return []
    for flags in (_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC, _CLONE_NEWNET | _CLONE_NEWIPC):
        if _libc.unshare(flags) == 0:
            return ["no network"]
    return []


def confine() -> list[str]:
    """Give up files, programs and new rights, for good. Returns what the kernel agreed to."""
    if _libc is None:
        return []
    got = ["limits"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_MAX, DESCRIPTORS_MAX))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        got.append("not traceable")
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return got
    got.append("no new privileges")
    if _landlock():
        got.append("landlock")
    if _seccomp():
        got.append("seccomp")
    return got


def volunteer_for_oom() -> None:
    """When the machine runs out of memory, this process goes before its worker."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        return  # no such file here, or not allowed: the kernel chooses as it likes


def _landlock() -> bool:
    """Deny every file and TCP port that is not open yet."""
    assert _libc is not None
    create, restrict, ask_version = 444, 446, 1
    version = _libc.syscall(create, None, 0, ask_version)
    if version < 1:
        return False
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ports = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0
    attributes = struct.pack("=QQQ", files, ports, scopes)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _libc.syscall(create, attributes, size, 0)
    if ruleset < 0:
        return False
    done: int = _libc.syscall(restrict, ruleset, 0)
    os.close(ruleset)
    return done == 0


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _seccomp() -> bool:
    """Refuse every system call that is not in the list above."""
    assert _libc is not None
    if platform.machine() not in _ARCHES:
        return False
    code = seccomp_filter(platform.machine())
    program = _Program(len(code) // 8, code)
    done: int = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    return done == 0


def seccomp_filter(machine: str) -> bytes:
    """The filter as BPF instructions."""
    column, audit_arch = _ARCHES[machine]
    load, jump_equal, jump_any_bit, give_back = 0x20, 0x15, 0x45, 0x06
    allow, kill, refuse, absent = 0x7FFF_0000, 0x8000_0000, 0x0005_0001, 0x0005_0026
    nr_at, arch_at, flags_at = 0, 4, 16  # in struct seccomp_data; flags: the first argument

    def line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    program = [
        line(load, arch_at),
        line(jump_equal, audit_arch, 1, 0),
        line(give_back, kill),
        line(load, nr_at),
    ]
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            program += [line(jump_equal, number, 0, 1), line(give_back, allow)]
    program += [line(jump_equal, _CLONE3[column], 0, 1), line(give_back, absent)]
    program += [
        line(jump_equal, _CLONE[column], 1, 0),
        line(give_back, refuse),
        line(load, flags_at),
        line(jump_any_bit, _CLONE_THREAD, 1, 0),
        line(give_back, refuse),
        line(give_back, allow),
    ]
    return b"".join(program)
