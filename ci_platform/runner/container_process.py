"""One command in a container of podman or docker: its arguments, its limits, and its end.

The container has no network, no capability, a read-only root and one user; what it may use beside
that is the same as in the sandbox. Its first process is a shell that only waits for the command.
Used by `container.py`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.launch import Exit
from ci_platform.runner.limits import MIB, Excess, RunnerLimits, over_memory
from ci_platform.runner.sandbox_process import terminate_tree
from ci_platform.runner.watch import Disk, Namespace

WORKSPACE, HOME, GIVEN, OUTPUTS = "/workspace", "/home/ci", "/run/ci", "/run/ci/output"
ENGINE_SECONDS_MAX = 60
LABEL = "sluice.jobs"
_SHM_BYTES = 64 * MIB
_GRACE_SECONDS = 60  # after its timeout, a container that nobody watches any more is ended
_CODE = "code"  # file of the exit code: an engine's own failures have exit codes too
_WRAPPER = (  # its own words, "Terminated", are not the command's
    f". {GIVEN}/env; exec 3>&2 2>/dev/null; {{shell}} {GIVEN}/script </dev/null 2>&3 3>&-; "
    f"code=$?; echo $code > {GIVEN}/{_CODE}; exit $code"
)
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
        *("--label", f"{LABEL}={one.label}", "--log-driver", "none", "--hostname", "ci"),
        *("--network", "none", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
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
        args += ["--read-only-tmpfs=false", "--pidfile", str(one.directory / "pid")]
        args += ["--timeout", str(one.timeout_seconds + _GRACE_SECONDS)]
        args += ["--userns", "keep-id"] if engine.rootless and not engine.one_id else []
    binds = [(one.workspace, WORKSPACE, ""), (one.directory / "given", GIVEN, ",readonly")]
    binds += [(one.outputs, OUTPUTS, ""), (one.directory / _CODE, f"{GIVEN}/{_CODE}", "")]
    binds += [(source, target, "") for source, target in one.caches.items()]
    for source, target, how in binds:
        args += ["--mount", f"type=bind,source={source},target={target}{how}"]
    return [*args, one.image, "-c", _WRAPPER.format(shell=shlex.join(one.shell))]


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


class ContainerProcess:
    """A container that is starting or running."""

    def __init__(self, engine: Engine, one: Container, disk: Disk, limits: RunnerLimits) -> None:
        self._engine, self._one, self._disk, self._limits = engine, one, disk, limits
        self._client = subprocess.Popen(
            arguments(engine, one, limits),
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
        return ()

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
            raise RunnerUnavailable(f"{self._engine.path.name} could not run the container")
        return Exit(code, rss_bytes=0, cpu_seconds=0.0)

    def close(self) -> None:
        self.kill()
        self._client.wait()
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
