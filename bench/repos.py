"""Repositories by the million: how fast they are made, what each costs, and whether finding,
listing and pushing to one stays the same beside them.

Straight on the git store and the platform's database, SQLite with `synchronous=FULL`, in batches of
the size the API takes, and once through the API of a real server. What a deployment with few does
is measured turn by turn with the one that has many, so that both meet the same machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obstore.store import LocalStore

from bench.measure import Result, latency, most, percentile, rate
from bench.server import Server, connect, serving
from ci_platform.git_door import record
from ci_platform.store import SqlStore, open_store
from git_store import FileEdit, GitStore, NewRepository, Pusher
from git_store.tables import metadata

BATCH = 100  # as the API takes
EMPTY = 1_000_000
FORKS = 100_000  # of a template with one commit
COMMITTED = 1000  # made one by one, each with a commit of its own
ASKED = 20_000  # through the API, of either kind
CONNECTIONS = 2
SECONDS_MAX = 300.0  # for either kind
FEW = 200
LOOKS = 300
PUSHES = 200  # each the first to a repository
PUSHER = Pusher("usr_bench", "bench")


@dataclass(frozen=True, slots=True)
class Place:
    directory: Path
    store: SqlStore
    git: GitStore

    def stored(self) -> int:
        """Bytes on disk, everything written out; without pages of the database that hold nothing
        any more."""
        with self.store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            (free,) = connection.exec_driver_sql("PRAGMA freelist_count").one()
            (page,) = connection.exec_driver_sql("PRAGMA page_size").one()
        found = sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())
        return int(found - free * page)

    def files(self) -> int:
        return sum(1 for _ in self.directory.rglob("*"))


@contextmanager
def _place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="repos-bench-") as directory:
        place = Path(directory)
        url = f"sqlite:///{place / 'sluice.db'}"
        with closing(open_store(url, key=os.urandom(32), beside=[metadata])) as store:
            objects = LocalStore(place / "objects", mkdir=True)
            clock = store.clock.now_ms
            git = GitStore(store.engine, objects, place / "work", clock=clock, record=record)
            with closing(git):
                yield Place(place, store, git)


def repositories() -> list[Result]:
    with _place() as few, _place() as many:
        few.git.repositories.create_many(_named("empty", range(FEW)))
        rows = list(_made(many))
        count = next(row.n for row in rows if row.what.startswith("empty"))
        rows += _beside(few, many, count)
    with serving(workers=1) as server:
        return [*rows, *_asked(server)]


def _made(place: Place) -> Iterator[Result]:
    template = place.git.repositories.create("bench", "template").id
    _push(place, "template")
    wall, cpu = _timed(partial(_make_committed, place))
    yield rate("made with a commit, one by one", COMMITTED, wall, cpu_seconds=cpu)
    yield from _many(place, "empty", EMPTY, None)
    yield from _many(place, "forks of one commit", FORKS, template)


def _many(place: Place, what: str, count: int, template: str | None) -> Iterator[Result]:
    """Make them, then forget what was noted for whoever would subscribe."""
    bytes_before, files_before = place.stored(), place.files()
    name = what.partition(" ")[0]
    end = time.monotonic() + SECONDS_MAX
    made, wall, cpu = 0, 0.0, 0.0
    while made < count and time.monotonic() < end:
        wanted = _named(name, range(made, min(made + BATCH, count)))
        took, used = _timed(partial(place.git.repositories.create_many, wanted, template=template))
        made, wall, cpu = made + len(wanted), wall + took, cpu + used
    yield rate(f"{what}, made {BATCH} at a time", made, wall, bar=5_000, cpu_seconds=cpu)
    wall, cpu = _timed(partial(_forget_notices, place.store))
    yield rate(f"{what}, their notices spread", made, wall, cpu_seconds=cpu)
    each = (place.stored() - bytes_before) / made
    yield Result(f"{what}, each on disk", each, "bytes", made)
    yield most(f"{what}, files made", place.files() - files_before, "", bar=1, n=made)


def _forget_notices(store: SqlStore) -> None:
    while pending := store.notices.pending(limit=500):
        store.notices.spread([(one, b"") for one in pending])


def _beside(few: Place, many: Place, count: int) -> Iterator[Result]:
    """The same asked of both, turn by turn, and of repositories far from each other."""
    apart = count // LOOKS
    kinds: tuple[tuple[str, int, float, Callable[[Place, int], object]], ...] = (
        ("look one up", LOOKS, 3, lambda at, n: at.git.repositories.get("bench", _name(n))),
        ("list 100", LOOKS, 3, lambda at, n: at.git.repositories.list(after=f"bench/{_name(n)}")),
        ("push to one", PUSHES, 1.2, lambda at, n: _push(at, _name(n))),
    )
    for what, times, bar, work in kinds:
        was, now = [], []
        for number in range(times):
            was.append(_timed(partial(work, few, number % FEW))[0])
            now.append(_timed(partial(work, many, number * apart))[0])
        yield latency(f"{what}, beside few", was)
        yield latency(f"{what}, beside many", now)
        ratio = percentile(now, 0.5) / percentile(was, 0.5)
        yield most(f"{what}: beside many, to beside few", ratio, "x", bar=bar, n=times)


def _asked(server: Server) -> Iterator[Result]:
    """Of a real server, by several connections at once."""
    server.create_repository("template", "")
    for what, template in (("empty", None), ("forks", "bench/template")):
        cpu, began = server.cpu_seconds(), time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for made in pool.map(partial(_ask, server, what, template), range(CONNECTIONS)):
                assert made == ASKED // CONNECTIONS, made
        wall, cpu = time.perf_counter() - began, server.cpu_seconds() - cpu
        name = f"{what}, asked for by {CONNECTIONS} clients at once"
        yield rate(name, ASKED, wall, bar=5_000, cpu_seconds=cpu)


def _ask(server: Server, what: str, template: str | None, client: int) -> int:
    made = 0
    with closing(connect(server.data, server.process, server.url, server.token).http) as http:
        for first in range(0, ASKED // CONNECTIONS, BATCH):
            names = [f"{what}-{client}-{first + number}" for number in range(BATCH)]
            wanted = [{"owner": "bench", "name": name} for name in names]
            body = {"repositories": wanted, "template": template}
            answer = http.post("/api/v1/repos/batch", json=body)
            answer.raise_for_status()
            made += answer.json()["created"]
    return made


def _name(number: int) -> str:
    return f"empty-{number:07}"


def _named(kind: str, numbers: range) -> list[NewRepository]:
    return [NewRepository("bench", f"{kind}-{number:07}") for number in numbers]


def _make_committed(place: Place) -> None:
    for number in range(COMMITTED):
        place.git.repositories.create("bench", f"single-{number}")
        _push(place, f"single-{number}")


def _push(place: Place, name: str) -> None:
    place.git.commit(
        place.git.repositories.get("bench", name).id,
        [FileEdit("file", b"%d\n" % time.perf_counter_ns())],
        branch="main",
        message="change",
        author="Bench <bench@example.org>",
        pusher=PUSHER,
    )


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used
