"""One runner of two: commands that name an image run in containers, all others in the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ci_platform.runner.container import ContainerRunner
from ci_platform.runner.probe import Probe
from ci_platform.runner.sandboxed import SandboxRunner
from ci_platform.shell import CommandResult, CommandSpec


class ByImage:
    """Hands each command to the runner it is for."""

    def __init__(self, sandbox: SandboxRunner, containers: ContainerRunner) -> None:
        self._sandbox = sandbox
        self._containers = containers

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        return self._for(spec).run(spec, output=output, stop=stop)

    def fingerprint(self, spec: CommandSpec) -> str:
        return self._for(spec).fingerprint(spec)

    def obstacle(self) -> str | None:
        return self._sandbox.obstacle()

    def collision(self, layer: str, other: str) -> str | None:
        return self._sandbox.collision(layer, other)

    def probe(self) -> Probe:
        """What the sandbox says, and by what containers run."""
        found = self._sandbox.probe()
        return replace(found, facts={**found.facts, "images": self._containers.describe()})

    def close(self) -> None:
        """Close both. Safe to call twice."""
        self._sandbox.close()
        self._containers.close()

    def _for(self, spec: CommandSpec) -> SandboxRunner | ContainerRunner:
        return self._sandbox if spec.image is None else self._containers
