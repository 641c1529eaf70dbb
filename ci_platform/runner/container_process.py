"""One command in a container of podman or docker: its arguments, its limits, and its end.

The container has no capability, a read-only root, one user, and no network but a loopback, on which
the way out listens; what it may use beside that is the same as in the sandbox. Its first process is
a shell that only waits: for the way out, and for the command. Used by `container.py`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.egress import Egress, Rules
from ci_platform.runner.launch import Exit, Launch
from ci_platform.runner.limits import MIB, Excess, RunnerLimits, over_memory
from ci_platform.runner.sandbox_process import terminate_tree
from ci_platform.runner.watch import Disk, Namespace

WORKSPACE, HOME, GIVEN, OUTPUTS = "/workspace", "/home/ci", "/run/ci", "/run/ci/output"
ENGINE_SECONDS_MAX = 60
LABEL, KEPT = "sluice.jobs", "sluice.worker"  # of all in a directory, and of one worker's
_LOOK_SECONDS = 0.01  # between two looks at whether a container has started
_SHM_BYTES = 64 * MIB
_GRACE_SECONDS = 60  # after its timeout, a container that nobody watches any more is ended
_CODE = "code"  # file of the exit code: an engine's own failures have exit codes too
_GO = "go"  # a pipe, of which the first process reads a line before it lets the command go
_WAIT = f"read -r go < {GIVEN}/{_GO}; "
_WRAPPER = (  # its own words, "Terminated", are not the command's, whose output are 3 and 4
    f". {GIVEN}/env; exec 2>/dev/null; {{shell}} {GIVEN}/script </dev/null >&3 2>&4 3>&- 4>&-; "
    f"code=$?; echo $code > {GIVEN}/{_CODE}; exit $code"
)
_SAID_CHARS = 1000
_SAID = "engine"  # file of what an engine says that hands our pipes on
# Through podman's own relay, what a command prints to both its streams loses its order.
_HAND_ON = ("/bin/sh", "-c", f'exec "$@" 3>&1 4>&2 >/dev/null 2>{_SAID}', "sh")
_RELAYED = "exec 3>&1 4>&2; "
_OUT_OF_MEMORY = "oom"
_ENGINE_FAILED = (125, 126, 127)


@dataclass(frozen=True, slots=True)
class Container:
    """What differs from one command to the next."""

    name: str
    label: str  # value of LABEL
    image: str
    user: str  # uid:gid
    directory: Path  # of the job
    workspace: Path
    outputs: Path
    caches: Mapping[Path, str]  # on the host -> in the container
    cwd: str
    shell: Sequence[str]
    timeout_seconds: int
    worker: str = ""  # value of KEPT
    network: str = "none"  # as the engine says it
    hosts: Sequence[str] = ()  # names for 127.0.0.1
    held: bool = False  # until its network is open


@dataclass(frozen=True, slots=True)
class Engine:
    """Podman or docker, and what this machine lets it do."""

    path: Path
    rootless: bool
    control_groups: bool  # whether it can limit memory and processes
    seccomp: Path | None  # a profile to use instead of its own
    runtime: str | None = None  # instead of its default one
    one_id: bool = False  # its user has no others (/etc/subuid), so all in a container is 0: itself

    @property
    def is_podman(self) -> bool:
        return self.path.name.startswith("podman")

    def call(self, *arguments: str, seconds: float = ENGINE_SECONDS_MAX) -> str:
        """Run one of its commands; what it printed. Raises RunnerUnavailable."""
        try:
            done = subprocess.run(
                [self.path, *arguments],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunnerUnavailable(f"{self.path.name}: {error}") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["it gave no reason"]
            raise RunnerUnavailable(f"{self.path.name} {arguments[0]}: {lines[-1]}")
        return done.stdout.strip()


def arguments(engine: Engine, one: Container, limits: RunnerLimits) -> list[str]:
    """The whole command line, without anything of the author's but the image."""
    tmp = f"rw,nosuid,nodev,mode=1777,size={limits.tmp_bytes}"
    runtime = ["--runtime", engine.runtime] if engine.runtime else []
    args = [
        *(str(engine.path), *runtime, "run", "--rm", "--name", one.name, "--pull", "never"),
        *("--label", f"{LABEL}={one.label}", "--label", f"{KEPT}={one.worker}"),
        *("--log-driver", "none", "--hostname", "ci"),
        *("--network", one.network, "--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *("--read-only", "--tmpfs", f"/tmp:{tmp}", "--tmpfs", f"{HOME}:{tmp}"),
        *("--shm-size", str(_SHM_BYTES), "--entrypoint", "/bin/sh"),
        *("--user", "0:0" if engine.one_id else one.user),
        *("--ulimit", f"nofile={limits.open_files}:{limits.open_files}", "--ulimit", "core=0:0"),
        *("--ulimit", f"nproc={limits.pids}:{limits.pids}"),
        *("--ulimit", f"fsize={limits.disk_bytes}:{limits.disk_bytes}"),
        *("--workdir", os.path.normpath(os.path.join(WORKSPACE, one.cwd))),
    ]
    if engine.control_groups:
        memory = str(limits.memory_bytes)
        args += ["--memory", memory, "--memory-swap", memory, "--pids-limit", str(limits.pids + 1)]
    if engine.seccomp is not None:
        args += ["--security-opt", f"seccomp={engine.seccomp}"]
    if engine.is_podman:
        args += [
            "--preserve-fds",
            "2",
            "--read-only-tmpfs=false",
            "--pidfile",
            str(one.directory / "pid"),
        ]
        args += ["--timeout", str(one.timeout_seconds + _GRACE_SECONDS)]
        args += ["--userns", "keep-id"] if engine.rootless and not engine.one_id else []
    for name in one.hosts:
        args += ["--add-host", f"{name}:127.0.0.1"]
    binds = [(one.workspace, WORKSPACE, ""), (one.directory / "given", GIVEN, ",readonly")]
    binds += [(one.outputs, OUTPUTS, ""), (one.directory / _CODE, f"{GIVEN}/{_CODE}", "")]
    binds += [(source, target, "") for source, target in one.caches.items()]
    for source, target, how in binds:
        args += ["--mount", f"type=bind,source={source},target={target}{how}"]
    before = ("" if engine.is_podman else _RELAYED) + (_WAIT if one.held else "")
    return [*args, one.image, "-c", before + _WRAPPER.format(shell=shlex.join(one.shell))]


def give(one: Container, script: str, env: Mapping[str, str], uid: int | None) -> None:
    """Write what the container is given. Variables go by file: a command line can be seen by all,
    and an engine has variables of its own."""
    given = one.directory / "given"
    given.mkdir(mode=0o755)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in env.items()]
    for path, text in (
        (given / "env", "".join(lines)),
        (given / "script", script),
        (given / "output", ""),  # only to be covered, as the next one
        (given / _CODE, ""),
        (one.directory / _CODE, ""),
    ):
        path.write_text(text, errors="surrogateescape")
        path.chmod(0o600)
        if uid is not None:
            os.chown(path, uid, uid)
    if one.held:
        os.mkfifo(given / _GO, 0o600)
        if uid is not None:
            os.chown(given / _GO, uid, uid)


class ContainerProcess:
    """A container that is starting or running."""

    def __init__(self, engine: Engine, one: Container, disk: Disk, limits: RunnerLimits) -> None:
        self._engine, self._one, self._disk, self._limits = engine, one, disk, limits
        hand_on = _HAND_ON if engine.is_podman else ()
        self._client = subprocess.Popen(
            [*hand_on, *arguments(engine, one, limits)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=one.directory,  # where podman notes that memory ran out
            start_new_session=True,
        )
        assert self._client.stdout is not None and self._client.stderr is not None, "pipes"
        self.stdout, self.stderr = self._client.stdout.fileno(), self._client.stderr.fileno()
        self._ended = os.pidfd_open(self._client.pid)
        self._namespace: Namespace | None = None
        self._asked: set[int] = set()
        self._killed = False
        self._egress: Egress | None = None
        self._gate = -1

    def open_network(self, launch: Launch, rules: Rules, *, port: int) -> None:
        """Give a container that is held a way out, and let it go."""
        deadline = time.monotonic() + ENGINE_SECONDS_MAX
        while (namespace := self._found()) is None:
            if self._client.poll() is not None:
                return  # it never started, which `wait` tells
            if time.monotonic() > deadline:
                raise RunnerUnavailable(f"{self._engine.path.name} does not start the container")
            time.sleep(_LOOK_SECONDS)
        self._egress = Egress(launch.listen(namespace.init, port), rules, self._limits)
        self._gate = os.open(self._one.directory / "given" / _GO, os.O_RDWR | os.O_CLOEXEC)
        os.write(self._gate, b"go\n")  # and stays open until it has been read

    def fileno(self) -> int:
        return self._ended

    def excess(self) -> Excess | None:
        if (self._one.directory / _OUT_OF_MEMORY).exists():
            self._killed = True  # by the kernel
            return over_memory(self._limits.memory_bytes, self._limits)
        namespace = self._found()
        try:
            found = namespace.excess(self._limits) if namespace else None
        except FileNotFoundError:  # ended meanwhile
            return None
        return found or self._disk.excess(namespace)

    def notes(self) -> Iterable[str]:
        return () if self._egress is None else self._egress.verdicts()

    def terminate(self) -> None:
        namespace = self._found()
        if namespace is not None:
            terminate_tree(namespace, self._asked)

    def kill(self) -> None:
        if self._client.poll() is not None:
            return
        self._killed = True
        namespace = self._found()
        if namespace is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(namespace.init, signal.SIGKILL)
                return
        with suppress(RunnerUnavailable):  # not there yet, or already gone
            self._engine.call("rm", "--force", self._one.name)
        self._client.kill()

    def wait(self) -> Exit:
        """Wait for the end. Raises RunnerUnavailable if the engine failed, not the command."""
        code = self._client.wait()
        told = (self._one.directory / _CODE).read_bytes()
        if code in _ENGINE_FAILED and not told and not self._killed:
            reason = f"{self._engine.path.name} could not run the container"
            if self._engine.is_podman:
                said = (self._one.directory / _SAID).read_text(errors="replace").strip()
                reason += f": {said[-_SAID_CHARS:]}"
            raise RunnerUnavailable(reason)
        return Exit(code, rss_bytes=0, cpu_seconds=0.0)

    def close(self) -> None:
        self.kill()
        self._client.wait()
        if self._egress is not None:
            self._egress.close()
        if self._gate != -1:
            os.close(self._gate)
        for stream in (self._client.stdout, self._client.stderr):
            if stream is not None:
                stream.close()
        os.close(self._ended)

    def _found(self) -> Namespace | None:
        """The container's processes, once it runs and where we may see them."""
        if self._namespace is None and self._client.poll() is None:
            pid = self._pid()
            with suppress(OSError):
                self._namespace = Namespace(pid) if pid else None
        return self._namespace

    def _pid(self) -> int:
        if not self._engine.is_podman:
            with suppress(RunnerUnavailable, ValueError):
                return int(self._engine.call("inspect", "-f", "{{.State.Pid}}", self._one.name))
            return 0
        try:
            return int((self._one.directory / "pid").read_text() or 0)
        except FileNotFoundError:
            return 0
