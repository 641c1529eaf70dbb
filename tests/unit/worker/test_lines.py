"""Output on its way to the log: split, decoded, numbered, bounded, batched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ci_platform.errors import LeaseLost, StoreUnavailable
from ci_platform.model import LogLine, OperationId, RunId
from ci_platform.ports.logs import Held
from ci_platform.testing import FakeClock, InMemoryStore
from ci_platform.worker.lines import (
    AWAY_SECONDS,
    BATCH_LINES_MAX,
    FLOOD_LINES,
    FLOOD_LINES_PER_SECOND,
    HELD_CHARS_MAX,
    LINE_CHARS_MAX,
    WRITE_LINES_MAX,
    Spool,
    StepLog,
)

RUN = RunId("run_1")


class Lines:
    """A LogStore that remembers, and can be away."""

    def __init__(self) -> None:
        self.kept: list[LogLine] = []
        self.batches = 0
        self.largest = 0
        self.away = False
        self.held: Held | None = None  # who may write, if somebody says who it is

    def append(
        self,
        run_id: RunId,
        step: str,
        lines: Sequence[LogLine],
        *,
        held: Held | None = None,
        shared: bool = False,
    ) -> None:
        if self.away:
            raise StoreUnavailable
        if held is not None and held != self.held:
            raise LeaseLost("another worker has it")
        self.batches += 1
        self.largest = max(self.largest, len(lines))
        self.kept += [line for line in lines if line.number > len(self.kept)]

    def last(self, run_id: RunId, step: str) -> int:
        return len(self.kept)

    def read(self, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
        return self.kept[after : after + limit]

    def tail(self, run_id: RunId, step: str, *, limit: int = 1000) -> list[LogLine]:
        return self.kept[-limit:]

    def seal(self, run_id: RunId, step: str) -> bool:
        return False

    def steps(self, run_id: RunId) -> dict[str, int]:
        return {}

    def unsealed(self, *, limit: int = 100) -> Sequence[tuple[RunId, str]]:
        return []

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.kept]


def step_log(store: Lines, bytes_max: int = 1 << 20) -> StepLog:
    return StepLog(store, FakeClock(), RUN, "sh:test", bytes_max)


def test_lines_are_split_wherever_the_pieces_break() -> None:
    store = Lines()
    log = step_log(store)
    for piece in (b"one\ntw", b"o\r\n", b"\n", b"three"):
        log.write("stdout", piece)
    log.close()
    assert store.texts == ["one", "two", "", "three"]
    assert [line.number for line in store.kept] == [1, 2, 3, 4]


@given(st.text(alphabet="aé€😀\n", max_size=200), st.integers(1, 7))
def test_text_comes_through_whole_however_its_bytes_are_cut(text: str, size: int) -> None:
    store = Lines()
    log = step_log(store)
    data = text.encode()
    for start in range(0, len(data), size):
        log.write("stdout", data[start : start + size])
    log.close()
    assert "\n".join(store.texts) == text.removesuffix("\n")


def test_broken_utf8_and_nul_are_replaced_and_not_lost() -> None:
    store = Lines()
    log = step_log(store)
    log.write("stdout", b"a\xffb\0c\xe2\x82\n")
    log.write("stdout", b"d\xe2")
    log.close()
    assert store.texts == ["a\ufffdb\ufffdc\ufffd", "d\ufffd"]


def test_streams_do_not_mix_within_a_line() -> None:
    store = Lines()
    log = step_log(store)
    log.write("stdout", b"out ")
    log.write("stderr", b"err\n")
    log.write("stdout", b"put\n")
    assert not store.kept
    log.flush()
    assert [(line.stream, line.text) for line in store.kept] == [
        ("stderr", "err"),
        ("stdout", "out put"),
    ]


def test_an_endless_line_goes_on_in_the_next_one() -> None:
    store = Lines()
    log = step_log(store)
    log.write("stdout", b"x" * (LINE_CHARS_MAX + 5))
    log.close()
    assert [len(text) for text in store.texts] == [LINE_CHARS_MAX, 5]


def test_output_over_the_limit_is_cut_and_that_is_said_once() -> None:
    store = Lines()
    log = step_log(store, bytes_max=10)
    log.write("stdout", b"12345\n")
    log.write("stdout", b"6789abcdef\n")
    log.write("stdout", b"more\n")
    log.close()
    assert store.texts == ["12345", "6789", "output over 10 bytes is not kept (log_bytes)"]


def test_a_flood_is_written_in_batches_as_it_comes() -> None:
    store = Lines()
    log = step_log(store)
    log.write("stdout", b"x\n" * (BATCH_LINES_MAX + 1))
    assert len(store.kept) == BATCH_LINES_MAX + 1
    assert store.batches == 1


def test_many_short_lines_of_one_read_are_written_in_writes_a_store_takes() -> None:
    store = Lines()
    log = step_log(store)
    log.write("stdout", "\n" * 32_768)
    log.close()
    assert len(store.kept) == 32_768
    assert store.largest == WRITE_LINES_MAX


def test_numbers_go_on_from_what_the_log_has_already() -> None:
    store = Lines()
    first = step_log(store)
    first.write("stdout", "one\n")
    first.close()
    second = step_log(store)
    second.write("stdout", "two\n")
    second.close()
    assert [line.number for line in store.kept] == [1, 2]


def test_lines_that_could_not_be_written_are_written_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Lines()
    spool = Spool(store, FakeClock(), bytes_max=1_000)
    log = spool.open(RUN, "sh:test")
    log.write("stdout", "one\n")
    store.away = True
    spool.flush()
    assert "waits" in caplog.text
    store.away = False
    log.write("stdout", "two\n")
    spool.flush()
    assert store.texts == ["one", "two"]


def test_a_closed_log_is_flushed_and_forgotten() -> None:
    clock = FakeClock()
    store = InMemoryStore(clock)
    spool = Spool(store.logs, clock, bytes_max=1_000)
    assert spool.open_logs == 0
    log = spool.open(RUN, "sh:test")
    assert spool.open_logs == 1
    spool.close(log)
    assert spool.open_logs == 0


def test_lines_of_a_command_that_has_gone_to_another_worker_are_refused() -> None:
    store = Lines()
    store.held = Held(OperationId("op_1"), 1)
    log = StepLog(store, FakeClock(), RUN, "sh:test", 1 << 20, store.held)
    log.write("stdout", b"mine\n")
    log.flush()
    store.held = Held(OperationId("op_1"), 2)
    log.write("stdout", b"late\n")
    with pytest.raises(LeaseLost):
        log.flush()
    with pytest.raises(LeaseLost):
        log.write("stdout", b"later\n")
    log.note("the end")
    log.close()
    assert store.texts == ["mine"]


def test_a_flood_while_the_store_is_away_slows_its_command_down_and_never_stops_it() -> None:
    store, pauses = Lines(), list[float]()
    log = StepLog(store, FakeClock(), RUN, "sh:test", 1 << 30, pause=pauses.append)
    store.away = True
    line = b"x" * 1023 + b"\n"
    for _ in range(400):
        log.write("stdout", line * 64)
    waiting = [call for call in pauses if call == AWAY_SECONDS]
    assert len(waiting) > 390
    held = len(log._pending)
    assert HELD_CHARS_MAX // 1024 <= held <= HELD_CHARS_MAX // 1024 + 64
    store.away = False
    log.close()
    assert store.texts[:held] == ["x" * 1023] * held
    missing = (400 * 64 - held) * 1024
    assert store.texts[held:] == [f"{missing:,} bytes are missing here: the store was away"]
    assert pauses == waiting


def test_lines_that_begin_and_end_a_group_are_marked() -> None:
    store = Lines()
    log = step_log(store)
    log.write("stdout", b"::group::Install\nfetching\n::endgroup::\n::group\n")
    log.close()
    assert [(line.stream, line.text) for line in store.kept] == [
        ("group", "Install"),
        ("stdout", "fetching"),
        ("endgroup", ""),
        ("stdout", "::group"),
    ]


def test_a_flood_of_tiny_lines_slows_its_command_down() -> None:
    pauses = list[float]()
    store = Lines()
    log = StepLog(store, FakeClock(), RUN, "sh:test", 1 << 30, pause=pauses.append)
    for _ in range(4):
        log.write("stdout", b"y\n" * 25_000)
    log.close()
    assert pauses == [25_000 / FLOOD_LINES_PER_SECOND] * 4
    assert len(store.kept) == 100_000
    assert store.kept[-1] == LogLine(100_000, FakeClock().now_ms(), "stdout", "y")


def test_output_in_lines_of_ordinary_length_is_not_slowed_down() -> None:
    pauses = list[float]()
    log = StepLog(Lines(), FakeClock(), RUN, "sh:test", 1 << 30, pause=pauses.append)
    log.write("stdout", b"a line as compilers and tests print it\n" * 100_000)
    log.write("stdout", b"y\n" * (FLOOD_LINES - 1))
    assert pauses == []
