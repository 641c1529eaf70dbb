"""The seccomp filter of a command, as the bytes bubblewrap's --seccomp wants.

Packed with `struct`: no library, and the same program for both architectures but for the numbers
of the calls. What is refused, and why, is in `_DENIED`; the order is: wrong architecture, calls
that libraries know how to live without, refused calls, argument rules, calls newer than this file.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1, _ARGUMENT_2 = 0, 4, 16, 24, 32  # offsets in seccomp_data
_X32_BIT = 0x40000000
_NEWEST = 470  # listns, Linux 6.19; numbers from 424 on are the same on all architectures

_CLONE_NEW_ANY = 0x7E020000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET
_CLONE_NEWTIME = 0x80  # of unshare only: in clone these bits are the exit signal
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0

_Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int  # AUDIT_ARCH_…, what seccomp_data.arch holds
    socket: int
    ioctl: int
    clone: int
    unshare: int
    denied: tuple[int, ...]


_UNKNOWN_ON_PURPOSE = (435, 425, 426, 427)  # clone3, io_uring_*: libraries fall back on ENOSYS

_DENIED_ANYWHERE = (
    *(428, 429, 430, 431, 432, 433, 442, 467),  # the mount calls with file descriptors
    *(438, 443, 447),  # pidfd_getfd, quotactl_fd, memfd_secret
)
_X86_64 = _Architecture(
    audit=0xC000003E,
    socket=41,
    ioctl=16,
    clone=56,
    unshare=272,
    denied=(
        *(155, 161, 165, 166, 308),  # pivot_root chroot mount umount2 setns
        *(103, 163, 167, 168, 169, 170, 171, 179, 153),  # syslog acct swap* reboot *name quotactl
        *(159, 164, 227, 305),  # adjtimex settimeofday clock_settime clock_adjtime
        *(172, 173, 154),  # iopl ioperm modify_ldt
        *(175, 313, 176, 246, 320),  # modules, kexec
        *(248, 249, 250),  # add_key request_key keyctl: not namespaced
        *(321, 298, 323, 300),  # bpf perf_event_open userfaultfd fanotify_init
        *(303, 304),  # name_to_handle_at open_by_handle_at
        *(256, 279, 312),  # migrate_pages move_pages kcmp
        *(134, 136, 139, 156, 180, 212),  # uselib ustat sysfs _sysctl nfsservctl lookup_dcookie
    ),
)
_AARCH64 = _Architecture(
    audit=0xC00000B7,
    socket=198,
    ioctl=29,
    clone=220,
    unshare=97,
    denied=(
        *(41, 51, 40, 39, 268),
        *(116, 89, 224, 225, 142, 161, 162, 60, 58),
        *(171, 170, 112, 266),
        *(105, 273, 106, 104, 294),
        *(217, 218, 219),
        *(280, 241, 282, 262),
        *(264, 265),
        *(238, 239, 272),
        *(42, 18),
    ),
)
ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64}


def program(machine: str) -> bytes | None:
    """The filter for a machine as `platform.machine()` names it; None if there is none for it."""
    arch = ARCHITECTURES.get(machine)
    if arch is None:
        return None
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in _UNKNOWN_ON_PURPOSE:
        code += _refuse(number, errno.ENOSYS)
    for number in (*arch.denied, *_DENIED_ANYWHERE):
        code += _refuse(number, errno.EPERM)
    code += _refuse_flags(arch.unshare, _CLONE_NEW_ANY | _CLONE_NEWTIME)
    code += _refuse_flags(arch.clone, _CLONE_NEW_ANY)
    code += _terminal_input(arch.ioctl)
    code += _socket_families(arch.socket)
    code += [(_ABOVE, 0, 1, _NEWEST), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    code += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


# The same for a container engine, by name, taken from what its own profile allows.
_NAMES = frozenset(
    (
        *("clone3", "unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot"),
        *("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick"),
        *("mount_setattr", "io_uring_setup", "io_uring_enter", "io_uring_register"),
        *("add_key", "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd"),
        *("fanotify_init", "syslog", "acct", "name_to_handle_at", "open_by_handle_at"),
        *("pidfd_getfd", "memfd_secret", "quotactl", "quotactl_fd", "kcmp", "migrate_pages"),
        *("move_pages", "vhangup", "settimeofday", "clock_settime", "adjtimex"),
        *("clock_adjtime",),
    )
)


def narrowed(profile: Path) -> str | None:
    """An engine's own profile without what commands are refused; None if it is not there."""
    try:
        known = json.loads(profile.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    rules: list[Mapping[str, object]] = []
    for rule in known["syscalls"]:
        names = [name for name in rule["names"] if name not in _NAMES and name != "socket"]
        if names:
            rules.append({**rule, "names": names})
    for family in (_AF_UNIX, _AF_INET, _AF_INET6):
        rules.append(_socket_rule({"index": 0, "value": family, "op": "SCMP_CMP_EQ"}))
    route = {"index": 2, "value": _NETLINK_ROUTE, "op": "SCMP_CMP_EQ"}
    rules.append(_socket_rule({"index": 0, "value": _AF_NETLINK, "op": "SCMP_CMP_EQ"}, route))
    return json.dumps({**known, "syscalls": rules})


def _socket_rule(*arguments: Mapping[str, object]) -> Mapping[str, object]:
    return {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def _refuse(number: int, error: int) -> list[_Instruction]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _refuse_flags(number: int, flags: int) -> list[_Instruction]:
    """Refuse a call whose first argument has any of the flags."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENT_0),
        (_ANY_BIT, 0, 1, flags),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]


def _terminal_input(ioctl: int) -> list[_Instruction]:
    """Refuse typing into a terminal. The kernel looks at the low 32 bits of the request only, so
    comparing all 64 would let `request | 1 << 32` through."""
    return [
        (_EQUAL, 0, 5, ioctl),
        (_LOAD, 0, 0, _ARGUMENT_1),
        (_EQUAL, 1, 0, _TIOCSTI),
        (_EQUAL, 0, 1, _TIOCLINUX),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]


def _socket_families(socket: int) -> list[_Instruction]:
    """Allow unix, internet and route netlink. Others, AF_VSOCK above all, no namespace covers."""
    return [
        (_EQUAL, 0, 9, socket),
        (_LOAD, 0, 0, _ARGUMENT_0),
        (_EQUAL, 6, 0, _AF_UNIX),
        (_EQUAL, 5, 0, _AF_INET),
        (_EQUAL, 4, 0, _AF_INET6),
        (_EQUAL, 0, 2, _AF_NETLINK),
        (_LOAD, 0, 0, _ARGUMENT_2),
        (_EQUAL, 1, 0, _NETLINK_ROUTE),
        (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
        (_LOAD, 0, 0, _NUMBER),
    ]
