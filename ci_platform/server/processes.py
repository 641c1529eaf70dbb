"""The two kinds of process of a deployment: `sluice web` and `sluice worker`.

Each opens the platform, does its one job until SIGTERM or SIGINT, and closes. Any number of either
may run; supervise.py starts those of one machine. Called by the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from ci_platform.app import Platform, create_asgi, open_platform, runner_of, setup_url
from ci_platform.config import Config
from ci_platform.engine import Limits
from ci_platform.errors import SandboxUnavailable
from ci_platform.labels import own_labels, parse_labels
from ci_platform.model import WorkerId
from ci_platform.runner.stored_layers import StoredLayers
from ci_platform.server.log import log_to_stderr
from ci_platform.server.protocol import Protocol
from ci_platform.shell import Runner
from ci_platform.worker import Settings, Tools, Worker

SWITCH_SECONDS = 0.0005  # for a thread of a worker, while another one is at a flood of output
TICK_SECONDS = 1.0  # how old the date of an answer may be
STREAMS_SECONDS = 2  # how long open event streams may hold up the end of a web process
ENDING_SECONDS = 17  # of the drain: for commands that were told to end, and to let go of leases
MS = 1000
DAY_MS = 86_400 * MS

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's, which says when it is ready, and sleeps while there is nothing to do."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._told = asyncio.Event()  # to end
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._ready()

    async def main_loop(self) -> None:
        """As uvicorn's, but that looks ten times a second whether it shall end."""
        while not await self.on_tick(0):  # which also keeps the date of answers
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)


def run_web(
    config: Config,
    *,
    listener: socket.socket,
    ready: Callable[[], None],
    migrate: bool = False,
) -> None:
    """Serve on the listener until told to stop. `migrate`: see open_platform."""
    log_to_stderr("web", as_json=config.log_json)
    platform = open_platform(config, migrate=migrate)
    front = create_asgi(platform)
    settings = uvicorn.Config(
        front,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        http=Protocol,
        timeout_graceful_shutdown=STREAMS_SECONDS,
    )
    # uvicorn raises a caught signal again when it is done: it must find a handler that ends well.
    on_stop_signal(lambda: None)
    link = setup_url(platform)
    if link is not None:
        print(f"The first admin is made here, within a day: {link}", file=sys.stderr, flush=True)
    platform.errands.start()
    # The first push asks the file what it declares; until then nothing here waits for it.
    threading.Thread(target=warm, args=(platform,), name="warm", daemon=True).start()
    try:
        Server(settings, ready).run(sockets=[listener])
    finally:
        front.close()
        platform.close()


def run_worker(config: Config, *, name: str | None) -> None:
    """Execute runs and their commands until told to stop."""
    log_to_stderr(name or "worker", as_json=config.log_json)
    sys.setswitchinterval(SWITCH_SECONDS)
    platform = open_platform(config, sandboxes=config.sandboxes_max)
    runner = runner_of(platform)
    tools = worker_tools(platform, runner, worker_id(config, name))
    platform.store.runs.release(tools.id)  # of whoever had this place before us and died
    platform.store.workers.gone(tools.id)  # nor was it us who was asked to drain
    warm(platform)  # may take a build; a stop signal until here ends the process at once
    stop = threading.Event()
    on_stop_signal(stop.set)
    try:
        Worker(tools).run_forever(stop)
    finally:
        runner.close()
        platform.close()


def warm(platform: Platform) -> None:
    """Start the sandbox. If it cannot be, say so and go on: runs that need it will say it too."""
    try:
        platform.sandbox.start()
    except SandboxUnavailable as error:
        log.error("no sandbox: %s", error.detail)


def worker_tools(platform: Platform, runner: Runner, name: WorkerId) -> Tools:
    config = platform.config
    settings = Settings(
        lease_ms=config.lease_seconds * MS,
        poll_ms=round(config.poll_seconds * MS),
        activations_max=config.activations_max,
        operations_max=config.operations_max,
        log_bytes=config.log_bytes,
        drain_ms=round(max(0.0, config.drain_seconds - ENDING_SECONDS) * MS),
        retention_ms=config.retention_days * DAY_MS,
        kept_runs=config.kept_runs,
        always_hibernate=config.hibernate == "always",
        limits=Limits(value_bytes=config.value_bytes, steps_max=config.steps_max),
    )
    return Tools(
        id=name,
        store=platform.store,
        sandbox=platform.sandbox,
        runner=runner,
        source=platform.source,
        clock=platform.clock,
        settings=settings,
        capabilities=platform.capabilities,
        dispatch_pending=platform.commands.pushes.dispatch_pending,
        start_child=platform.commands.family.start,
        family_pending=platform.commands.family.pending,
        supersede_pending=platform.commands.runs.supersede_pending,
        fire_schedules=platform.commands.schedules.fire_due,
        maintain_git=platform.git.maintain,
        sync_mirrors=platform.commands.mirrors.sync_due,
        forget_sent=platform.commands.telling.forget,
        layers=StoredLayers(platform.objects),
        host=socket.gethostname(),
        labels=(*own_labels(), *parse_labels(config.labels)),
    )


def worker_id(config: Config, name: str | None) -> WorkerId:
    """Who holds a lease: the same for every process that takes this one's place.

    So a replacement may take back at once what its predecessor held. The directory's name is in it
    because two deployments of one machine may share a database.
    """
    place = hashlib.sha256(str(config.data.resolve()).encode()).hexdigest()[:8]
    return WorkerId(f"{socket.gethostname()}:{place}:{name or 'worker'}")


def on_stop_signal(stop: Callable[[], object]) -> None:
    def stopped(number: int, frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
