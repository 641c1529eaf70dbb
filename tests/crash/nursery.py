"""Keeps a number of workers alive, at once and for ever, however often they are killed.

    python -m tests.crash.nursery COUNT DATA        settings come from the environment

It ends with SIGTERM. It has imported everything and forks the workers, so that another one works
after some 50 ms. They are named worker-1, worker-2, ... and no name is used twice.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from ci_platform.config import Config
from ci_platform.server.processes import run_worker


class Nursery:
    def __init__(self, count: int, data: Path) -> None:
        self._count = count
        self._data = data
        self._alive: set[int] = set()
        self._born = 0
        self._stopping = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        while not self._stopping or self._alive:
            while not self._stopping and len(self._alive) < self._count:
                self._bear()
            pid, _ = os.wait()
            self._alive.discard(pid)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for pid in self._alive:
            os.kill(pid, signal.SIGTERM)

    def _bear(self) -> None:
        self._born += 1
        pid = os.fork()
        if pid == 0:
            try:
                run_worker(Config(data=self._data), name=f"worker-{self._born}")
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        self._alive.add(pid)


if __name__ == "__main__":
    Nursery(int(sys.argv[1]), Path(sys.argv[2])).run()
