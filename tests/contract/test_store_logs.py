"""Log lines: the same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ci_platform.errors import InvalidRequest, RunNotFound, TooLarge
from ci_platform.model import RUN_LOG, LogLine, RunId
from ci_platform.ports import Store
from tests.contract.store_values import created, end, started

STEP = "sh:build"


def lines(first: int, last: int, *, text: str = "line {}") -> list[LogLine]:
    return [
        LogLine(
            number,
            1000 + number // 3,
            "stderr" if number % 5 == 0 else "stdout",
            text.format(number),
        )
        for number in range(first, last + 1)
    ]


def test_lines_read_back_as_they_were_written(store: Store) -> None:
    run = created(store)
    written = lines(1, 7)
    store.logs.append(run.id, STEP, written[:3])
    store.logs.append(run.id, STEP, written[3:])
    assert store.logs.read(run.id, STEP) == written
    assert store.logs.last(run.id, STEP) == 7


def test_of_a_log_that_several_write_no_line_is_lost(store: Store) -> None:
    """As that of a service which runs on two machines: both count from what was there at first."""
    run = created(store)
    store.logs.append(run.id, STEP, lines(1, 2), shared=True)
    store.logs.append(run.id, STEP, lines(1, 3, text="other {}"), shared=True)
    store.logs.append(run.id, STEP, lines(3, 4), shared=True)
    store.logs.append(run.id, STEP, lines(8, 8, text="other {}"), shared=True)
    told = [(line.number, line.text) for line in store.logs.read(run.id, STEP)]
    assert told == [
        *((1, "line 1"), (2, "line 2"), (3, "other 1"), (4, "other 2"), (5, "other 3")),
        *((6, "line 3"), (7, "line 4"), (8, "other 8")),
    ]
    assert store.logs.last(run.id, STEP) == 8


def test_any_text_survives(store: Store) -> None:
    run = created(store)
    strange = ["", "\0", "\ud800", "\x1b[31mred", "🦑", "a\u2028b", "x" * 300_000]
    written = [LogLine(number, 5, "note", text) for number, text in enumerate(strange, 1)]
    store.logs.append(run.id, STEP, written)
    assert store.logs.read(run.id, STEP) == written


def test_a_repeated_batch_changes_nothing(store: Store) -> None:
    run = created(store)
    store.logs.append(run.id, STEP, lines(1, 5))
    store.logs.append(run.id, STEP, lines(1, 5, text="again {}"))
    store.logs.append(run.id, STEP, lines(4, 7, text="more {}"))
    assert [line.text for line in store.logs.read(run.id, STEP)][3:] == [
        "line 4",
        "line 5",
        "more 6",
        "more 7",
    ]


def test_reading_goes_on_behind_a_line(store: Store) -> None:
    run = created(store)
    for first in range(1, 2500, 500):
        store.logs.append(run.id, STEP, lines(first, first + 499))
    assert store.logs.read(run.id, STEP, after=498, limit=4) == lines(499, 502)
    assert store.logs.read(run.id, STEP, after=2499, limit=4) == lines(2500, 2500)
    assert store.logs.read(run.id, STEP, after=2500) == []
    assert store.logs.read(run.id, STEP, limit=2000) == lines(1, 2000)


def test_a_reader_that_follows_sees_every_line_once(store: Store) -> None:
    run = created(store)
    store.logs.append(run.id, STEP, lines(1, 3000, text="{} " + "x" * 9000))
    seen: list[int] = []
    while found := store.logs.read(run.id, STEP, after=seen[-1] if seen else 0):
        seen += [line.number for line in found]
    assert seen == list(range(1, 3001))


def test_the_tail_is_the_last_lines_in_order(store: Store) -> None:
    run = created(store)
    store.logs.append(run.id, STEP, lines(1, 1500))
    store.logs.append(run.id, STEP, lines(1501, 1502))
    assert store.logs.tail(run.id, STEP, limit=4) == lines(1499, 1502)
    assert store.logs.tail(run.id, STEP, limit=10_000) == lines(1, 1502)


def test_lines_with_gaps_keep_their_numbers(store: Store) -> None:
    run = created(store)
    written = [LogLine(3, 1, "stdout", "a"), LogLine(9, 1, "stdout", "b")]
    store.logs.append(run.id, STEP, written)
    assert store.logs.read(run.id, STEP) == written
    assert store.logs.read(run.id, STEP, after=3) == written[1:]
    assert store.logs.tail(run.id, STEP, limit=1) == written[1:]


def test_each_step_has_a_log_of_its_own(store: Store) -> None:
    run, other = created(store, "1"), created(store, "2")
    store.logs.append(run.id, STEP, lines(1, 2))
    store.logs.append(run.id, RUN_LOG, lines(1, 4))
    store.logs.append(other.id, STEP, lines(1, 9))
    assert store.logs.steps(run.id) == {RUN_LOG: 4, STEP: 2}
    assert store.logs.read(run.id, "sh:other") == []
    assert store.logs.tail(run.id, "sh:other") == []
    assert store.logs.last(run.id, "sh:other") == 0
    assert store.logs.steps(RunId("run_none")) == {}


def test_no_lines_are_no_log(store: Store) -> None:
    run = created(store)
    store.logs.append(run.id, STEP, [])
    assert store.logs.steps(run.id) == {}


def test_logs_go_with_their_run(store: Store) -> None:
    run = started(store)
    store.logs.append(run.id, STEP, lines(1, 2))
    end(store, run)
    store.logs.append(run.id, STEP, lines(3, 3))  # what was still on its way
    assert store.logs.last(run.id, STEP) == 3
    store.runs.delete(run.id)
    assert store.logs.read(run.id, STEP) == []
    with pytest.raises(RunNotFound):
        store.logs.append(run.id, STEP, lines(1, 1))


def test_many_steps_may_write_at_once(store: Store) -> None:
    runs = [created(store, str(number)) for number in range(4)]

    def write(number: int) -> None:
        for first in range(1, 100, 10):
            store.logs.append(runs[number % 4].id, f"sh:{number}", lines(first, first + 9))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    for number in range(8):
        assert store.logs.read(runs[number % 4].id, f"sh:{number}") == lines(1, 100)


def test_bad_lines_are_refused_by_what_is_wrong(store: Store) -> None:
    run = created(store)
    with pytest.raises(InvalidRequest, match="ascend"):
        store.logs.append(run.id, STEP, [*lines(2, 3), *lines(3, 3)])
    with pytest.raises(InvalidRequest, match="ascend"):
        store.logs.append(run.id, STEP, lines(0, 3))
    with pytest.raises(TooLarge, match="10000"):
        store.logs.append(run.id, STEP, lines(1, 10_001))
    with pytest.raises(TooLarge, match="line 1 has"):
        store.logs.append(run.id, STEP, [LogLine(1, 1, "stdout", "x" * ((1 << 20) + 1))])
    with pytest.raises(InvalidRequest, match="step"):
        store.logs.append(run.id, "a\0", lines(1, 1))
    with pytest.raises(InvalidRequest, match="limit"):
        store.logs.read(run.id, STEP, limit=0)
    with pytest.raises(InvalidRequest, match="limit"):
        store.logs.tail(run.id, STEP, limit=10_001)
    assert store.logs.steps(run.id) == {}
