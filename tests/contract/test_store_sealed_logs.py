"""Logs that have ended, as objects: read the same as before, from any process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import obstore
import pytest
import zstandard
from obstore.store import LocalStore, ObjectStore

from ci_platform.effects import CloseOperation
from ci_platform.errors import StoreUnavailable
from ci_platform.model import LogLine, RunId
from ci_platform.store import SqlStore, open_store, sealed_logs
from tests.contract.conftest import KEY
from tests.contract.store_values import (
    LEASE_MS,
    WORKER,
    FakeClock,
    append,
    created,
    end,
    operation,
    started,
)
from tests.s3 import S3

STEP = "sh:build"


@pytest.fixture
def objects(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> ObjectStore:
    """As deployments have them: a directory beside SQLite, S3 beside PostgreSQL."""
    if database_url.startswith("sqlite"):
        return LocalStore(tmp_path / "objects", mkdir=True)
    bucket: S3 = request.getfixturevalue("s3")
    return bucket.open()


@pytest.fixture
def sealing(database_url: str, clock: FakeClock, objects: ObjectStore) -> Iterator[SqlStore]:
    with closing(open_store(database_url, clock=clock, key=KEY, objects=objects)) as opened:
        yield opened


def lines(first: int, last: int, *, seed: int = 1) -> list[LogLine]:
    chance = random.Random(seed + first)
    return [
        LogLine(
            n, 1000 + n // 7, chance.choice(["stdout", "stderr"]), f"{n} \x1b[1m{'x' * (n % 200)}ü"
        )
        for n in range(first, last + 1)
    ]


def write(store: SqlStore, run_id: RunId, written: list[LogLine]) -> None:
    for start in range(0, len(written), 700):
        store.logs.append(run_id, STEP, written[start : start + 700])


def rows(store: SqlStore) -> int:
    with store.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM log_chunks").scalar_one())


def stored(objects: ObjectStore) -> list[str]:
    return sorted(item["path"] for page in obstore.list(objects, "logs/") for item in page)


def test_a_sealed_log_reads_as_before_and_its_rows_are_gone(
    sealing: SqlStore, objects: ObjectStore
) -> None:
    run, written = created(sealing), lines(1, 5000)
    write(sealing, run.id, written)
    assert sealing.logs.seal(run.id, STEP)
    assert rows(sealing) == 0
    logs = sealing.logs
    assert logs.read(run.id, STEP, limit=10_000) == written
    for after, limit in ((0, 1), (999, 2), (1000, 1), (1234, 3000), (4999, 10)):
        assert logs.read(run.id, STEP, after=after, limit=limit) == written[after : after + limit]
    assert logs.read(run.id, STEP, after=5000) == []
    assert logs.tail(run.id, STEP, limit=1500) == written[-1500:]
    assert logs.last(run.id, STEP) == 5000
    assert logs.steps(run.id) == {STEP: 5000}
    [path] = stored(objects)
    whole = bytes(obstore.get(objects, path).bytes())
    reader = zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True)
    assert reader.read(20).startswith(b"[[")


def test_another_attempt_goes_on_behind_it_and_is_sealed_too(
    sealing: SqlStore, objects: ObjectStore
) -> None:
    run, written = created(sealing), lines(1, 9000)
    write(sealing, run.id, written[:3000])
    assert sealing.logs.seal(run.id, STEP)
    write(sealing, run.id, written[3000:])
    for again in range(2):
        found: list[LogLine] = []
        while more := sealing.logs.read(run.id, STEP, after=len(found), limit=2500):
            found += more
        assert found == written
        assert sealing.logs.tail(run.id, STEP, limit=7000) == written[-7000:]
        assert sealing.logs.tail(run.id, STEP, limit=10) == written[-10:]
        assert sealing.logs.seal(run.id, STEP) is (again == 0)
    first, second = stored(objects)
    used = sealing.runs.layers_used([first.removeprefix("logs/"), second.removeprefix("logs/")])
    assert len(used) == 1, "the sweep may take the first object, and not the second"


def test_a_small_log_stays_in_the_database(sealing: SqlStore, objects: ObjectStore) -> None:
    run = created(sealing)
    sealing.logs.append(run.id, STEP, lines(1, 10))
    assert not sealing.logs.seal(run.id, STEP)
    assert not sealing.logs.seal(run.id, "sh:none")
    assert stored(objects) == []


def test_a_log_sealed_by_two_at_once_is_whole(
    sealing: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = created(sealing), lines(1, 3000)
    write(sealing, run.id, written)
    put = sealed_logs.SealedLogs._put

    def late(self: sealed_logs.SealedLogs, digest: str, path: Path) -> None:
        put(self, digest, path)
        monkeypatch.setattr(sealed_logs.SealedLogs, "_put", put)
        assert sealing.logs.seal(run.id, STEP)

    monkeypatch.setattr(sealed_logs.SealedLogs, "_put", late)
    assert not sealing.logs.seal(run.id, STEP)
    assert sealing.logs.read(run.id, STEP, limit=10_000) == written


def test_a_log_whose_object_is_lost_says_so(sealing: SqlStore, objects: ObjectStore) -> None:
    run = created(sealing)
    write(sealing, run.id, lines(1, 3000))
    sealing.logs.seal(run.id, STEP)
    obstore.delete(objects, stored(objects))
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        sealing.logs.read(run.id, STEP)


def test_another_process_reads_it(database_url: str, clock: FakeClock, tmp_path: Path) -> None:
    run_id = RunId("run_one")
    written = lines(1, 3000)
    for turn in range(2):
        objects = LocalStore(tmp_path / "objects", mkdir=True)
        with closing(open_store(database_url, clock=clock, key=KEY, objects=objects)) as opened:
            if turn == 0:
                created(opened)
                write(opened, run_id, written)
                assert opened.logs.seal(run_id, STEP)
            assert opened.logs.read(run_id, STEP, limit=10_000) == written


def test_logs_of_ended_commands_and_runs_are_found_until_they_are_sealed(
    sealing: SqlStore,
) -> None:
    run = started(sealing)
    append(sealing, run, fence=run.fence, effects=[operation()])
    other = created(sealing, "two")
    small = created(sealing, "three")
    for one in (run, other):
        write(sealing, one.id, lines(1, 2000))
        sealing.logs.append(one.id, "$run", lines(1, 2000))
    write(sealing, small.id, lines(1, 10))
    assert sealing.logs.unsealed() == []  # all of them go on
    (held,) = sealing.operations.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    assert sealing.logs.unsealed() == []
    run = sealing.runs.get(run.id)
    append(sealing, run, fence=run.fence, effects=[CloseOperation(held.id, held.fence)])
    assert sealing.logs.unsealed() == [(run.id, STEP)]
    end(sealing, other)
    end(sealing, small)
    wanted = [(run.id, STEP), (other.id, "$run"), (other.id, STEP)]
    assert sealing.logs.unsealed() == wanted
    assert sealing.logs.unsealed(limit=1) == wanted[:1]
    assert all(sealing.logs.seal(*one) for one in wanted)
    assert sealing.logs.unsealed() == []
    sealing.logs.append(run.id, STEP, lines(2001, 4000))
    assert sealing.logs.unsealed() == [(run.id, STEP)]
