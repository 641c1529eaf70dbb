"""`sluice serve`: one web process and N workers on one data directory and one address.

Holds what they share, the directory's lock and the listening socket, so the address stays open
while a web process is replaced. Keeping them alive is supervise.py's. Called by the command line.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from ci_platform.config import Config
from ci_platform.errors import InvalidRequest
from ci_platform.server.data_lock import locked, note
from ci_platform.server.log import log_to_stderr
from ci_platform.server.processes import run_web, run_worker
from ci_platform.server.supervise import Child, Supervisor

LISTEN_SECONDS = 3.0  # for the processes of a killed server to let go of its port
LOOK_SECONDS = 0.01
BACKLOG = 1024  # connections that wait while a web process is replaced


def serve(config: Config) -> None:
    """Run a server until SIGTERM or SIGINT. Prints its URL, alone, on standard output when ready.

    Raises ServerBusy, InvalidRequest (the address) or ServerFailed.
    """
    log_to_stderr("serve", as_json=config.log_json)
    with locked(config.data) as lock, listen(config.host, config.port) as listener:
        config = _at(config, listener)

        def ready() -> None:
            note(lock, config.base_url)
            print(config.base_url, flush=True)

        def worker(name: str) -> Child:
            def work(say_ready: Callable[[], None]) -> None:
                listener.close()
                run_worker(config, name=name)

            return Child(name, work)

        def answer(ready: Callable[[], None]) -> None:
            # It is the first to open the database, and the lock says that no one else has.
            run_web(config, listener=listener, ready=ready, migrate=True)

        web = Child("web", answer)
        workers = [worker(f"worker-{number}") for number in range(1, config.workers + 1)]
        Supervisor(
            [web, *workers],
            drain_seconds=config.drain_seconds,
            on_ready=ready,
            private=[lock.fileno()],
        ).run()


def serve_web(config: Config) -> None:
    """Run one web process by itself, until SIGTERM or SIGINT; prints its URL when ready."""
    with listen(config.host, config.port) as listener:
        config = _at(config, listener)
        run_web(config, listener=listener, ready=lambda: print(config.base_url, flush=True))


def listen(host: str, port: int) -> socket.socket:
    """Bind the address people use. Raises InvalidRequest if it cannot be had."""
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                continue
            raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}") from error
        return listener


def _at(config: Config, listener: socket.socket) -> Config:
    """The config with the port that was really taken, and the address people use."""
    port = listener.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = config.url or f"http://{host}:{port}"
    return config.model_copy(update={"data": config.data.resolve(), "port": port, "url": url})
