"""`async with step.service(...)`: a process that runs beside the commands of a block.

What the author declares, checked, and the block itself, which tells the commands that are called
inside of it what they need. Processes are the runner's business. Used by step.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from pipelines.checks import block, text, whole
from pipelines.history import Key
from pipelines.replay import Replay, label
from pipelines.wire import SERVICES_MAX, Json

CHECK_MAX = 32 * 1024  # characters of a command that says whether a service is ready
HOST = "127.0.0.1"
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TAKEN = ("localhost", "ci")
_HTTP = re.compile(r"http://(127\.0\.0\.1|localhost)(:[0-9]{1,5})?(/[!-~]*)?")

# The services around what is called now, outermost first; each task has its own.
AROUND: ContextVar[tuple[str, ...]] = ContextVar("services", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """When a service is ready: one of a port that accepts connections, an address that answers
    below 400, a command that exits with 0, or a text in a line of its log."""

    port: int | None = None
    http: str | None = None
    command: str | None = None
    log: str | None = None

    def config(self) -> dict[str, Json]:
        given = {name: getattr(self, name) for name in ("port", "http", "command", "log")}
        found = {name: value for name, value in given.items() if value is not None}
        if len(found) != 1:
            raise ValueError("Ready takes one of port, http, command and log")
        if self.port is not None:
            whole("ready.port", self.port, least=1, most=65_535)
        if self.http is not None and not _HTTP.fullmatch(text("ready.http", self.http, most=1_024)):
            raise ValueError(f"ready.http must be http://{HOST}:port/path, got {self.http!r}")
        if self.command is not None:
            block("ready.command", self.command, most=CHECK_MAX)
        if self.log is not None:
            text("ready.log", self.log, most=1_024)
        return found


def ready_config(ready: int | str | Ready | None) -> Json:
    """Read `ready`: a number is a port, http:// an address, any other text a command."""
    if ready is None:
        return None
    if isinstance(ready, Ready):
        return ready.config()
    if isinstance(ready, int) and not isinstance(ready, bool):
        return Ready(port=ready).config()
    if not isinstance(ready, str):
        raise TypeError(f"ready must be a port, a text or Ready(…), got {type(ready).__name__}")
    return (Ready(http=ready) if ready.startswith("http://") else Ready(command=ready)).config()


def service_name(name: str) -> str:
    """The name of a service: commands find it as a host of this name."""
    if not isinstance(name, str) or not _HOST_NAME.fullmatch(name) or name in _TAKEN:
        raise ValueError(
            "the name of a service must be a host name (letters, digits and -, not localhost or "
            f"ci), got {name!r}"
        )
    return name


class Service:
    """A service, for `async with`: what is called inside the block may use it."""

    def __init__(
        self, replay: Replay, key: Key, config: Mapping[str, Json], enter: Callable[[], object]
    ) -> None:
        """`enter` is called when the block begins."""
        self.name = key[1]
        self.host = HOST
        self.port: int | None = (config["ready"] or {}).get("port")
        self._replay = replay
        self._key = key
        self._config = config
        self._enter = enter

    async def __aenter__(self) -> Service:
        around, own = AROUND.get(), label(self._key)
        if len(around) >= SERVICES_MAX:
            raise ValueError(f"a command may have {SERVICES_MAX} services: {own} is one too many")
        if any(one.partition("#")[0] == own.partition("#")[0] for one in around):
            raise ValueError(f"{own} stands inside a block of a service of the same name")
        self._enter()
        self._replay.declare(self._key, self._config)
        AROUND.set((*around, own))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit:  # the code was dropped where it waits, and goes on elsewhere
            return
        own = label(self._key)
        AROUND.set(tuple(one for one in AROUND.get() if one != own))
        await self._replay.leave(self._key)
