"""Building the sandbox's guest where a person waits for it: a bar, or lines where there is none.

Called by `sluice serve`, `run` and `demo` before anything needs the guest; when it is in the cache
already, nothing is shown. The build itself is sandbox/build.py's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ci_platform.sandbox.build import ensure_guest


class Bar:
    """Shows progress from the first report on. On a pipe: one line for each stage."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told: set[str] = set()
        self._stack = contextlib.ExitStack()

    def report(self, fraction: float, text: str) -> None:
        if not self._out.is_terminal:
            if text not in self._told:
                self._told.add(text)
                self._out.print(f"{text} (once, about 25 seconds)" if not fraction else text)
            return
        if self._progress is None:
            self._progress = self._stack.enter_context(
                Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TimeElapsedColumn(),
                    console=self._out,
                )
            )
            self._task = self._progress.add_task(text, total=1.0)
        assert self._task is not None
        self._progress.update(self._task, completed=fraction, description=text)

    def close(self) -> None:
        self._stack.close()


def build_guest(cache: Path, out: Console) -> None:
    """Make sure the guest is there. Raises SandboxUnavailable if it cannot be built."""
    with contextlib.closing(Bar(out)) as bar:
        ensure_guest(cache, bar.report)
