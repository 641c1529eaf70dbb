"""`self.env`: the capabilities a run was granted, each a question that the host answers.

    await self.env.files.read_text("pyproject.toml")        anywhere: a commit does not change
    await self.env.files.changed()
    await self.env.storage.kv.put("last", {"number": 7})    in bodies of steps only
    await self.env.storage.sql.execute("SELECT 1 AS one")
    await self.env.runs.create("Deploy", {"target": "staging"})

A question leaves no entry in the journal, so what changes the world, or changes with it, belongs in
a step's body: that runs once and its result is kept. The code stands still until the answer comes.
Which repository is meant is the host's knowledge; nothing here names one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

from pipelines.errors import CapabilityError, NotGranted
from pipelines.jsontext import encode
from pipelines.loop import BODY
from pipelines.runs import Runs
from pipelines.wire import ASK_BYTES_MAX, ASK_VERSION, Json

ENVELOPE_BYTES = 1_024  # of a request, around its arguments
CAPABILITIES = ("files", "http", "runs", "secrets", "storage")

Ask: TypeAlias = Callable[[str], str]  # the host's function: JSON in, JSON out
Row: TypeAlias = dict[str, Json]


class Desk:
    """Where questions to the host are written and answers read."""

    __slots__ = ("_ask", "_in_fetch")

    def __init__(self, ask: Ask, *, in_fetch: bool = False) -> None:
        self._ask = ask
        self._in_fetch = in_fetch  # a request, not a run: there is no replay

    def ask(self, capability: str, method: str, **arguments: Json) -> Json:
        """Raises what the author may catch: NotGranted, CapabilityError, FileNotFoundError."""
        what = f"what is given to self.env.{capability}.{method}"
        encoded = encode(arguments, what, bytes_max=ASK_BYTES_MAX - ENVELOPE_BYTES)
        request = (
            f'{{"v":{ASK_VERSION},"capability":"{capability}","method":"{method}",'
            f'"arguments":{encoded}}}'
        )
        answer: Mapping[str, Json] = json.loads(self._ask(request))
        if "error" not in answer:
            return answer.get("value")
        raise _error(answer["error"])

    def ask_in_body(self, capability: str, method: str, **arguments: Json) -> Json:
        """The same, for what is done once: not by code that every replay runs again."""
        if not self._in_fetch and BODY.get() is None:
            raise NotGranted(
                f"self.env.{capability}.{method} is for bodies of steps: code between steps is "
                'run again by every replay. Write `await step.do("name", …)` around it'
            )
        return self.ask(capability, method, **arguments)


def _error(found: Mapping[str, Json]) -> Exception:
    kind, message = str(found.get("type")), str(found.get("message"))
    if kind == "NotGranted":
        return NotGranted(message)
    if kind == "FileNotFoundError":
        return FileNotFoundError(message)
    return CapabilityError(message, type=kind)


class Files:
    """The repository at the commit whose code runs. Read only."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def read_text(self, path: str) -> str:
        """A file's text. Raises FileNotFoundError."""
        found: str = self._desk.ask("files", "read_text", path=_text("path", path))
        return found

    async def changed(self) -> list[str]:
        """The paths that differ from the commit before the push; all of them without one."""
        found: list[str] = self._desk.ask("files", "changed")
        return found


class Kv:
    """Values by key, kept for all runs of the repository."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get(self, key: str, default: Json = None) -> Json:
        found: list[Json] = self._desk.ask_in_body("storage.kv", "get", key=_text("key", key))
        return found[0] if found else default

    async def put(self, key: str, value: Json) -> None:
        self._desk.ask_in_body("storage.kv", "put", key=_text("key", key), value=value)

    async def delete(self, key: str) -> bool:
        """Whether it was there."""
        gone: bool = self._desk.ask_in_body("storage.kv", "delete", key=_text("key", key))
        return gone

    async def list(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
        """Keys that begin so, sorted; `after` is the last key of the page before."""
        asked = {"prefix": _text("prefix", prefix), "after": _text("after", after), "limit": limit}
        found: list[str] = self._desk.ask_in_body("storage.kv", "list", **asked)
        return found


class Sql:
    """The repository's own SQLite database."""

    __slots__ = ("_desk",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def execute(self, statement: str, *args: Json) -> list[Row]:
        """Run one statement, a transaction of its own. Answers its rows, by column name."""
        found: list[Row] = self._desk.ask_in_body(
            "storage.sql",
            "execute",
            statement=_text("statement", statement),
            arguments=[_given(each) for each in args],
        )
        return [{name: _read(value) for name, value in row.items()} for row in found]


def _given(value: Json) -> Json:
    """An argument as JSON: bytes travel as {"base64": text}."""
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(
        f"an argument of sql.execute is text, a number, bytes or None, not {type(value).__name__}: "
        "give it once for each `?`, as in execute('… WHERE a = ? AND b = ?', a, b)"
    )


def _read(value: Json) -> Json:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def _text(argument: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be text, not {type(value).__name__}")
    return value


class Storage:
    """What outlives runs."""

    __slots__ = ("kv", "sql")

    def __init__(self, desk: Desk) -> None:
        self.kv = Kv(desk)
        self.sql = Sql(desk)


def _nobody(request: str) -> str:
    return '{"error":{"type":"NotGranted","message":"self.env is not connected here"}}'


class Env:
    """The capabilities of one run, or of one request to `fetch`."""

    __slots__ = ("files", "runs", "storage")

    def __init__(self, desk: Desk | None = None) -> None:
        desk = desk or Desk(_nobody)
        self.files = Files(desk)
        self.runs = Runs(desk)
        self.storage = Storage(desk)

    def __getattr__(self, name: str) -> object:
        if name in CAPABILITIES:
            raise NotGranted(
                f"self.env.{name} is not granted to this run: this version of the platform has "
                "files, runs and storage there (for secrets and network, use step.sh)"
            )
        raise AttributeError(f"self.env has no {name!r}; it may have {', '.join(CAPABILITIES)}")
