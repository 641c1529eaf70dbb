"""`sluice serve`: one web process and N workers, watched, replaced when they die, drained on exit.

Holds the data directory's lock and the listening socket, so the address stays open while a web
process is replaced. Knows nothing of runs or databases and imports next to nothing, so that it
serves again a moment after a crash. Called by cli.py; its children are cli.py's `web` and `worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import http.client
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci_platform.config import PREFIX, Config
from ci_platform.errors import InternalError, InvalidRequest

LOCK_FILE = "serve.lock"
QUICK_SECONDS = 3.0  # a child that lived shorter than this has crashed at its start
CRASHES_MAX = 10  # so many of those in a row end the server
FIRST_CRASHES_MAX = 2  # the same, while it has never been ready: most likely it never will be
BACKOFF_SECONDS = 0.25  # before the second restart in a row; doubles, up to the next line
BACKOFF_SECONDS_MAX = 5.0
BACKLOG = 1024  # connections that wait while a web process is replaced
READY_SECONDS_MAX = 120.0
READY_POLL_SECONDS = 0.01
LISTEN_SECONDS = 3.0  # for the processes of a killed server to let go of its port
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class ServerBusy(InvalidRequest):
    """Another `sluice serve` uses this data directory."""


class ServerFailed(InternalError):
    """The server could not be started, or its processes keep dying."""


def die_with(supervisor: int) -> None:
    """Make this process end when its supervisor does, however that one ends.

    The kernel does it on Linux. A supervisor that died before this call is noticed by its pid;
    elsewhere a thread watches for the same change of parent.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise ServerFailed(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    else:
        threading.Thread(target=_watch_parent, args=(supervisor,), daemon=True).start()
    if os.getppid() != supervisor:
        os._exit(1)


def _watch_parent(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def locked(data: Path) -> Iterator[Callable[[str], None]]:
    """Hold the data directory alone; yields a function that notes the server's URL for others.

    The kernel drops the lock with the process, so a stale file never blocks a start.
    """
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = data / LOCK_FILE
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = _holder(file.read())
            raise ServerBusy(f"{data} is in use by another `sluice serve`{holder}") from error

        def note(url: str) -> None:
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"pid": os.getpid(), "url": url}))
            file.flush()

        note("")
        yield note


def _holder(text: str) -> str:
    try:
        noted = json.loads(text)
    except ValueError:
        return ""
    return f": pid {noted['pid']} {noted['url']}".rstrip()


def running_url(data: Path) -> str | None:
    """The URL of the server that uses this data directory now; None if there is none."""
    try:
        with (data / LOCK_FILE).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(json.loads(file.read() or "{}").get("url") or "") or None
    except (FileNotFoundError, ValueError):
        return None
    return None


def listen(host: str, port: int) -> socket.socket:
    """Bind the address people use. Raises InvalidRequest if it cannot be had."""
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(READY_POLL_SECONDS)
                continue
            raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}") from error
        return listener


@dataclass(slots=True)
class Child:
    """One process to keep alive."""

    name: str
    argv: Sequence[str]
    pass_fds: Sequence[int] = ()
    process: asyncio.subprocess.Process | None = None
    crashes: int = 0  # quick ones, in a row

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


@dataclass(slots=True)
class Supervisor:
    """Starts children, replaces those that die, and ends them all."""

    children: Sequence[Child]
    environment: Mapping[str, str]
    drain_seconds: float
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str | None = None
    was_ready: bool = False

    async def run(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Run until told to stop. Raises ServerFailed if the children cannot be kept alive.

        The first child has the machine to itself until it is ready: people wait for it. The others
        start then.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        keepers = [asyncio.create_task(self.keep(self.children[0]))]
        announce = asyncio.create_task(self.announce(ready))
        stopped = asyncio.create_task(self.stopping.wait())
        await asyncio.wait([announce, stopped], return_when=asyncio.FIRST_COMPLETED)
        announce.cancel()
        if not self.stopping.is_set():
            keepers += [asyncio.create_task(self.keep(child)) for child in self.children[1:]]
        await stopped
        await self.drain(keepers)
        if self.failure is not None:
            raise ServerFailed(self.failure)

    def stop(self) -> None:
        """Drain; asked a second time, do not wait any longer."""
        if self.stopping.is_set():
            for child in self.children:
                child.signal(signal.SIGKILL)
        self.stopping.set()

    def fail(self, why: str) -> None:
        self.failure = self.failure or why
        self.stopping.set()

    async def announce(self, ready: Callable[[], Awaitable[None]]) -> None:
        try:
            await ready()
            self.was_ready = True
        except ServerFailed as error:
            self.fail(error.detail)

    async def keep(self, child: Child) -> None:
        """Start one child again and again, until stopping or a crash loop."""
        while not self.stopping.is_set():
            started = time.monotonic()
            child.process = await asyncio.create_subprocess_exec(
                *child.argv,
                env=self.environment,
                pass_fds=child.pass_fds,
                process_group=0,  # a Ctrl-C in the terminal is for the supervisor alone
            )
            if self.stopping.is_set():  # the stop came while it was being started
                child.signal(signal.SIGTERM)
            code = await child.process.wait()
            if self.stopping.is_set():
                return
            quick = time.monotonic() - started < QUICK_SECONDS and code != 0
            child.crashes = child.crashes + 1 if quick else 0
            log.warning("%s ended with %s and is replaced", child.name, _describe(code))
            if child.crashes >= (CRASHES_MAX if self.was_ready else FIRST_CRASHES_MAX):
                self.fail(f"{child.name} crashed {child.crashes} times in a row: {_describe(code)}")
                return
            if child.crashes > 1:
                pause = min(BACKOFF_SECONDS * 2 ** (child.crashes - 2), BACKOFF_SECONDS_MAX)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), pause)

    async def drain(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        for child in self.children:
            child.signal(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self.drain_seconds)
        if late:
            log.warning("not drained after %g s: ending what is left", self.drain_seconds)
            for child in self.children:
                child.signal(signal.SIGKILL)
            await asyncio.wait(late)


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve(config: Config, environment: Mapping[str, str]) -> None:
    """Run a server until SIGTERM or SIGINT. Prints its URL, alone, on standard output when ready.

    Raises ServerBusy, InvalidRequest (the address) or ServerFailed.
    """
    with locked(config.data) as note, listen(config.host, config.port) as listener:
        port = listener.getsockname()[1]
        url = config.url or f"http://{_in_url(config.host)}:{port}"
        settings = {
            "DATA": str(config.data.resolve()),
            "HOST": config.host,
            "PORT": str(port),
            "URL": url,
            "WORKERS": str(config.workers),
        }
        supervisor = Supervisor(
            children=_children(config.workers, listener.fileno()),
            environment={**environment, **{PREFIX + name: text for name, text in settings.items()}},
            drain_seconds=config.drain_seconds,
        )

        async def ready() -> None:
            await until_ready(config.host, port)
            note(url)
            print(url, flush=True)

        asyncio.run(supervisor.run(ready))


def _children(workers: int, fd: int) -> list[Child]:
    command = [sys.executable, "-m", "ci_platform.cli"]
    die = ["--die-with", str(os.getpid())]
    web = Child("web", [*command, "web", "--fd", str(fd), *die], pass_fds=(fd,))
    names = [f"worker-{number}" for number in range(1, workers + 1)]
    return [web, *(Child(name, [*command, "worker", "--name", name, *die]) for name in names)]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def until_ready(host: str, port: int) -> None:
    """Return when /readyz answers 200. Raises ServerFailed after a while."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if await asyncio.to_thread(_answers, host, port):
            return
        await asyncio.sleep(READY_POLL_SECONDS)
    raise ServerFailed(f"the web process was not ready after {READY_SECONDS_MAX:g} s")


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """An address to connect to, for one to listen on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
