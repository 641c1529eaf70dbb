"""The runner for code of strangers: every command in its own bubblewrap sandbox."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from obstore.store import ObjectStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.model import StepKind
from ci_platform.runner import bubblewrap, cgroups, overlays, seccomp
from ci_platform.runner.artifacts import Collector
from ci_platform.runner.cache_dirs import bound
from ci_platform.runner.cgroups import Cgroup
from ci_platform.runner.command import Process, see_through
from ci_platform.runner.egress import certificate_variables, proxy_variables
from ci_platform.runner.execution import SHELLS, Execution, watched
from ci_platform.runner.grants import Grants
from ci_platform.runner.launch import Launch, Network
from ci_platform.runner.launcher import IDLE, LOW
from ci_platform.runner.layers import LayerStore
from ci_platform.runner.limits import Excess, RunnerLimits
from ci_platform.runner.machine import machine
from ci_platform.runner.manifest import Manifest, scan
from ci_platform.runner.overlays import Overlays
from ci_platform.runner.probe import PROBE_SCRIPT, PROBE_TIMEOUT_MS, Probe, explain, judge
from ci_platform.runner.sandbox_process import SandboxProcess
from ci_platform.runner.service import Place, Ways
from ci_platform.runner.services import ALONE, NO_DESK, Services
from ci_platform.runner.terminal import Terminal
from ci_platform.runner.trees import TreeCache
from ci_platform.runner.workspaces import (
    CACHES,
    FILES,
    OUTPUTS,
    UIDS_MAX,
    Workspace,
    Workspaces,
)
from ci_platform.shell import CommandResult, CommandSpec, ServiceDesk, Trees


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
        network: bool | Sequence[str] = False,
        private_networks: Sequence[str] = (),
        first_uid: int = 200_000,
        overlay: bool = True,
        launcher: str | None = None,
        desk: ServiceDesk = NO_DESK,
    ) -> None:
        """`network`: whether commands may name hosts to reach, or the only ones they may name.
        `private_networks`: inner networks (10.1.0.0/16) that such a host may be in. `overlay`:
        whether a checkout may be an overlay; if not, or where it cannot be, it is a copy.
        `launcher`: system, wheel or python, instead of the first of these that is here."""
        self._limits = limits or RunnerLimits()
        self._first_uid = first_uid
        self._toolchains = [*(server_python() if extra_ro is None else extra_ro)]
        for path in self._toolchains:
            _check_lendable(path)
        self._grants = Grants.parse(network, private_networks)
        work_dir = work_dir.absolute()
        jobs, scratch = work_dir / "jobs", work_dir / "scratch"
        trees_directory = work_dir / "trees"
        for directory in (jobs, scratch, trees_directory):
            directory.mkdir(parents=True, exist_ok=True)
        layers = LayerStore(objects, scratch)
        self._binary = bubblewrap.find(launcher)
        named = {overlays.JOBS: jobs, overlays.TREES: trees_directory}
        if self._binary is not None:
            named |= bubblewrap.shared(self._binary, self._toolchains)
        self._cgroup = cgroups.find()
        weighed = self._cgroup is not None and cgroups.shares_processor(self._cgroup)
        if weighed and self._limits.priority == IDLE:  # by its weight, a group says the same
            self._limits = replace(self._limits, priority=LOW)
        self._launch = Launch(named)
        # Workers of one machine must be able to join each other's networks.
        self._joining = self._launch if os.getuid() == 0 else Launch(named, mounts=False)
        self._workspaces = Workspaces(
            jobs,
            TreeCache(trees, trees_directory),
            layers,
            first_uid=first_uid if os.getuid() == 0 else None,
            overlays=Overlays(self._launch) if overlay else None,
            copied=lambda spec: self._joining is not self._launch and _shares_network(spec),
            limits=self._limits,
        )
        self._execution = Execution(
            self._workspaces, layers, Collector(objects, scratch, self._limits), self._limits
        )
        self._filter = seccomp.program(platform.machine())
        self.services = Services(
            work_dir / "services", desk=desk, ways=self._ways, network=self._shared_network
        )

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        refused = self._refusal(spec)
        if refused is not None:
            return self._execution.run(
                spec, output=output, stop=stop, start=self._start, refused=refused
            )
        with self.services.beside(spec, output=output, stop=stop) as beside:
            return self._execution.run(
                spec,
                output=output,
                stop=beside.stop,
                start=partial(self._start, place=beside.place),
                refused=beside.refused,
            )

    def _ways(self, place: Place) -> Ways:
        """How services and their checks run in a network that they share with commands."""
        assert place.network is not None, "see _shared_network"
        connector = partial(self._joining.connector, place.network)
        start = partial(self._start, place=place)
        return Ways(self._execution, start, connector, self._refusal)

    def _shared_network(self) -> Network:
        return self._joining.network((self._first_uid, UIDS_MAX) if os.getuid() == 0 else None)

    def try_out(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        terminal: Terminal | None = None,
        timeout_ms: int,
        look: Callable[[int], None],
    ) -> str:
        """Run a command where nothing of it is kept, with its services beside it: `look` gets the
        workspace at its end. Returns how it ended, in words."""
        stop = Event().is_set
        with self.services.beside(spec, output=output, stop=stop) as beside:
            return self._execution.serve(
                spec,
                output=output,
                stop=beside.stop,
                start=partial(self._start, place=beside.place, terminal=terminal),
                refused=beside.refused or self._refusal(spec),
                timeout_ms=timeout_ms,
                look=look,
            )

    def fingerprint(self, spec: CommandSpec) -> str:
        toolchains = ":".join(str(path) for path in self._toolchains)
        return self._execution.fingerprint(spec, {**machine(), "toolchains": toolchains})

    def obstacle(self) -> str | None:
        return self._execution.obstacle()

    def collision(self, layer: str, other: str) -> str | None:
        return self._execution.collision(layer, other)

    def probe(self) -> Probe:
        """Start one sandbox and look around in it. Never raises for what does not work."""
        said: list[str] = []
        spec = CommandSpec("", "", "", "", (), PROBE_SCRIPT)
        try:
            workspace = self._workspaces.empty()
            try:
                with self._start(spec, workspace, scan(workspace.root, self._limits)) as process:
                    see_through(
                        process,
                        output=lambda stream, data: said.append(data.decode(errors="replace")),
                        stop=lambda: False,
                        limits=self._limits,
                        timeout_ms=PROBE_TIMEOUT_MS,
                    )
            finally:
                self._workspaces.drop(workspace)
        except (RunnerUnavailable, OSError) as error:
            return Probe(works=False, detail=str(error), facts=self._facts())
        return judge("".join(said), self._facts())

    def _facts(self) -> Mapping[str, str]:
        binary = self._binary
        return {
            "launcher": f"{binary.path} ({binary.origin})" if binary else "none",
            "identity": "a uid for each command" if os.getuid() == 0 else "the server's own uid",
            "limits": "resource limits and a watch"
            + (f", and control groups in {self._cgroup}" if self._cgroup else ""),
            "workspaces": self._workspaces.describe(),
            "network": "through the proxy" if self._grants.any else "none",
            "toolchains": ", ".join(str(path) for path in self._toolchains) or "the system's",
        }

    def close(self) -> None:
        """End the helper process and remove the workspaces kept. Safe to call twice."""
        self.services.close()
        self._workspaces.close()
        self._launch.close()
        self._joining.close()

    def _refusal(self, spec: CommandSpec) -> Excess | None:
        if spec.image is not None:
            return Excess(
                "image",
                f"The command asks for image {spec.image}, but this worker runs no containers: "
                "they need podman or docker on it, and the images allowed (SLUICE_COMMAND_IMAGES).",
            )
        return self._grants.refusal(spec)

    @contextmanager
    def _start(
        self,
        spec: CommandSpec,
        workspace: Workspace,
        before: Manifest,
        place: Place = ALONE,
        terminal: Terminal | None = None,
    ) -> Iterator[Process]:
        process = self._held(spec, workspace, place, terminal)
        try:
            if self._cgroup is not None:
                process.enter(Cgroup(self._cgroup, workspace.name, self._limits))
            if spec.network:
                process.open_network(self._grants.rules(spec), port=place.port)
            process.go(watched(workspace, before, self._limits))
            with nullcontext() if terminal is None else terminal.attached():
                yield process
        except RunnerUnavailable as error:
            raise RunnerUnavailable(explain(error.detail)) from error
        finally:
            process.close()

    def _held(
        self, spec: CommandSpec, workspace: Workspace, place: Place, terminal: Terminal | None
    ) -> SandboxProcess:
        """The command, ready but not yet let go."""
        binary, seccomp_filter = self._binary, self._filter
        if binary is None:
            raise RunnerUnavailable(explain("bubblewrap is not installed"))
        if seccomp_filter is None:
            raise RunnerUnavailable(explain(f"no filter for {platform.machine()}"))
        given = bubblewrap.contents(spec.script, place.hosts)
        launch = self._launch if place.network is None else self._joining
        directory = launch.path("jobs") / workspace.name
        sandbox = bubblewrap.Sandbox(
            workspace=workspace.overlay.place if workspace.overlay else directory / FILES,
            outputs=directory / OUTPUTS,
            cwd=spec.cwd,
            env=self._environment(spec, place.port),
            toolchains={
                launch.path(f"read/{index}"): path for index, path in enumerate(self._toolchains)
            },
            limits=self._limits,
            caches={directory / CACHES / name: path for name, path in bound(spec, bubblewrap.HOME)},
            alone=place.network is None,
        )
        args = bubblewrap.arguments(sandbox, bubblewrap.file_descriptors(list(given)))
        packed = b"".join(os.fsencode(arg) + b"\0" for arg in args)
        command = [*SHELLS[spec.shell], bubblewrap.SCRIPT]
        program = [bubblewrap.program()] if binary.origin == "python" else []
        try:
            return SandboxProcess(
                [
                    *bubblewrap.command_line(binary, launch, len(given)),
                    *("--args", str(bubblewrap.ARGUMENTS), "--", *command),
                ],
                [packed, seccomp_filter, *given.values(), *program],
                launch=launch,
                uid=workspace.uid,
                limits=self._limits,
                network=place.network,
                terminal=None if terminal is None else terminal.lend(workspace.uid),
            )
        except RunnerUnavailable as error:
            raise RunnerUnavailable(explain(error.detail)) from error

    def _environment(self, spec: CommandSpec, port: int) -> Mapping[str, str]:
        path = ":".join([*(f"{path}/bin" for path in self._toolchains), bubblewrap.SYSTEM_PATH])
        defaults = {
            "PATH": path,
            "HOME": bubblewrap.HOME,
            "USER": "ci",
            "LOGNAME": "ci",
            "TMPDIR": "/tmp",
            "LANG": "C.UTF-8",
        }
        fixed = {
            "CI": "true",
            "CI_OUTPUT": bubblewrap.OUTPUTS,
            "CI_WORKSPACE": bubblewrap.WORKSPACE,
        }
        way_out = {**proxy_variables(port), **certificate_variables()} if spec.network else {}
        return {**defaults, **way_out, **spec.env, **fixed}


def _shares_network(spec: CommandSpec) -> bool:
    """Whether a command has services, or is one."""
    return bool(spec.services) or spec.step.startswith(f"{StepKind.SERVICE}:")


def _check_lendable(path: Path) -> None:
    """Only directories that do not hide a part of the sandbox itself."""
    ours = ("/proc", "/dev", "/sys", "/run/ci", "/usr", "/etc", "/tmp", "/home/ci", "/workspace")
    hides = any(Path(one).is_relative_to(path) for one in ours)
    inside = any(path.is_relative_to(one) for one in ("/proc", "/sys", "/dev", "/workspace"))
    if not path.is_absolute() or hides or inside or ".." in path.parts:
        raise RunnerUnavailable(f"extra_ro: {path} cannot be lent to commands")


def server_python() -> Sequence[Path]:
    """The directory of the Python that runs the server, if commands do not see it anyway."""
    prefix = Path(sys.base_prefix)
    return [] if prefix.is_relative_to("/usr") else [prefix]
