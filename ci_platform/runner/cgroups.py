"""Limits by control groups (version 2), where the service manager has delegated them to us.

With `Delegate=yes` in its unit, systemd marks the server's group. The server's processes then move
to a leaf of it, since a group with members cannot have limited children, and every command gets a
child of its own. Elsewhere `find` says None, and resource limits and the watch do the work alone.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ci_platform.runner.limits import Excess, RunnerLimits, over_cpu, over_memory, over_pids

_MOUNT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")
_NEEDED = frozenset({"memory", "pids"})
# Where these are delegated too, commands yield to the server by weight.
_SHARED = frozenset({"cpu", "io"})
_WEIGHT = 20  # of a command; the server has 100
_NO_SUCH_FILE = (FileNotFoundError, PermissionError)  # the second: nobody can make one there
_LEAF = "server"
_MARKS = ("user.delegate", "trusted.delegate")
_REMOVALS_MAX, _REMOVAL_SECONDS = 100, 0.01
_MOVES_MAX = 10  # rounds: processes may start while others are moved


def is_delegated(group: Path) -> bool:
    """Whether the service manager has left a group to its members; it says so in an attribute."""
    for mark in _MARKS:
        try:
            if os.getxattr(group, mark) == b"1":
                return True
        except OSError:
            continue
    return False


def find(
    *,
    mount: Path = _MOUNT,
    own: Path = _SELF,
    delegated: Callable[[Path], bool] = is_delegated,
) -> Path | None:
    """The group delegated to this server, ready for children; None where there is none."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group = mount / path.strip("/")
    if group.name == _LEAF:  # another worker was here first
        group = group.parent
    if not delegated(group):
        return None
    try:
        if not set((group / "cgroup.controllers").read_text().split()) >= _NEEDED:
            return None
        _make_room(group)
    except OSError:
        return None
    return group


def shares_processor(group: Path) -> bool:
    """Whether commands in this group yield by their weight."""
    return "cpu" in (group / "cgroup.subtree_control").read_text().split()


class Cgroup:
    """The group of one command."""

    def __init__(self, parent: Path, name: str, limits: RunnerLimits) -> None:
        self._path = parent / name
        self._limits = limits
        self._path.mkdir()
        self._write("memory.max", str(limits.memory_bytes))
        self._write("memory.oom.group", "1")
        self._write("pids.max", str(limits.pids + 1))
        for kind in _SHARED:
            with suppress(*_NO_SUCH_FILE):  # it is not ours to share out
                self._write(f"{kind}.weight", str(_WEIGHT))
        with suppress(*_NO_SUCH_FILE):  # a kernel without accounting of swap
            self._write("memory.swap.max", "0")

    def add(self, pid: int) -> None:
        self._write("cgroup.procs", str(pid))

    def excess(self) -> Excess | None:
        """The limit that the kernel has enforced, if any."""
        if self._number("memory.events", "oom_kill"):
            return over_memory(self._single("memory.peak", self._limits.memory_bytes), self._limits)
        if self._number("pids.events", "max"):
            return over_pids(self._limits.pids, self._limits)
        seconds = self._number("cpu.stat", "usage_usec") / 1_000_000
        if seconds > self._limits.cpu_seconds:
            return over_cpu(seconds, self._limits)
        return None

    def close(self) -> None:
        """End what is left in it, and remove it."""
        with suppress(FileNotFoundError):
            self._write("cgroup.kill", "1")
        for _ in range(_REMOVALS_MAX):
            try:
                self._path.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(_REMOVAL_SECONDS)  # its last process is just ending
            else:
                return

    def _write(self, name: str, text: str) -> None:
        with open(self._path / name, "w") as file:
            file.write(text)

    def _number(self, name: str, key: str) -> int:
        """One number of a file of `key number` lines; 0 if it is not there."""
        try:
            for line in (self._path / name).read_text().splitlines():
                word, _, number = line.partition(" ")
                if word == key:
                    return int(number)
        except FileNotFoundError:
            return 0
        return 0

    def _single(self, name: str, otherwise: int) -> int:
        try:
            return int((self._path / name).read_text())
        except FileNotFoundError:
            return otherwise


def _make_room(group: Path) -> None:
    """Move the group's own members to a leaf, and let children have limits."""
    leaf = group / _LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_MOVES_MAX):
        members = (group / "cgroup.procs").read_text().split()
        if not members:
            break
        for pid in members:
            with suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)
    there = set((group / "cgroup.controllers").read_text().split())
    wanted = sorted(_NEEDED | (_SHARED & there))
    (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
