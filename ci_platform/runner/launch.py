"""Starting processes through the launcher process: its client, for use by many threads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner import launcher

_AREAS = ("/mnt", "/media", "/srv", "/tmp")  # any one that exists; covered for sandboxes only
_ANSWER_SECONDS = 30.0
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Exit:
    code: int  # negative: the signal that ended it
    rss_bytes: int  # of its largest process
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """Descriptors of the namespaces that sandboxes in one network join. It lives as long as they
    are open anywhere."""

    user: int
    net: int

    def close(self) -> None:
        os.close(self.user)
        os.close(self.net)


class Launched:
    """A process started by the launcher. `fileno` becomes readable when it has ended."""

    def __init__(self, pid: int, pidfd: int, answers: socket.socket) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._answers = answers
        self._exit: Exit | None = None

    def fileno(self) -> int:
        return self._answers.fileno()

    def kill(self) -> None:
        """Send KILL. Safe to call when it has ended."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self) -> Exit:
        """Wait for the end. Raises RunnerUnavailable if it did not start or the launcher died."""
        while self._exit is None:
            self._answers.settimeout(None)
            message = _receive(self._answers)[0]
            self._exit = Exit(
                int(str(message["exit"])),
                int(str(message["rss_bytes"])),
                float(str(message["cpu_seconds"])),
            )
        return self._exit

    def close(self) -> None:
        self._answers.close()
        os.close(self._pidfd)


class Launch:
    """Starts the launcher process when first needed, and again should it die."""

    def __init__(self, shared: Mapping[str, Path], *, mounts: bool = True) -> None:
        """`shared`: directories that job uids must reach, by a name for each. `mounts`: whether it
        may mount; for that, the process of an ordinary user is in a user namespace of its own, out
        of which it can join no network but those that it made."""
        self._shared = dict(shared)
        self._lock = threading.Lock()
        self._generation = 0
        self._mounts = mounts or os.getuid() == 0  # until the machine says no
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._area = next(area for area in _AREAS if os.path.isdir(area))

    def path(self, name: str) -> Path:
        """Where a shared directory is for the processes started here."""
        with self._lock:
            self._running()
            return Path(self._area, name) if self._mounts else self._shared[name]

    def generation(self) -> int:
        """Which launcher process this is. Overlays end with theirs."""
        with self._lock:
            self._running()
            return self._generation

    def lives(self, generation: int) -> bool:
        """Whether that launcher process is still the one."""
        with self._lock:
            process = self._process
            return generation == self._generation and process is not None and process.poll() is None

    def start(
        self,
        argv: Sequence[str],
        *,
        uid: int | None,
        fds: Sequence[int],
        limits: Mapping[int, int],
        priority: str = launcher.NORMAL,
        network: Network | None = None,
    ) -> Launched:
        """Start a program, with no environment, `fds` as its descriptors 0, 1, 2, ..., resource
        limits (as numbered in `resource`), under `uid` if given, and in `network` if given."""
        what = {"do": "start", "argv": list(argv), "join": network is not None}
        request = {**what, "uid": uid, "limits": list(limits.items()), "priority": priority}
        joined = () if network is None else (network.user, network.net)
        answers = self._ask(request, (*fds, *joined))
        try:
            message, received = _receive(answers)
        except BaseException:
            answers.close()
            raise
        return Launched(int(str(message["pid"])), received[0], answers)

    def network(self, uids: tuple[int, int] | None) -> Network:
        """Make a network with nothing but a loopback, which only sandboxes of these uids (the
        first one, and how many) can join; None: those under our own."""
        answers = self._ask({"do": "network", "uids": uids}, ())
        try:
            _, received = _receive(answers)
        finally:
            answers.close()
        return Network(received[0], received[1])

    def connector(self, network: Network) -> socket.socket:
        """A socket that connects inside a network."""
        answers = self._ask({"do": "socket"}, (network.user, network.net))
        try:
            _, received = _receive(answers)
        finally:
            answers.close()
        return socket.socket(fileno=received[0])

    def listen(self, pid: int, port: int) -> socket.socket:
        """Listen on 127.0.0.1:port inside the network namespace of a process."""
        answers = self._ask({"do": "listen", "pid": pid, "port": port}, ())
        try:
            _, received = _receive(answers)
        finally:
            answers.close()
        return socket.socket(fileno=received[0])

    def overlay(
        self, name: str, *, lower: Path, upper: Path, work: Path, uid: int | None
    ) -> tuple[int, Path] | str:
        """Mount an overlay under a name: its root, open, and where the processes started here find
        it. `lower` appears as owned by `uid`. A text says why this machine does not let us."""
        if not self._mounts:
            return "this user may not mount"
        places = {"lower": str(lower), "upper": str(upper), "work": str(work)}
        answers = self._ask({"do": "overlay", "name": name, "uid": uid, **places}, ())
        try:
            message, received = _answer(answers)
        finally:
            answers.close()
        if "error" in message:
            return str(message["error"])
        return received[0], Path(self._area, launcher.OVERLAYS, name)

    def uncover(self, name: str) -> None:
        """Unmount an overlay. Safe to call when it is gone, with its launcher for instance."""
        answers = self._ask({"do": "uncover", "name": name}, ())
        try:
            _receive(answers)
        finally:
            answers.close()

    def close(self) -> None:
        """Kill what was started and end the launcher."""
        with self._lock:
            self._drop()

    def _ask(self, request: Mapping[str, object], fds: Sequence[int]) -> socket.socket:
        """Send a request; the socket on which its answers come."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_SECONDS)
        data = json.dumps(request).encode()
        assert len(data) <= launcher.MESSAGE_BYTES_MAX, "arguments go by file, not in the request"
        try:
            with self._lock:
                socket.send_fds(self._running(), [data], [theirs.fileno(), *fds])
        except OSError as error:
            ours.close()
            raise RunnerUnavailable(f"the launcher process is gone: {error}") from error
        finally:
            theirs.close()
        return ours

    def _running(self) -> socket.socket:
        if self._control is not None and self._process is not None:
            if self._process.poll() is None:
                return self._control
            self._drop()
        control = self._spawned()
        if self._mounts:
            try:
                self._prepare(control)
            except RunnerUnavailable:
                if os.getuid() == 0:
                    raise
                # Where an ordinary user may not mount, nothing needs to be: there is one uid only.
                self._mounts = False
                control = self._spawned()  # half prepared, the first one is of no use
        self._generation += 1
        return control

    def _spawned(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = [sys.executable, "-I", "-S", launcher.__file__, str(theirs.fileno())]
        self._process = subprocess.Popen(
            program,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        return ours

    def _prepare(self, control: socket.socket) -> None:
        binds = {name: str(path) for name, path in self._shared.items()}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_SECONDS)
        request = json.dumps({"do": "prepare", "binds": binds, "area": self._area}).encode()
        try:
            socket.send_fds(control, [request], [theirs.fileno()])
            theirs.close()
            _receive(ours)
        except RunnerUnavailable as error:
            self._drop()
            raise RunnerUnavailable(
                f"{error.detail}. The server runs as root but may not prepare mounts for the "
                "users its commands run under: start it as an ordinary user, or with the "
                "CAP_SYS_ADMIN capability."
            ) from error
        finally:
            ours.close()
            theirs.close()

    def _drop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _receive(answers: socket.socket) -> tuple[dict[str, object], list[int]]:
    """One answer and its descriptors. Raises RunnerUnavailable for an error or no answer."""
    message, fds = _answer(answers)
    if "error" in message:
        raise RunnerUnavailable(f"a command could not be started: {message['error']}")
    return message, fds


def _answer(answers: socket.socket) -> tuple[dict[str, object], list[int]]:
    try:
        data, fds = launcher.receive(answers)
    except TimeoutError as error:
        raise RunnerUnavailable("the launcher process does not answer") from error
    if not data:
        raise RunnerUnavailable("the launcher process died")
    message: dict[str, object] = json.loads(data)
    return message, fds
