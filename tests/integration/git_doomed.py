"""A git server that kills itself at a chosen stage of the first push. Run as a module:
DIRECTORY STAGE [DATABASE_URL OBJECTS_URL]; prints its port."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
from sqlalchemy import create_engine

from ci_platform.objects import open_objects
from git_store import Limits, Push, PushEvent, packs, quarantine, refs
from tests.integration.git_world import GitWorld

STAGES = (
    "receiving",
    "indexed",
    "checked",
    "pack uploaded",
    "all uploaded",
    "refs written",
    "committed",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: Any, name: str, times: int = 1) -> None:
    """Die after the function has been called so often."""
    function = getattr(owner, name)
    calls = iter(range(times))

    def doomed(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        next(calls)
        if next(calls, None) is None:
            die()
        return result

    setattr(owner, name, doomed)


class Doomed:
    def __init__(self, stage: str) -> None:
        self._stage = stage

    def before(self, push: Push) -> None:
        if self._stage == "checked":
            die()

    def after(self, event: PushEvent, say: Callable[[str], None]) -> None:
        if self._stage == "committed":
            die()


def doomed_world(directory: Path, *elsewhere: str, limits: Limits | None = None) -> GitWorld:
    """A server on SQLite and a directory, or `elsewhere`: the URLs of a database and of objects."""
    if not elsewhere:
        return GitWorld(directory, limits=limits)
    database_url, objects_url = elsewhere
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    return GitWorld(directory, engine=engine, objects=open_objects(objects_url), limits=limits)


def main() -> None:
    directory, stage, *elsewhere = sys.argv[1:]
    world = doomed_world(Path(directory), *elsewhere)
    world.store.listen(Doomed(stage))
    if stage == "receiving":
        after(quarantine.Quarantine, "_check_size")
    elif stage == "indexed":
        after(quarantine, "index_pack")
    elif stage == "pack uploaded":
        if elsewhere:
            after(obstore, "put")
        else:
            after(packs, "_move_in")
    elif stage == "all uploaded":
        after(packs.Packs, "upload")
    elif stage == "refs written":
        after(refs, "write")
    print(world.port, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
