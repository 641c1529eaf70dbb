"""The runner for commands that name an image: containers of podman or docker.

Workspaces, layers, outputs, network and limits are those of the sandbox, and services run in it;
only how a process starts differs. Which images may be named is the operator's decision, since an
engine fetches them with a network that commands do not have.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from obstore.store import ObjectStore

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner import seccomp
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
from ci_platform.runner.egress import proxy_variables
from ci_platform.runner.execution import SHELLS, copying, watched
from ci_platform.runner.grants import Grants
from ci_platform.runner.keeping import Keeping
from ci_platform.runner.launch import Launch
from ci_platform.runner.limits import Excess, RunnerLimits
from ci_platform.runner.machine import machine
from ci_platform.runner.manifest import Manifest
from ci_platform.runner.service import Place
from ci_platform.runner.services import ALONE, Beside, Services
from ci_platform.runner.workspaces import CACHES, Workspace
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
    """Runs each command in a container of the image it names, with no network unless it is granted.

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
        network: bool | Sequence[str] = False,
        private_networks: Sequence[str] = (),
        services: Services | None = None,
    ) -> None:
        """`network`, `private_networks`: see SandboxRunner. `services`: where those beside commands
        run; of that runner, and closed by it."""
        self._limits = limits or RunnerLimits()
        self._engine = engine
        self._images = images
        self._grants = Grants.parse(network, private_networks)
        self._services = services
        self._launch = Launch({}, mounts=False)
        self._keeping = Keeping(engine)
        work_dir = work_dir.absolute()
        self._workspaces, self._execution = copying(
            work_dir,
            trees=trees,
            objects=objects,
            first_uid=first_uid if os.getuid() == 0 else None,
            limits=self._limits,
        )
        self._swept = False
        self._jobs = work_dir / "jobs"
        self._label = hashlib.sha256(os.fsencode(self._jobs)).hexdigest()[:16]

    def run(
        self,
        spec: CommandSpec,
        *,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
    ) -> CommandResult:
        refused = self._refusal(spec) or self._pulled(spec, output)
        with self._beside(spec, output, stop, refused) as beside:
            return self._execution.run(
                spec,
                output=output,
                stop=beside.stop,
                start=partial(self._start, place=beside.place),
                refused=beside.refused,
            )

    def _beside(
        self,
        spec: CommandSpec,
        output: Callable[[str, bytes], None],
        stop: Callable[[], bool],
        refused: Excess | None,
    ) -> AbstractContextManager[Beside]:
        """Its services; none for a command that is refused."""
        if refused is not None or self._services is None:
            return nullcontext(Beside(stop, refused=refused))
        return self._services.beside(spec, output=output, stop=stop)

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
        self._launch.close()
        self._keeping.close()

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
        return self._unreachable(spec) or self._grants.refusal(spec)

    def _unreachable(self, spec: CommandSpec) -> Excess | None:
        """What of its network this engine does not let us give."""
        name = self._engine.path.name
        if spec.services and self._services is None:
            detail = "there is nothing here that runs the services beside it"
        elif spec.services and not self._engine.is_podman:
            detail = f"its container cannot join the network of services by {name}, only by podman"
        elif spec.services and self._engine.rootless:
            detail = (
                "only a server that runs as root may let a container join the network of services"
            )
        elif spec.network and self._engine.rootless and not self._engine.is_podman:
            detail = f"this server cannot open the network of containers that {name} runs for it"
        else:
            return None
        return Excess("network", f"The command with an image= cannot be run: {detail}.")

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
        self, spec: CommandSpec, workspace: Workspace, before: Manifest, place: Place = ALONE
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
            worker=self._keeping.label,
            network=_joined(place),
            hosts=place.hosts,
            held=bool(spec.network),
        )
        self._keeping.start()
        try:
            give(one, spec.script, _environment(spec, place.port), workspace.uid)
            disk = watched(workspace, before, self._limits)
            process = ContainerProcess(self._engine, one, disk, self._limits)
            try:
                if spec.network:
                    process.open_network(self._launch, self._grants.rules(spec), port=place.port)
                yield process
            finally:
                process.close()
        finally:
            shutil.rmtree(directory / "given")
            for name in ("code", "pid", "oom", "engine"):
                (directory / name).unlink(missing_ok=True)


def _joined(place: Place) -> str:
    """The network of a place, by a name that an engine can open."""
    return "none" if place.network is None else f"ns:/proc/{os.getpid()}/fd/{place.network.net}"


def _environment(spec: CommandSpec, port: int) -> Mapping[str, str]:
    """PATH is the image's, unless the step has one."""
    defaults = {"HOME": HOME, "USER": "ci", "LOGNAME": "ci", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    fixed = {"CI": "true", "CI_OUTPUT": OUTPUTS, "CI_WORKSPACE": WORKSPACE}
    way_out = proxy_variables(port) if spec.network else {}
    return {**defaults, **way_out, **spec.env, **fixed}
