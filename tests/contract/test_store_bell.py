"""Bells: rung after commits, heard by other threads and, with a database, by other processes."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ci_platform.model import Draft, EntryKind, LogLine, RunState
from ci_platform.ports import Store
from ci_platform.scheduling import Place
from ci_platform.store import SqlStore
from ci_platform.store.bell import Belfry
from ci_platform.store.datagrams import DatagramWire
from tests.contract.conftest import OpenStore
from tests.contract.store_values import (
    LEASE_MS,
    WORKER,
    FakeClock,
    append,
    claimed,
    created,
    end,
    new_run,
    started,
    update,
)

PATIENCE_S = 10  # until a ring that must come; a ring that must not is not waited for


def test_a_bell_is_silent_until_it_is_rung_and_forgets_by_hearing(store: Store) -> None:
    bell = store.bell()
    assert not bell.wait(0)
    bell.ring()
    bell.ring()
    assert bell.wait(PATIENCE_S)
    assert not bell.wait(0)
    bell.close()


def test_every_commit_that_matters_rings(store: Store, clock: FakeClock) -> None:
    bell = store.bell()
    run = created(store)
    assert bell.wait(0)
    store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    assert bell.wait(0)
    run = append(store, store.runs.get(run.id)).run
    assert bell.wait(0)
    store.logs.append(run.id, "$run", [LogLine(1, 1, "stdout", "x")])
    assert bell.wait(0)
    clock.advance(LEASE_MS)
    store.runs.expire()
    assert bell.wait(0)
    run = end(store, store.runs.get(run.id))
    assert bell.wait(0)
    store.runs.delete(run.id)
    assert bell.wait(0)
    store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    store.runs.expire()
    assert not bell.wait(0)


def test_workers_hear_only_of_what_may_be_due(store: Store, clock: FakeClock) -> None:
    bell = store.bell(work=True)
    if isinstance(store, SqlStore) and store.engine.dialect.name == "postgresql":
        assert bell.wait(PATIENCE_S), "it listens from here on: what was rung before is not known"
    run = created(store)
    assert bell.wait(0)
    store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    append(store, store.runs.get(run.id))
    store.logs.append(run.id, "$run", [LogLine(1, 1, "stdout", "x")])
    heard = bell.wait(0)
    assert not heard or not isinstance(store, SqlStore), "the run is still its worker's"
    clock.advance(LEASE_MS)
    store.runs.expire()
    assert bell.wait(0)
    store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    end(store, store.runs.get(run.id))
    assert bell.wait(0), "its end may let another begin"


@pytest.mark.parametrize("group", [None, "deploy"])
def test_an_end_that_a_worker_writes_is_work_only_where_somebody_may_wait_for_the_place(
    sql_store: SqlStore, group: str | None
) -> None:
    sql_store.runs.create([replace(new_run(), place=Place(group))])
    run = claimed(sql_store)
    bell = sql_store.bell(work=True)
    while bell.wait(0.05):  # on PostgreSQL, what it could not know of before it listened
        pass
    ended = Draft(EntryKind.RUN_PASSED)
    append(sql_store, run, ended, to=update(run, RunState.PASSED), fence=run.fence)
    assert bell.wait(0) is (group is not None)


def test_a_waiting_thread_wakes(store: Store) -> None:
    bell = store.bell()
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(bell.wait, PATIENCE_S)
        created(store)
        assert heard.result(PATIENCE_S)


def test_each_listener_hears_and_a_closed_one_does_not(store: Store) -> None:
    one, two, closed = store.bell(), store.bell(), store.bell()
    closed.close()
    store.runs.create([])
    created(store)
    assert one.wait(0) and two.wait(0)
    assert not closed.wait(0)


def test_a_commit_is_heard_through_another_connection(open_sql_store: OpenStore) -> None:
    here, there = open_sql_store(), open_sql_store()
    bell = there.bell()
    while bell.wait(0.05):  # what it could not know of before it listened
        pass
    created(here)
    assert bell.wait(PATIENCE_S)


def test_a_burst_is_heard_and_costs_the_committer_nothing_to_wait_for(
    open_sql_store: OpenStore,
) -> None:
    here, there = open_sql_store(), open_sql_store()
    bell = there.bell()
    run = started(here)
    for _ in range(50):
        run = append(here, run, fence=run.fence).run
    assert bell.wait(PATIENCE_S)


def test_committing_goes_on_after_the_store_was_closed_for_ringing(sql_store: SqlStore) -> None:
    bell = sql_store.bell()
    sql_store.close()
    sql_store.close()
    bell.ring()
    assert bell.wait(0)


# --- datagrams ------------------------------------------------------------------------------------


def test_the_socket_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(tmp_path / "1-dead.bell"))
    dead.close()
    wire = DatagramWire(tmp_path)
    wire.send()
    assert [name for name in os.listdir(tmp_path) if "dead" in name] == []
    wire.stop()
    wire.close()
    assert os.listdir(tmp_path) == []


def test_a_listener_that_never_reads_blocks_nobody(tmp_path: Path) -> None:
    silent, loud = DatagramWire(tmp_path), DatagramWire(tmp_path)
    silent.listen()
    for _ in range(5000):
        loud.send()
    assert silent.receive(PATIENCE_S)
    assert not silent.receive(0)
    for wire in (silent, loud):
        wire.stop()
        wire.close()
        wire.send()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    one, two = DatagramWire(deep), DatagramWire(deep)
    two.listen()
    one.send()
    assert two.receive(PATIENCE_S)
    for wire in (one, two):
        wire.stop()
        wire.close()


def test_without_a_wire_the_own_threads_still_hear() -> None:
    def broken() -> DatagramWire:
        raise PermissionError("no sockets here")

    belfry = Belfry(broken)
    bell = belfry.listener()
    belfry.ring()
    assert bell.wait(0)
    belfry.close()


@pytest.mark.parametrize("rung", [True, False])
def test_closing_ends_the_receiving_thread(open_sql_store: OpenStore, rung: bool) -> None:
    store = open_sql_store()
    store.bell()
    if rung:
        created(store)
    before = threading.active_count()
    store.close()
    assert threading.active_count() < before
