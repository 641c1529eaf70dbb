"""Commands that need services: finding those that run on this machine, or hosting them.

A command carries the specs of the services around it (ServiceSpec), so any worker can start them;
nothing is kept between commands that could not be started again. Used by the runners.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ci_platform.errors import RunnerUnavailable
from ci_platform.runner.launch import Network
from ci_platform.runner.launcher import receive
from ci_platform.runner.limits import Excess
from ci_platform.runner.service import Place
from ci_platform.runner.service_host import ServiceHost, WaysIn
from ci_platform.shell import CommandSpec, ServiceDesk

_POLL_MS = 100
_REACH_SECONDS = 30.0  # to find or become a host
_AGAIN_SECONDS = 0.05
_BACKLOG = 128
_REQUEST_SECONDS = 5.0
_LOCK = ".lock"
_HOSTS_MAX = 5  # that end while a command waits for them, one after the other

Output = Callable[[str, bytes], None]


class _Nothing:
    """A desk, and the logs on it, where nobody looks."""

    def log(self, run_id: str, step: str) -> _Nothing:
        return self

    def ended(self, run_id: str, step: str) -> bool:
        return False

    def write(self, stream: str, data: bytes) -> None:
        """Nobody reads it."""

    def note(self, text: str) -> None:
        """Nobody reads it."""

    def flush(self) -> None:
        """There is nothing."""

    def close(self) -> None:
        """There is nothing."""


NO_DESK: ServiceDesk = _Nothing()
ALONE = Place()


@dataclass(frozen=True, slots=True)
class Beside:
    """What a command has beside it."""

    stop: Callable[[], bool]
    place: Place = ALONE
    refused: Excess | None = None


class Services:
    """Safe to use from many threads."""

    def __init__(
        self,
        directory: Path,
        *,
        desk: ServiceDesk,
        ways: WaysIn,
        network: Callable[[], Network | None],
    ) -> None:
        """`directory`: shared by the workers of this machine."""
        self._directory = directory
        self._desk = desk
        self._ways = ways
        self._network = network
        self._lock = threading.Lock()
        self._hosts: set[ServiceHost] = set()
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for path in directory.glob(f"*{_LOCK}"):
            self._forget(path)

    @contextmanager
    def beside(
        self, spec: CommandSpec, *, output: Output, stop: Callable[[], bool]
    ) -> Iterator[Beside]:
        """Have the command's services ready, for as long as this is open."""
        if not spec.services:
            yield Beside(stop)
            return
        user, found = self._settle(spec, output=output, stop=stop)
        try:
            yield found
        finally:
            user.leave()
            if found.place.network is not None:
                found.place.network.close()
        if user.gone and not stop():
            raise RunnerUnavailable("the services beside it went away with the worker they ran in")

    def close(self) -> None:
        """End the services that this process hosts. Safe to call twice."""
        with self._lock:
            hosts = list(self._hosts)
            here, self._here = self._here, -1
        for host in hosts:
            host.close()
        if here != -1:
            os.close(here)

    def _settle(
        self, spec: CommandSpec, *, output: Output, stop: Callable[[], bool]
    ) -> tuple[_User, Beside]:
        """Ask for the services until a host has an answer, and does not just end itself."""
        names = [str(one["name"]) for one in spec.services]
        for _ in range(_HOSTS_MAX):
            user = _User(self._reach(spec, stop), output, stop)
            try:
                found = user.settle(names)
            except BaseException:
                user.leave()
                raise
            if found is not None:
                return user, found
            user.leave()
        raise RunnerUnavailable(f"{_HOSTS_MAX} hosts of its services ended before they were ready")

    def _reach(self, spec: CommandSpec, stop: Callable[[], bool]) -> socket.socket:
        """A connection to the host of the outermost service around a command."""
        outermost = spec.services[0]["command"]["step"]
        text = json.dumps([spec.repository_id, spec.run_id, spec.commit, outermost])
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        deadline = time.monotonic() + _REACH_SECONDS
        while True:
            self._host_if_none(name)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.settimeout(_REQUEST_SECONDS)
                connection.connect(self._address(name))
                _ask(connection, spec)
                return connection
            except OSError as error:  # it has just ended, or is not there yet
                connection.close()
                if time.monotonic() > deadline or stop():
                    raise RunnerUnavailable(f"its services cannot be reached: {error}") from error
            time.sleep(_AGAIN_SECONDS)

    def _address(self, name: str) -> str:
        """The path of the socket; by way of a descriptor, since such paths must be short."""
        return f"/proc/self/fd/{self._here}/{name}"

    def _forget(self, path: Path) -> None:
        """Remove what a worker that died has left."""
        lock = _locked(path)
        if lock is not None:
            path.with_suffix("").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            os.close(lock)

    def _host_if_none(self, name: str) -> None:
        lock = _locked(self._directory / f"{name}{_LOCK}")
        if lock is None:  # there is one, or was just now
            return
        try:
            self._host(name, lock)
        except BaseException:
            os.close(lock)
            raise

    def _host(self, name: str, lock: int) -> None:
        own = self._directory / name
        own.unlink(missing_ok=True)  # of a worker that died
        network = self._network()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self._address(name))
        listener.listen(_BACKLOG)

        def released() -> None:
            own.unlink(missing_ok=True)
            own.with_name(f"{name}{_LOCK}").unlink(missing_ok=True)
            os.close(lock)
            with self._lock:
                self._hosts.discard(host)

        with self._lock:
            host = ServiceHost(
                listener, network=network, ways=self._ways, desk=self._desk, released=released
            )
            self._hosts.add(host)


def _locked(path: Path) -> int | None:
    """The descriptor of a lock file, locked; None if another process has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(lock).st_ino:
            return lock
        os.close(lock)  # removed in between, and made anew
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
    return None


class _User:
    """A command's side of its connection."""

    def __init__(self, connection: socket.socket, output: Output, stop: Callable[[], bool]) -> None:
        self.gone = False  # the host closed it, or died
        self._connection = connection
        self._output = output
        self._stop = stop

    def leave(self) -> None:
        """The command has ended. Safe to call twice."""
        self._connection.close()

    def settle(self, hosts: Sequence[str]) -> Beside | None:
        """Wait until the services are ready, have failed, or are not wanted any more. None: their
        host has ended instead."""
        while not self._stop():
            found = self._next(_POLL_MS)
            if found is None:
                if self.gone:
                    return None
                continue
            message, fds = found
            if "ready" in message:
                network = Network(fds[0], fds[1]) if fds else None
                return Beside(self._stops, Place(network, int(str(message["port"])), hosts))
            if "unavailable" in message:
                raise RunnerUnavailable(f"its services cannot be run: {message['unavailable']}")
            if "limit" in message:
                excess = Excess(str(message["limit"]), str(message["detail"]))
                return Beside(self._stop, refused=excess)
            self._note(message)
        return Beside(self._stop)

    def _stops(self) -> bool:
        """Polled while the command runs."""
        while not self.gone and (found := self._next(0)) is not None:
            self._note(found[0])
        return self.gone or self._stop()

    def _note(self, message: dict[str, object]) -> None:
        self._output("note", f"{message.get('note')}\n".encode())

    def _next(self, milliseconds: int) -> tuple[dict[str, object], list[int]] | None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if not poll.poll(milliseconds):
            return None
        data, fds = b"", list[int]()
        with suppress(ConnectionError):
            data, fds = receive(self._connection)
        if not data:
            self.gone = True
            return None
        return json.loads(data), fds


def _ask(connection: socket.socket, spec: CommandSpec) -> None:
    fd = os.memfd_create("services", os.MFD_CLOEXEC)
    try:
        os.write(fd, json.dumps(list(spec.services)).encode())
        socket.send_fds(connection, [b"{}"], [fd])
    finally:
        os.close(fd)
