from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ci_platform import live as module
from ci_platform.errors import TooMany
from ci_platform.live import Live

pytestmark = pytest.mark.anyio


class FakeBell:
    """Rings by hand."""

    def __init__(self) -> None:
        self.rung = threading.Event()
        self.closed = False

    def ring(self) -> None:
        self.rung.set()

    def wait(self, timeout_s: float) -> bool:
        if not self.rung.wait(min(timeout_s, 0.02)):
            return False
        self.rung.clear()
        return True

    def close(self) -> None:
        self.closed = True


class Tower:
    def __init__(self) -> None:
        self.bells: list[FakeBell] = []

    def open(self) -> FakeBell:
        self.bells.append(FakeBell())
        return self.bells[-1]

    async def opened(self, count: int) -> FakeBell:
        async with asyncio.timeout(5):
            while len(self.bells) < count:
                await asyncio.sleep(0.001)
        return self.bells[-1]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def gone(bell: FakeBell) -> bool:
    async with asyncio.timeout(5):
        while not bell.closed:
            await asyncio.sleep(0.001)
    return True


async def test_one_ring_wakes_every_stream() -> None:
    tower = Tower()
    live = Live(tower.open)
    with live.listen() as one, live.listen() as two:
        bell = await tower.opened(1)
        bell.ring()
        assert await one.wait(5) and await two.wait(5)
        assert len(tower.bells) == 1
    live.close()
    assert bell.closed


async def test_a_ring_while_a_stream_reads_is_not_missed() -> None:
    tower = Tower()
    live = Live(tower.open)
    with live.listen() as one:
        (await tower.opened(1)).ring()
        async with asyncio.timeout(5):
            while not one._rung.is_set():
                await asyncio.sleep(0.001)
        assert await one.wait(5)
        assert not await one.wait(0.01)
    live.close()


async def test_nothing_listens_when_nobody_does_and_it_begins_again() -> None:
    tower = Tower()
    live = Live(tower.open)
    assert tower.bells == []
    with live.listen():
        first = await tower.opened(1)
    assert await gone(first)
    with live.listen() as again:
        (await tower.opened(2)).ring()
        assert await again.wait(5)
    live.close()


async def test_a_bell_that_breaks_is_opened_again_by_the_next_stream() -> None:
    class Broken(FakeBell):
        def wait(self, timeout_s: float) -> bool:
            raise RuntimeError("the database is away")

    tower = Tower()
    broken = Broken()
    bells = iter([broken])
    live = Live(lambda: next(bells, None) or tower.open())
    with live.listen() as one:
        assert await gone(broken)
        assert not await one.wait(0.01)  # its slow poll goes on
        await asyncio.to_thread(_dead, live)
        with live.listen():
            (await tower.opened(1)).ring()
            assert await one.wait(5)
    live.close()


def _dead(live: Live) -> None:
    thread = live._thread
    if thread is not None:
        thread.join(5)


async def test_streams_of_a_process_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBSCRIBERS_MAX", 1)
    live = Live(Tower().open)
    live.check_room()
    with live.listen(), pytest.raises(TooMany, match="follows 1 streams"):
        live.check_room()
    live.close()


async def test_close_does_not_wait_for_streams() -> None:
    live = Live(Tower().open)
    with live.listen():
        began = time.monotonic()
        await asyncio.to_thread(live.close)
        assert time.monotonic() - began < 2
