"""The services of one block of a run on one machine: started when asked for, shared, ended.

One worker process hosts them, whichever needed them first; commands in all workers of the machine
use them through a socket in the work directory, each over a connection that it holds as long as it
runs. Used by services.py; ends by itself, or with its process.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ci_platform.errors import RunnerUnavailable, SluiceError
from ci_platform.model import Json
from ci_platform.runner.egress import PORT
from ci_platform.runner.launch import Network
from ci_platform.runner.launcher import receive
from ci_platform.runner.limits import Excess
from ci_platform.runner.service import Place, Service, Ways
from ci_platform.shell import SERVICES_MAX, ServiceDesk, ServiceSpec

IDLE_SECONDS = 60.0  # a service that no command has used for so long is stopped
ENDED_SECONDS = 1.0  # between two looks at whether the block of an unused one has ended
SERVICES_ALIVE_MAX = 4 * SERVICES_MAX  # of one outermost block, of all blocks inside of it
CONNECTIONS_MAX = 256  # commands that use them at a time
REQUEST_BYTES_MAX = 32 << 20
PROXY_PORTS = 1000  # ways out of the network, one for each command: PORT and those behind it
_TICK_SECONDS = 0.1

_log = logging.getLogger(__name__)
WaysIn = Callable[[Place], Ways]


@dataclass(slots=True)
class Using:
    """A command, and the services it uses."""

    connection: socket.socket
    wanted: Sequence[ServiceSpec]
    services: list[Service] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    ready: bool = False


class ServiceHost:
    """Owns a network and the services in it. One thread does everything but run them."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        network: Network | None,
        ways: WaysIn,
        desk: ServiceDesk,
        released: Callable[[], None],
    ) -> None:
        """`released` is called once, when nothing of it is left."""
        self._listener = listener
        self._network = network
        self._ways = ways
        self._desk = desk
        self._released = released
        self._services: dict[str, Service] = {}  # by step
        self._users: list[Using] = []
        self._ports = 0
        self._looked = 0.0
        self._began = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="services", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all services, whoever uses them. Safe to call twice."""
        self._closing.set()
        self._thread.join()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    # --- the thread ---

    def _serve(self) -> None:
        try:
            while not self._closing.is_set() and not self._finished():
                self._tick()
        except Exception:  # a bug of ours must not leave processes behind
            _log.exception("the services of a run were ended")
        finally:
            self._listener.close()
            for user in self._users:
                user.connection.close()
            self._end(list(self._services))
            if self._network is not None:
                self._network.close()
            self._released()

    def _finished(self) -> bool:
        young = time.monotonic() - self._began < ENDED_SECONDS  # who made it is yet to connect
        return not (self._users or self._services or young)

    def _tick(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        for user in self._users:
            poll.register(user.connection, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(int(_TICK_SECONDS * 1000))}
        for user in [one for one in self._users if one.connection.fileno() in ready]:
            self._leave(user)
        if self._listener.fileno() in ready:
            self._accept()
        for user in list(self._users):
            self._go_on(user)
        self._look_around()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if len(self._users) >= CONNECTIONS_MAX:
            connection.close()
            return
        try:
            wanted = _request(connection)
        except (OSError, ValueError, TypeError) as error:
            _log.warning("a command asked for services in no way that is known: %s", error)
            connection.close()
            return
        self._users.append(Using(connection, wanted))

    def _leave(self, user: Using) -> None:
        """The command has ended."""
        user.connection.close()
        self._users.remove(user)
        for service in user.services:
            service.used = time.monotonic()

    def _go_on(self, user: Using) -> None:
        """Start what a command needs, one after the other, and tell it what there is to tell."""
        while not user.ready:
            if user.services:
                latest = user.services[-1]
                if not latest.decided:
                    return
                if latest.failure is not None:
                    self._fail(user, latest.failure)
                    return
            if len(user.services) == len(user.wanted):
                self._welcome(user)
                break
            try:
                user.services.append(self._service(user.wanted[len(user.services)]))
            except RunnerUnavailable as error:
                self._tell(user, {"unavailable": error.detail})
                return
        for note in (note for service in user.services for note in service.notes):
            if note not in user.told:
                user.told.add(note)
                self._tell(user, {"note": note})

    def _service(self, spec: ServiceSpec) -> Service:
        step = str(spec.command["step"])
        found = self._services.get(step)
        if found is not None and found.alive and found.failure is None:
            return found
        if found is not None:
            self._end([step])
        if len(self._services) >= SERVICES_ALIVE_MAX:
            raise RunnerUnavailable(f"{SERVICES_ALIVE_MAX} services run already beside this one")
        hosts = (*(one.spec.name for one in self._services.values()), spec.name)
        place = Place(self._network, PORT + self._port(), hosts)
        log = self._desk.log(str(spec.command["run_id"]), step)
        self._services[step] = Service(spec, self._ways(place), log)
        return self._services[step]

    def _port(self) -> int:
        self._ports = (self._ports + 1) % PROXY_PORTS
        return self._ports

    def _welcome(self, user: Using) -> None:
        fds = [] if self._network is None else [self._network.user, self._network.net]
        user.ready = True
        self._tell(user, {"ready": True, "port": PORT + self._port()}, fds)

    def _fail(self, user: Using, excess: Excess) -> None:
        self._tell(user, {"limit": excess.limit, "detail": excess.detail})
        self._leave(user)

    def _tell(self, user: Using, message: Json, fds: Sequence[int] = ()) -> None:
        with suppress(OSError):  # it has gone meanwhile, which the next tick notices
            socket.send_fds(user.connection, [json.dumps(message).encode()], list(fds))

    def _look_around(self) -> None:
        """Flush logs; end what nobody uses, if its block has ended or it has idled for long."""
        for service in self._services.values():
            service.flush()
        now = time.monotonic()
        if now - self._looked < ENDED_SECONDS:
            return
        self._looked = now
        in_use = {id(service) for user in self._users for service in user.services}
        unused = {step: one for step, one in self._services.items() if id(one) not in in_use}
        over = [step for step, one in unused.items() if self._is_over(step, one, now)]
        self._end(over)

    def _is_over(self, step: str, service: Service, now: float) -> bool:
        if not service.alive or now - service.used > IDLE_SECONDS:
            return True
        try:
            return self._desk.ended(service.command.run_id, step)
        except SluiceError as error:  # the store is away: it ends when it has idled for long
            _log.warning("whether %s has ended is not known: %s", step, error)
            return False

    def _end(self, steps: Sequence[str]) -> None:
        """End some services together, so that their times of grace do not add up."""
        ending = [self._services.pop(step) for step in steps]
        threads = [threading.Thread(target=service.end) for service in ending]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _request(connection: socket.socket) -> list[ServiceSpec]:
    """What a command asks for: a file, since scripts are longer than messages may be."""
    connection.settimeout(1.0)
    _, fds = receive(connection)
    try:
        data = os.pread(fds[0], REQUEST_BYTES_MAX, 0) if fds else b""
    finally:
        for fd in fds:
            os.close(fd)
    connection.setblocking(False)
    return [ServiceSpec(**one) for one in json.loads(data)]
