"""A worker's side of its keeper (`keeper.py`), which ends containers that outlive the worker."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress

from ci_platform.runner import keeper
from ci_platform.runner.container_process import KEPT, Engine

_END_SECONDS = 5.0


class Keeping:
    """Has a keeper beside this process from the first container on. Safe to use from threads."""

    def __init__(self, engine: Engine) -> None:
        self.label = os.urandom(8).hex()  # of the containers it is for, as value of KEPT
        self._engine = engine
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ours = -1

    def start(self) -> None:
        """Have a keeper, from now on."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._drop()
                self._spawn()

    def close(self) -> None:
        """Let it go: no container is left. Safe to call twice."""
        with self._lock:
            if self._process is not None:
                with suppress(BrokenPipeError):
                    os.write(self._ours, b"x")
                self._drop()

    def _spawn(self) -> None:
        theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        label = f"{KEPT}={self.label}"
        program = [sys.executable, "-I", "-S", keeper.__file__, str(theirs)]
        try:
            self._process = subprocess.Popen(
                [*program, str(self._engine.path), label],
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(theirs)

    def _drop(self) -> None:
        if self._process is not None:
            os.close(self._ours)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            self._process = None
