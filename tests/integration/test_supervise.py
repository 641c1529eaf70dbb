"""The supervisor with real child processes, but none of the server's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from ci_platform.errors import InvalidRequest
from ci_platform.supervise import (
    FIRST_CRASHES_MAX,
    Child,
    ServerBusy,
    ServerFailed,
    Supervisor,
    listen,
    locked,
    running_url,
)

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(600)",
]


async def never_ready() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    return


def supervisor(*children: Child, drain_seconds: float = 20) -> Supervisor:
    return Supervisor(list(children), dict(os.environ), drain_seconds)


@contextlib.asynccontextmanager
async def running(one: Supervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(one.run(at_once))
    for child in one.children:
        await started(child)
    yield
    one.stop()
    await task


async def started(child: Child, *, other_than: int | None = None) -> int:
    async with asyncio.timeout(20):
        while child.process is None or child.process.pid == other_than:
            await asyncio.sleep(0.01)
        return child.process.pid


def test_a_child_that_is_killed_is_replaced() -> None:
    async def story() -> None:
        child = Child("sleeper", SLEEPER)
        async with running(supervisor(child)):
            first = await started(child)
            os.kill(first, signal.SIGKILL)
            second = await started(child, other_than=first)
            assert psutil.pid_exists(second)
        assert not psutil.pid_exists(second)

    asyncio.run(story())


def test_a_server_whose_child_cannot_start_gives_up_and_says_why() -> None:
    child = Child("broken", [sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(ServerFailed, match="broken crashed 2 times in a row: exit code 7"):
        asyncio.run(supervisor(child).run(never_ready))
    assert child.crashes == FIRST_CRASHES_MAX


def test_a_child_that_does_not_drain_is_killed() -> None:
    async def story() -> None:
        child = Child("stubborn", STUBBORN)
        one = supervisor(child, drain_seconds=0.2)
        task = asyncio.create_task(one.run(at_once))
        pid = await started(child)
        one.stop()
        await task
        assert not psutil.pid_exists(pid)

    asyncio.run(story())


def test_a_second_stop_does_not_wait_for_the_drain() -> None:
    async def story() -> None:
        child = Child("stubborn", STUBBORN)
        one = supervisor(child, drain_seconds=600)
        task = asyncio.create_task(one.run(at_once))
        await started(child)
        one.stop()
        one.stop()
        async with asyncio.timeout(20):
            await task

    asyncio.run(story())


def test_a_data_directory_has_one_server(tmp_path: Path) -> None:
    with locked(tmp_path) as note:
        note("http://127.0.0.1:1234")
        assert running_url(tmp_path) == "http://127.0.0.1:1234"
        with (
            pytest.raises(ServerBusy, match=f"pid {os.getpid()} http://127.0.0.1:1234"),
            locked(tmp_path),
        ):
            raise AssertionError("two servers on one directory")
    assert running_url(tmp_path) is None
    with locked(tmp_path):
        assert running_url(tmp_path) is None


def test_an_address_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ci_platform.supervise.LISTEN_SECONDS", 0.05)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"cannot listen on 127.0.0.1:{port}: Address"):
            listen("127.0.0.1", port)


CHILD = """
import sys, time
from ci_platform.supervise import die_with
die_with(int(sys.argv[1]))
print("bound", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
supervisor = sys.argv[2] if len(sys.argv) > 2 else str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], supervisor])
print(child.pid, flush=True)
child.wait()
"""


def gone(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=20)


def test_a_child_ends_with_its_supervisor_even_when_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().decode().strip() for _ in range(2)}
        child = int(next(iter(lines - {"bound"})))
        assert psutil.pid_exists(child)
        parent.kill()
        gone(child)
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_a_child_whose_supervisor_is_gone_already_ends_at_once() -> None:
    another = "1"
    done = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD, another], capture_output=True, timeout=20, check=True
    )
    assert b"bound" not in done.stdout
