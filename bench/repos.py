"""Repositories by the ten thousand: how fast they are made, what each costs, and whether finding,
listing and pushing to one stays the same beside them.

Straight on the git store and the platform's database, SQLite with `synchronous=FULL`, in batches of
the size the API takes. Bounded in time: what is not made within it is not counted.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obstore.store import LocalStore

from bench.measure import Result, latency, most, percentile, rate
from ci_platform.git_door import record
from ci_platform.store import SqlStore, open_store
from git_store import FileEdit, GitStore, NewRepository, Pusher
from git_store.tables import metadata

BATCH = 100  # as the API takes
EMPTY = 50_000
FORKS = 50_000  # of a template with one commit
SINGLE = 500  # one by one: a transaction each
SECONDS_MAX = 60.0  # for either kind
LOOKS = 300
PUSHES = 100
PUSHER = Pusher("usr_bench", "bench")


@dataclass(frozen=True, slots=True)
class Place:
    directory: Path
    store: SqlStore
    git: GitStore

    def stored(self) -> int:
        """Bytes on disk, everything written out."""
        with self.store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    def files(self) -> int:
        return sum(1 for _ in self.directory.rglob("*"))


def repositories() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="repos-bench-") as directory:
        place = Path(directory)
        url = f"sqlite:///{place / 'sluice.db'}"
        with closing(open_store(url, key=os.urandom(32), beside=[metadata])) as store:
            objects = LocalStore(place / "objects", mkdir=True)
            clock = store.clock.now_ms
            git = GitStore(store.engine, objects, place / "work", clock=clock, record=record)
            with closing(git):
                return list(_all(Place(place, store, git)))


def _all(place: Place) -> list[Result]:
    template = place.git.repositories.create("bench", "template").id
    _push(place, template, 0)
    few = [NewRepository("bench", f"few-{number:03}") for number in range(200)]
    place.git.repositories.create_many(few)
    before = _looks(place, "few-000")
    push_before = _pushes(place, "early")
    single = _timed(lambda: [_create(place, f"single-{n}") for n in range(SINGLE)])
    rows = [
        rate("repositories made one by one", SINGLE, single[0], cpu_seconds=single[1]),
        *_many(place, "empty", EMPTY, None, bar=5_000),
        *_many(place, "forks of one commit", FORKS, template, bar=2_000),
    ]
    after = _looks(place, "empty-010777")
    push_after = _pushes(place, "late")
    for name, was, now in zip(("look one up", "list 100"), before, after, strict=True):
        rows += [latency(f"{name}, beside all", now), _ratio(name, was, now)]
    rows += [
        latency("push to one, beside all", push_after),
        _ratio("push to one", push_before, push_after, bar=1.2),
    ]
    return rows


def _many(place: Place, what: str, count: int, template: str | None, *, bar: float) -> list[Result]:
    """Make them, then forget what was noted for whoever would subscribe."""
    bytes_before, files_before = place.stored(), place.files()
    name = what.partition(" ")[0]
    end = time.monotonic() + SECONDS_MAX
    made, wall, cpu = 0, 0.0, 0.0
    while made < count and time.monotonic() < end:
        wanted = [
            NewRepository("bench", f"{name}-{made + n:06}") for n in range(min(BATCH, count - made))
        ]
        took, used = _timed(partial(place.git.repositories.create_many, wanted, template=template))
        made, wall, cpu = made + len(wanted), wall + took, cpu + used
    while pending := place.store.notices.pending(limit=500):
        place.store.notices.spread([(one, b"") for one in pending])
    each = (place.stored() - bytes_before) / made
    return [
        rate(f"{what}, made {BATCH} at a time", made, wall, bar=bar, cpu_seconds=cpu),
        Result(f"{what}, each on disk", each, "bytes", made),
        most(f"{what}, files made", place.files() - files_before, "", bar=1, n=made),
    ]


def _create(place: Place, name: str) -> str:
    return place.git.repositories.create("bench", name).id


def _push(place: Place, repository_id: str, number: int) -> None:
    place.git.commit(
        repository_id,
        [FileEdit("file", b"%d\n" % number)],
        branch="main",
        message="change",
        author="Bench <bench@example.org>",
        pusher=PUSHER,
    )


def _pushes(place: Place, name: str) -> list[float]:
    made = _create(place, name)
    return [_timed(partial(_push, place, made, n))[0] for n in range(PUSHES)]


def _looks(place: Place, name: str) -> tuple[list[float], list[float]]:
    """Seconds to look one up by its name, and to list a page from its name on."""
    found = place.git.repositories
    return (
        [_timed(partial(found.get, "bench", name))[0] for _ in range(LOOKS)],
        [_timed(lambda: found.list(after=f"bench/{name}", limit=100))[0] for _ in range(LOOKS)],
    )


def _ratio(what: str, was: list[float], now: list[float], *, bar: float = 3) -> Result:
    ratio = percentile(now, 0.5) / percentile(was, 0.5)
    return most(f"{what}: beside all, to beside few", ratio, "x", bar=bar)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used
