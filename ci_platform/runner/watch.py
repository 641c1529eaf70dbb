"""Measuring a running command from outside: memory, tasks, processor time, disk.

What control groups do where they are delegated, done by looking: all processes of the command
share a pid namespace, so they can be found whatever they forked. Only measures; `command.py`
decides.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ci_platform.runner.limits import (
    Excess,
    RunnerLimits,
    over_cpu,
    over_disk,
    over_files,
    over_memory,
    over_open_files,
    over_pids,
)
from ci_platform.runner.manifest import Manifest, TooManyFiles, walk, weight

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_EXACT_AGAIN_SECONDS = 1.0
_EXACT_SECONDS_MAX = 0.05  # that the watch waits for it
_LOOK_SECONDS_MAX = 0.01  # of one look at the disk, so that output keeps flowing
_PASS_SECONDS = 1.0  # rest between two passes over the disk
_FDS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Usage:
    memory_bytes: int  # resident; shared pages count once for each process
    tasks: int
    cpu_seconds: float  # of the living, and of those they waited for
    open_files: int  # of the process that has most


class Namespace:
    """The processes in the pid namespace whose first process is `init`."""

    def __init__(self, init: int) -> None:
        self.init = init
        self._name = os.readlink(f"/proc/{init}/ns/pid")
        self._exact_after = 0.0
        self._exact_bytes = 0
        self._look: threading.Thread | None = None

    def pids(self) -> list[int]:
        """All that live but the first, which is the sandbox's own."""
        return [pid for pid in _all_pids() if pid != self.init and self._is_here(pid)]

    def usage(self) -> Usage:
        living, dead = [self.init], list[int]()
        for pid in _all_pids():
            if pid != self.init and self._is_here(pid, dead):
                living.append(pid)
        memory, tasks, cpu, files = 0, self._unburied(living, dead), 0.0, 0
        for pid in living:
            fields = _stat(pid)
            if fields is None:
                continue
            cpu += sum(int(fields[index]) for index in (11, 12, 13, 14)) / _TICKS
            if pid != self.init:
                tasks += int(fields[17])
                memory += int(fields[21]) * _PAGE_BYTES
                files = max(files, _open_files(pid))
        return Usage(memory, tasks, cpu, files)

    def excess(self, limits: RunnerLimits) -> Excess | None:
        """The limit these processes are over, if any."""
        crowd = self._crowd()
        if crowd >= limits.pids:  # a fork bomb is not looked at one by one: it is faster
            return over_pids(crowd, limits)
        usage = self.usage()
        if usage.tasks >= limits.pids:
            return over_pids(usage.tasks, limits)
        if usage.memory_bytes > limits.memory_bytes and time.monotonic() >= self._exact_after:
            exact = self._exact_memory()
            if exact > limits.memory_bytes:
                return over_memory(exact, limits)
        if usage.open_files >= limits.open_files:
            return over_open_files(usage.open_files, limits)
        if usage.cpu_seconds > limits.cpu_seconds:
            return over_cpu(usage.cpu_seconds, limits)
        return None

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process, if it still is one of these."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self._is_here(pid):  # so the descriptor is of it too, not of a later process
                signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)

    def _is_here(self, pid: int, dead: list[int] | None = None) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == self._name
        except FileNotFoundError:  # ended, maybe not yet buried
            if dead is not None:
                dead.append(pid)
            return False
        except OSError:  # of a user whose processes we may not look at
            return False

    def _crowd(self) -> int:
        """How many processes there are, in one look at the /proc that they see themselves."""
        try:
            names = os.listdir(Path(f"/proc/{self.init}/root", "proc"))
        except OSError:  # ended, or of a user whose processes we may not look into
            return 0
        return sum(name.isdigit() for name in names) - 1

    def _unburied(self, living: list[int], dead: list[int]) -> int:
        """How many of the ended processes are of this namespace. They have no namespace any more,
        but a parent; they count, since a fork bomb consists mostly of them."""
        here = set(living)
        parents = (fields[1] for pid in dead if (fields := _stat(pid)) is not None)
        return sum(int(parent) in here for parent in parents)

    def _exact_memory(self) -> int:
        """Resident memory with shared pages counted once; 0 while it is not known. Slow, so only
        when the sum is too high, and beside the watch: it takes locks that a process which forks
        and forks gives nobody for seconds."""
        if self._look is None:
            self._look = threading.Thread(target=self._add_up, name="memory", daemon=True)
            self._look.start()
        self._look.join(_EXACT_SECONDS_MAX)
        if self._look.is_alive():
            return 0
        self._look = None
        self._exact_after = time.monotonic() + _EXACT_AGAIN_SECONDS
        return self._exact_bytes

    def _add_up(self) -> None:
        self._exact_bytes = sum(_proportional_bytes(pid) for pid in self.pids())

    def deleted_bytes(self, device: int) -> int:
        """Space on a device held by files that have no name any more but are still open."""
        held: dict[int, int] = {}
        for fd in self._descriptors():
            try:
                found = os.stat(fd)
            except OSError:
                continue
            if found.st_nlink == 0 and found.st_dev == device and stat.S_ISREG(found.st_mode):
                held[found.st_ino] = found.st_blocks * 512
        return sum(held.values())

    def _descriptors(self) -> Iterator[str]:
        seen = 0
        for pid in self.pids():
            try:
                names = os.listdir(f"/proc/{pid}/fd")
            except OSError:
                continue
            for name in names:
                seen += 1
                if seen > _FDS_MAX:
                    return
                yield f"/proc/{pid}/fd/{name}"


class Disk:
    """How much a workspace has grown, measured a little at a time."""

    def __init__(
        self,
        root: int,
        *,
        upper: int | None = None,
        beside: Path,
        caches: int | None = None,
        before: Manifest,
        caches_bytes: int = 0,
        limits: RunnerLimits,
    ) -> None:
        """`upper`: where what is written to `root` lies, if not in it; `beside`: the one file
        outside that the command may write too; `caches`: a directory; `before`: what was in
        `root`."""
        self._root = root if upper is None else upper
        self._roots = [self._root] if caches is None else [self._root, caches]
        self._beside = beside
        self._before = before.total_bytes - before.below_bytes + caches_bytes
        self._files_below = before.below_files
        self._limits = limits
        self._device = os.fstat(root).st_dev
        self._free_at_start = _free_bytes(self._root)
        self._walk: Iterator[tuple[str, os.stat_result, bool]] | None = None
        self._bytes, self._files = 0, 0
        self._next_pass = 0.0

    def excess(self, namespace: Namespace | None) -> Excess | None:
        """Go on with the current pass for a moment; the excess found, if any."""
        now = time.monotonic()
        if self._walk is None:
            if now < self._next_pass:
                return None
            self._walk, self._files = chain.from_iterable(map(walk, self._roots)), self._files_below
            self._bytes = weight(os.lstat(self._beside))
        try:
            for _, found, _ in self._walk:
                self._files += 1
                self._bytes += weight(found)
                if self._files > self._limits.files:
                    return over_files(self._files, self._limits)
                if self._over(self._bytes):
                    return over_disk(self._bytes - self._before, self._limits)
                if time.monotonic() - now > _LOOK_SECONDS_MAX:
                    return None
        except TooManyFiles as error:
            return Excess("files", str(error))
        self._walk = None
        self._next_pass = time.monotonic() + _PASS_SECONDS
        return self._hidden(namespace)

    def _hidden(self, namespace: Namespace | None) -> Excess | None:
        """Space of deleted files. Costs a look at every descriptor, so only if space is missing."""
        missing = self._free_at_start - _free_bytes(self._root)
        if namespace is None or missing < self._limits.disk_bytes // 2:
            return None
        total = self._bytes + namespace.deleted_bytes(self._device)
        return over_disk(total - self._before, self._limits) if self._over(total) else None

    def _over(self, total: int) -> bool:
        return total - self._before >= self._limits.disk_bytes


def _free_bytes(root: int) -> int:
    found = os.fstatvfs(root)
    return found.f_bavail * found.f_frsize


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on, which is field 3 of the manual."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _open_files(pid: int) -> int:
    """How many descriptors a process has. The kernel counts them since Linux 6.2; before, the
    program is left to the error it gets."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size
    except OSError:  # ended, or of a user whose processes we may not look at
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except PermissionError:
        fields = _stat(pid)
        return int(fields[21]) * _PAGE_BYTES if fields else 0
    return 0


def catches_term(pid: int) -> bool:
    """Whether a process has a handler for TERM."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"SigCgt:"):
                    return bool(int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return False
