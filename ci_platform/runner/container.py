"""The runner for commands that name an image: containers of podman or docker.

Workspaces, layers, outputs and limits are those of the sandbox; only how a process starts differs.
Which images may be named is the operator's decision, since an engine fetches them with a network
that commands do not have.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from obstore.store import ObjectStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner import seccomp
from ci_platform.runner.artifacts import Collector
from ci_platform.runner.cache_dirs import bound
from ci_platform.runner.command import Process
from ci_platform.runner.container_process import (
    HOME,
    LABEL,
    OUTPUTS,
    WORKSPACE,
    Container,
    ContainerProcess,
    Engine,
    give,
)
from ci_platform.runner.execution import SHELLS, Execution
from ci_platform.runner.layers import LayerStore
from ci_platform.runner.limits import Excess, RunnerLimits
from ci_platform.runner.machine import machine
from ci_platform.runner.manifest import Manifest, wait_for_tick
from ci_platform.runner.trees import TreeCache
from ci_platform.runner.watch import Disk
from ci_platform.runner.workspaces import CACHES, Workspace, Workspaces
from ci_platform.shell import CommandResult, CommandSpec, Trees

ENGINES = ("podman", "docker")
PULL_SECONDS_MAX = 1800
_PODMAN_PROFILE = Path("/usr/share/containers/seccomp.json")
_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")


def find_engine(scratch: Path) -> Engine | None:
    """Podman, else docker; None if neither is installed. `scratch`: for its filter."""
    path = next((found for name in ENGINES if (found := shutil.which(name))), None)
    if path is None:
        return None
    scratch.mkdir(parents=True, exist_ok=True)
    rootless = os.getuid() != 0
    profile = scratch / "seccomp.json"
    known = seccomp.narrowed(_PODMAN_PROFILE)
    if known is not None:
        profile.write_text(known)
    engine = Engine(
        path=Path(path),
        rootless=rootless,
        control_groups=not rootless or _UNIFIED.exists(),
        seccomp=profile if known is not None else None,
    )
    return replace(engine, one_id=_has_one_id(engine))


def _has_one_id(engine: Engine) -> bool:
    """Whether containers cannot have a user beside the one who starts them."""
    if not (engine.rootless and engine.is_podman):
        return False
    try:
        sizes = engine.call(
            "info", "--format", "{{range .Host.IDMappings.UIDMap}}{{.Size}} {{end}}"
        )
    except RunnerUnavailable:
        return False  # whatever it is, the first command says it
    return sizes.split() == ["1"]


class ContainerRunner:
    """Runs each command in a container of the image it names, without a network.

    `images` are the patterns an image must match: `docker.io/library/python:*`. As root, every
    command runs under a uid of its own from `first_uid` on; else containers are rootless.
    """

    def __init__(
        self,
        *,
        trees: Trees,
        objects: ObjectStore,
        work_dir: Path,
        engine: Engine,
        images: Sequence[str],
        limits: RunnerLimits | None = None,
        first_uid: int = 200_000,
    ) -> None:
        self._limits = limits or RunnerLimits()
        self._engine = engine
        self._images = images
        work_dir = work_dir.absolute()
        scratch = work_dir / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        layers = LayerStore(objects, scratch)
        jobs = work_dir / "jobs"
        self._label = hashlib.sha256(os.fsencode(jobs)).hexdigest()[:16]
        self._workspaces = Workspaces(
            jobs,
            TreeCache(trees, work_dir / "trees"),
            layers,
            first_uid=first_uid if os.getuid() == 0 else None,
            limits=self._limits,
        )
        self._execution = Execution(
            self._workspaces, layers, Collector(objects, scratch, self._limits), self._limits
        )
        self._swept = False
        self._jobs = jobs

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        refused = self._refusal(spec) or self._pulled(spec, output)
        return self._execution.run(
            spec, output=output, stop=stop, start=self._start, refused=refused
        )

    def fingerprint(self, spec: CommandSpec) -> str:
        image = self._engine.call("image", "inspect", "-f", "{{.Id}}", str(spec.image))
        runner = {"processor": machine()["processor"], "image": image}
        return self._execution.fingerprint(spec, runner)

    def obstacle(self) -> str | None:
        return self._execution.obstacle()

    def collision(self, layer: str, other: str) -> str | None:
        return self._execution.collision(layer, other)

    def close(self) -> None:
        """Remove the workspaces kept. Safe to call twice."""
        self._workspaces.close()

    def describe(self) -> str:
        return f"{', '.join(self._images)}, by {self._engine.path}"

    def sweep(self) -> None:
        """End the containers of workers that died: those whose workspace is not here any more."""
        wanted = f"label={LABEL}={self._label}"
        listed = self._engine.call("ps", "--all", "--filter", wanted, "--format", "{{.Names}}")
        for name in listed.split():
            if not (self._jobs / name.removeprefix("sluice-")).exists():
                self._engine.call("rm", "--force", name)

    def _refusal(self, spec: CommandSpec) -> Excess | None:
        image = str(spec.image)
        if not any(fnmatchcase(image, pattern) for pattern in self._images):
            return Excess(
                "image",
                f"The command asks for image {image}, which this server does not allow "
                f"(SLUICE_COMMAND_IMAGES: {', '.join(self._images)}).",
            )
        if image.startswith("-") or any(ord(letter) <= 32 for letter in image):
            return Excess("invalid", f"image {image!r} is not the name of an image.")
        if spec.network or spec.services:
            what = "network=" if spec.network else "a service"
            return Excess("network", f"Commands with an image= have no network, hence no {what}.")
        return None

    def _pulled(self, spec: CommandSpec, output: Callable[[str, bytes], None]) -> Excess | None:
        """Have the image on this machine; the excess if there is none of that name."""
        if not self._swept:
            self._swept = True
            self.sweep()
        try:
            self._engine.call("image", "inspect", "-f", "{{.Id}}", str(spec.image))
        except RunnerUnavailable:
            output("note", f"pulling {spec.image}\n".encode())
            try:
                self._engine.call("pull", "--quiet", str(spec.image), seconds=PULL_SECONDS_MAX)
            except RunnerUnavailable as error:
                return Excess("image", f"Image {spec.image} cannot be had: {error.detail}.")
        return None

    @contextmanager
    def _start(
        self, spec: CommandSpec, workspace: Workspace, before: Manifest
    ) -> Iterator[Process]:
        uid = os.getuid() if workspace.uid is None else workspace.uid
        directory = workspace.directory
        one = Container(
            name=f"sluice-{workspace.name}",
            label=self._label,
            image=str(spec.image),
            user=f"{uid}:{uid if workspace.uid is not None else os.getgid()}",
            directory=directory,
            workspace=workspace.files,
            outputs=workspace.outputs,
            caches={directory / CACHES / name: place for name, place in bound(spec, HOME)},
            cwd=spec.cwd,
            shell=SHELLS[spec.shell],
            timeout_seconds=spec.timeout_ms // 1000,
        )
        try:
            give(one, spec.script, _environment(spec), workspace.uid)
            wait_for_tick(before)
            disk = Disk(
                workspace.root,
                beside=workspace.outputs,
                caches=workspace.caches,
                before=before,
                caches_bytes=workspace.caches_bytes,
                limits=self._limits,
            )
            process = ContainerProcess(self._engine, one, disk, self._limits)
            try:
                yield process
            finally:
                process.close()
        finally:
            shutil.rmtree(directory / "given")
            for name in ("code", "pid", "oom"):
                (directory / name).unlink(missing_ok=True)


def _environment(spec: CommandSpec) -> Mapping[str, str]:
    """PATH is the image's, unless the step has one."""
    defaults = {"HOME": HOME, "USER": "ci", "LOGNAME": "ci", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    fixed = {"CI": "true", "CI_OUTPUT": OUTPUTS, "CI_WORKSPACE": WORKSPACE}
    return {**defaults, **spec.env, **fixed}
