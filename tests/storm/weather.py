"""Kills processes of a server with SIGKILL: workers, sandboxes and what commands started.

When, and which, is drawn from the seed; who that is at that moment is not.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter

import psutil

KINDS = ["worker", "sandbox", "sandbox", "command"]
FIRST_SECONDS = 1.0


class Weather(threading.Thread):
    """Storms on the family of a process until it is told to `calm`."""

    def __init__(self, pid: int, lot: random.Random, *, gap_seconds: float) -> None:
        super().__init__(name="weather", daemon=True)
        self.killed: Counter[str] = Counter()
        self._root = psutil.Process(pid)
        self._lot = lot
        self._gap_seconds = gap_seconds
        self._calm = threading.Event()

    def run(self) -> None:
        while not self._calm.wait(self._lot.expovariate(1 / self._gap_seconds)):
            kind, which = self._lot.choice(KINDS), self._lot.random()
            found = sorted(self._victims(kind), key=lambda one: one.pid)
            if found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found[int(which * len(found))].kill()
                    self.killed[kind] += 1

    def calm(self) -> None:
        self._calm.set()
        self.join()

    def _victims(self, kind: str) -> list[psutil.Process]:
        found = []
        for child in self._root.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if not child.name().startswith("sluice-worker"):
                    continue
                if kind == "worker":
                    found.append(child)
                    continue
                below = child.children(recursive=True)
                found += [one for one in below if kind == _kind(one)]
        return found


def _kind(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        line = " ".join(process.cmdline())
        return "sandbox" if "ci_platform.sandbox" in line else "command"
    return "gone"
