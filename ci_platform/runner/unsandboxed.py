"""The runner for one's own code on one's own machine: no isolation whatever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from obstore.store import ObjectStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.ports import CommandResult, CommandSpec, Trees
from ci_platform.runner.limits import RunnerLimits


class UnsandboxedRunner:
    """Runs commands as plain child processes, with everything the caller may do.

    For `sluice run` on the author's machine only. Workspaces, layers, outputs, timeouts and
    cancelling are those of SandboxRunner; there is no isolation, and no limit on memory or pids.
    """

    def __init__(
        self,
        *,
        trees: Trees,
        objects: ObjectStore,
        work_dir: Path,
        limits: RunnerLimits | None = None,
    ) -> None:
        self._trees = trees

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        raise RunnerUnavailable

    def close(self) -> None:
        """Nothing is held; here so that both runners are closed alike."""
