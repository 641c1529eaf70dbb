"""The runner for code of strangers: every command in its own bubblewrap sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from obstore.store import ObjectStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.ports import CommandResult, CommandSpec, Trees
from ci_platform.runner.limits import RunnerLimits


class SandboxRunner:
    """Runs each command in bubblewrap, with no network unless it is granted.

    `objects` keeps the layers (`layers/<digest>`) and must be shared by all workers; `work_dir`
    holds workspaces and the cache of checked-out trees, is this machine's own, may be shared by
    its workers and may be deleted while none runs. `extra_ro` are directories commands may read
    at the same path, each with its `bin` on PATH; None means the server's own Python, unless that
    is below /usr anyway. As root, every command runs under a uid of its own from `first_uid` on.
    """

    def __init__(
        self,
        *,
        trees: Trees,
        objects: ObjectStore,
        work_dir: Path,
        limits: RunnerLimits | None = None,
        extra_ro: Sequence[Path] | None = None,
        network: bool = False,
        first_uid: int = 200_000,
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
        """End what is left of the runner's helper process. Safe to call twice."""
