"""The app that componentize-py builds into the guest: it freezes the standard library, imports
`pipelines`, warms up, and is then stored as it stands. Executed once, while the guest is built.

Later there is no file system: what is not in memory by then cannot be imported any more.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import sys
from types import CodeType, ModuleType

import wit_world
from wit_world.imports import host

from pipelines import determinism

# Before anything else: modules that import urandom or the clock must get the patched ones.
SENSES = determinism.install()

from pipelines.guest import Guest  # noqa: E402
from pipelines.loading import uninstall  # noqa: E402

STDLIB = os.path.dirname(importlib.abc.__file__).removesuffix("/importlib")
LEFT_OUT = frozenset(
    ("__phello__", "__pycache__", "ctypes", "curses", "dbm", "ensurepip", "idlelib", "lib2to3")
    + ("multiprocessing", "pydoc_data", "site-packages", "sqlite3", "test", "tests", "tkinter")
    + ("turtledemo", "venv", "wsgiref", "xmlrpc")
)


class FrozenLibrary(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Serves the pure-Python standard library from memory."""

    def __init__(self) -> None:
        self._code: dict[str, tuple[bool, bytes]] = {}
        self._freeze(STDLIB, "")

    def _freeze(self, folder: str, prefix: str) -> None:
        for name in sorted(os.listdir(folder)):
            path = f"{folder}/{name}"
            if os.path.isdir(path):
                if name not in LEFT_OUT and os.path.exists(f"{path}/__init__.py"):
                    self._freeze(path, f"{prefix}{name}.")
            elif name == "__init__.py" and prefix:
                self._code[prefix[:-1]] = (True, self._compile(path))
            elif name.endswith(".py"):
                self._code[prefix + name[:-3]] = (False, self._compile(path))

    def _compile(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return marshal.dumps(compile(file.read(), path, "exec", dont_inherit=True))

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._code:
            return None
        return importlib.util.spec_from_loader(
            fullname, self, is_package=self._code[fullname][0], origin="the standard library"
        )

    def get_source(self, fullname: str) -> None:
        return None

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = marshal.loads(self._code[fullname][1])
        return code

    def is_package(self, fullname: str) -> bool:
        return self._code[fullname][0]


GUEST = Guest(host, SENSES)

WARM_UP = """
import asyncio, json
from pipelines import Pipeline, on_push

class Warm(Pipeline):
    triggers = [on_push(branches=["main"])]

    async def run(self, event, step):
        async with asyncio.timeout(60):
            await asyncio.gather(step.do("a", lambda: 1), step.sh("b", "true"))
        raise ValueError(event.ref)
"""


class WitWorld(wit_world.WitWorld):  # type: ignore[misc]  # generated while building
    def activate(self, message: str) -> str:
        return GUEST.activate(message)


class _NoHost:
    """Stands in for the host while warming up, when there is none: suspends at once."""

    def next(self, commands: str) -> str:
        return "[]"

    def log(self, step: str, stream: str, text: str) -> None:
        """Nobody reads it."""

    def outside(self, now_ms: int) -> None:
        """The clock of the build is as good as any."""

    def inside(self, body: str, ms: int) -> None:
        """Nothing here runs for long."""

    def sleep(self, ms: int) -> None:
        """Nothing waits here."""

    def ask(self, request: str) -> str:
        return '{"error":{"type":"NotGranted","message":"nothing is granted while building"}}'


def warm_up() -> None:
    """Run what every activation runs, so that the stored memory has it all imported and cached."""
    guest = Guest(_NoHost(), SENSES)
    started = {"seq": 3, "kind": "step_started", "at_ms": 3, "key": ["do", "x", 1]}
    entries = [
        {"seq": 1, "kind": "run_created", "at_ms": 1, "key": None, "data": {}, "attempt": None},
        {"seq": 2, "kind": "run_claimed", "at_ms": 2, "key": None, "data": {}, "attempt": None},
    ]
    base = {"v": 1, "files": {".ci/pipeline.py": WARM_UP}}
    run = {**base, "op": "run", "pipeline": "Warm", "event": {"ref": "refs/heads/main"}}
    run |= {"seed": "warm", "strict": True, "entries": entries}
    for message in (
        {**base, "op": "describe"},
        run,
        {**run, "entries": [*entries, {**started, "data": {}, "attempt": 1}]},
        {**run, "pipeline": "Missing"},
    ):
        guest.activate(json.dumps(message))


import json  # noqa: E402

sys.meta_path.append(FrozenLibrary())
warm_up()
uninstall()
gc.collect()
gc.freeze()
