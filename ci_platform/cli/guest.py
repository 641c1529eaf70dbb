"""Building the sandbox's guest where a person waits for it: a bar, or lines where there is none.

Called by `sluice serve`, `run` and `demo` before anything needs the guest; when it is in the cache
already, nothing is shown, nor loaded that could. The build itself is sandbox/build.py's.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ci_platform.cli.door import lazy
from ci_platform.sandbox.build import ensure_guest, is_built

if TYPE_CHECKING:
    from rich import progress

    from ci_platform.cli import terminal
else:
    progress, terminal = map(lazy, ("rich.progress", "ci_platform.cli.terminal"))


class Bar:
    """Shows progress on standard error, from the first report on. On a pipe: one line for each
    stage."""

    def __init__(self) -> None:
        self._out = terminal.console(stderr=True)
        self._progress: progress.Progress | None = None
        self._task: progress.TaskID | None = None
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
                progress.Progress(
                    progress.TextColumn("{task.description}"),
                    progress.BarColumn(),
                    progress.TimeElapsedColumn(),
                    console=self._out,
                )
            )
            self._task = self._progress.add_task(text, total=1.0)
        assert self._task is not None
        self._progress.update(self._task, completed=fraction, description=text)

    def close(self) -> None:
        self._stack.close()


def build_guest(cache: Path) -> None:
    """Make sure the guest is there. Raises SandboxUnavailable if it cannot be built.

    Whoever starts it checks that it is whole: reading all of it has no place in a server's start.
    """
    if is_built(cache):
        return
    with contextlib.closing(Bar()) as bar:
        ensure_guest(cache, bar.report)
