"""Group commit: who shares a transaction, and what an error in it does to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from ci_platform.errors import Conflict, SluiceError, StoreUnavailable
from ci_platform.store import writer
from ci_platform.store.database import Database
from ci_platform.store.writer import GroupCommit

PATIENCE_S = 20


class Numbers:
    """Writes numbers into a table; holds its first transaction open until it is told."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.batches: list[list[int]] = []
        self.rings = 0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.refused: dict[int, SluiceError] = {}
        self.group = GroupCommit[int, int](database, self._handle, committed=self._ring)

    def _ring(self, answers: Sequence[int | SluiceError]) -> None:
        self.rings += 1

    def _handle(self, connection: Connection, batch: Sequence[int]) -> list[int | SluiceError]:
        self.batches.append(list(batch))
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S)
        answers: list[int | SluiceError] = []
        for number in batch:
            if number in self.refused:
                answers.append(self.refused[number])
                continue
            if number == 666:
                raise ZeroDivisionError("a bug of ours")
            connection.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})
            answers.append(number * 10)
        return answers

    def written(self) -> list[int]:
        statement = text("SELECT n FROM numbers ORDER BY n")
        return list(self.database.read(lambda c: c.execute(statement).scalars().all()))

    def together(
        self, pool: ThreadPoolExecutor, first: int, rest: Sequence[int]
    ) -> list[Future[int]]:
        """Submit `first`, and `rest` while its transaction is open: they form the next batch."""
        futures = [pool.submit(self.group.submit, first)]
        assert self.entered.wait(PATIENCE_S)
        futures += [pool.submit(self.group.submit, number) for number in rest]
        while len(self.group._queue) < len(rest):
            threading.Event().wait(0.001)
        self.go_on.set()
        return futures


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[Numbers]:
    with closing(Database(f"sqlite:///{tmp_path}/x.db")) as database:
        create = text("CREATE TABLE numbers (n INTEGER PRIMARY KEY CHECK (n < 1000))")
        database.write(lambda connection: connection.execute(create))
        yield Numbers(database)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def outcome(future: Future[int]) -> int | str:
    error = future.exception(PATIENCE_S)
    return type(error).__name__ if error is not None else future.result()


def test_those_who_come_during_a_commit_share_the_next(
    numbers: Numbers, pool: ThreadPoolExecutor
) -> None:
    futures = numbers.together(pool, 1, range(2, 12))
    assert [outcome(future) for future in futures] == [number * 10 for number in range(1, 12)]
    assert [sorted(batch) for batch in numbers.batches] == [[1], list(range(2, 12))]
    assert numbers.rings == 2
    assert numbers.written() == list(range(1, 12))


def test_a_lone_caller_does_its_own_work(numbers: Numbers) -> None:
    numbers.go_on.set()
    before = threading.active_count()
    assert [numbers.group.submit(number) for number in (1, 2)] == [10, 20]
    assert threading.active_count() == before
    assert numbers.batches == [[1], [2]]


def test_a_refused_request_is_refused_alone(numbers: Numbers, pool: ThreadPoolExecutor) -> None:
    numbers.refused[3] = Conflict("not three")
    futures = numbers.together(pool, 1, [2, 3, 4])
    assert [outcome(future) for future in futures] == [10, 20, "Conflict", 40]
    assert numbers.written() == [1, 2, 4]


def test_a_request_the_database_refuses_harms_none_beside_it(
    numbers: Numbers, pool: ThreadPoolExecutor
) -> None:
    futures = numbers.together(pool, 1, [2, 5000, 4])
    assert [outcome(future) for future in futures] == [10, 20, "Conflict", 40]
    assert numbers.written() == [1, 2, 4]


def test_a_bug_reaches_every_caller_and_nothing_is_written(
    numbers: Numbers, pool: ThreadPoolExecutor
) -> None:
    futures = numbers.together(pool, 1, [2, 666])
    assert [outcome(future) for future in futures] == [10] + ["ZeroDivisionError"] * 2
    assert numbers.written() == [1]
    assert numbers.group.submit(7) == 70


def test_a_batch_has_a_most(
    numbers: Numbers, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BATCH_MAX", 4)
    futures = numbers.together(pool, 1, range(2, 12))
    assert [outcome(future) for future in futures] == [number * 10 for number in range(1, 12)]
    assert [len(batch) for batch in numbers.batches] == [1, 4, 4, 2]


def test_a_batch_has_a_most_in_bytes_but_holds_one_larger(
    numbers: Numbers, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BATCH_BYTES_MAX", 10)
    submit: Callable[[int], int] = numbers.group.submit
    monkeypatch.setattr(numbers.group, "submit", lambda number: submit(number, size=7))  # type: ignore[call-arg]
    futures = numbers.together(pool, 1, [2, 3])
    assert [outcome(future) for future in futures] == [10, 20, 30]
    assert [len(batch) for batch in numbers.batches] == [1, 1, 1]


def test_a_full_queue_refuses(
    numbers: Numbers, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "QUEUED_MAX", 0)
    with pytest.raises(StoreUnavailable, match="waiting already"):
        numbers.group.submit(1)


def test_an_interrupted_leader_leaves_nobody_waiting(
    numbers: Numbers, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = numbers.database.write, []

    def interrupted(work: Callable[[Connection], object], *, durable: bool) -> object:
        calls.append(work)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(work, durable=durable)

    monkeypatch.setattr(numbers.database, "write", interrupted)
    futures = numbers.together(pool, 1, [2, 3, 4])
    outcomes = sorted(str(outcome(future)) for future in futures)
    assert outcomes == ["10", "KeyboardInterrupt", "StoreUnavailable", "StoreUnavailable"]
    assert numbers.group.submit(5) == 50


def test_many_threads_get_what_is_theirs(numbers: Numbers, pool: ThreadPoolExecutor) -> None:
    numbers.go_on.set()
    assert list(pool.map(numbers.group.submit, range(500))) == [n * 10 for n in range(500)]
    assert numbers.written() == list(range(500))
