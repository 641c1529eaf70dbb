"""The runner for one's own code on one's own machine: no isolation whatever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from obstore.store import ObjectStore

from ci_platform.runner.command import Process
from ci_platform.runner.execution import SHELLS, copying, watched
from ci_platform.runner.launch import Exit
from ci_platform.runner.limits import Excess, RunnerLimits
from ci_platform.runner.machine import machine
from ci_platform.runner.manifest import Manifest
from ci_platform.runner.service import Place, Ways
from ci_platform.runner.services import NO_DESK, Services
from ci_platform.runner.watch import Disk
from ci_platform.runner.workspaces import Workspace
from ci_platform.shell import CommandResult, CommandSpec, ServiceDesk, Trees


class UnsandboxedRunner:
    """Runs commands as plain child processes, with everything the caller may do.

    For `sluice run` on the author's machine only. Workspaces, layers, outputs, timeouts and
    cancelling are those of SandboxRunner; there is no isolation, no limit on memory or pids, and a
    daemon that a command leaves behind stays. `env` is what commands inherit: the caller's own.
    """

    def __init__(
        self,
        *,
        trees: Trees,
        objects: ObjectStore,
        work_dir: Path,
        limits: RunnerLimits | None = None,
        env: Mapping[str, str] | None = None,
        desk: ServiceDesk = NO_DESK,
    ) -> None:
        self._limits = limits or RunnerLimits()
        self._env = dict(env or {"PATH": os.defpath})
        work_dir = work_dir.absolute()
        self._workspaces, self._execution = copying(
            work_dir, trees=trees, objects=objects, first_uid=None, limits=self._limits
        )
        self._services = Services(
            work_dir / "services", desk=desk, ways=self._ways, network=lambda: None
        )

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        with self._services.beside(spec, output=output, stop=stop) as beside:
            return self._execution.run(
                spec, output=output, stop=beside.stop, start=self._start, refused=beside.refused
            )

    def _ways(self, place: Place) -> Ways:
        """Services listen on this machine itself, where everything may reach them."""

        def connector() -> socket.socket:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

        return Ways(self._execution, self._start, connector, lambda spec: None)

    def fingerprint(self, spec: CommandSpec) -> str:
        path = self._env.get("PATH", "")
        return self._execution.fingerprint(spec, {**machine(), "path": path})

    def obstacle(self) -> str | None:
        return self._execution.obstacle()

    def collision(self, layer: str, other: str) -> str | None:
        return self._execution.collision(layer, other)

    def close(self) -> None:
        """End services, and remove the workspaces kept. Safe to call twice."""
        self._services.close()
        self._workspaces.close()

    @contextmanager
    def _start(
        self, spec: CommandSpec, workspace: Workspace, before: Manifest
    ) -> Iterator[Process]:
        script = workspace.directory / "script"
        script.write_text(spec.script)
        fixed = {
            "CI": "true",
            "CI_OUTPUT": str(workspace.outputs),
            "CI_WORKSPACE": str(workspace.files),
        }
        disk = watched(workspace, before, self._limits)
        with subprocess.Popen(
            [*SHELLS[spec.shell], str(script)],
            cwd=workspace.files / spec.cwd,
            env={**self._env, **spec.env, **fixed},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            process = _PlainProcess(child, disk)
            try:
                yield process
            finally:
                process.close()


class _PlainProcess:
    """A child process with a process group of its own."""

    def __init__(self, child: subprocess.Popen[bytes], disk: Disk) -> None:
        assert child.stdout is not None and child.stderr is not None, "both are pipes"
        self.stdout = child.stdout.fileno()
        self.stderr = child.stderr.fileno()
        self._child = child
        self._disk = disk
        self._ended = os.pidfd_open(child.pid)
        self._asked = False

    def fileno(self) -> int:
        return self._ended

    def excess(self) -> Excess | None:
        return self._disk.excess(None)

    def notes(self) -> Iterable[str]:
        return ()

    def terminate(self) -> None:
        if not self._asked:
            self._asked = True
            self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)

    def wait(self) -> Exit:
        return Exit(self._child.wait(), rss_bytes=0, cpu_seconds=0.0)

    def close(self) -> None:
        if self._child.returncode is None:
            self.kill()
        os.close(self._ended)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)
