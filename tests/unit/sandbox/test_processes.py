"""Who gets a sandbox process: one repository has a share of them, whatever it asks for."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ci_platform.errors import SandboxUnavailable
from ci_platform.sandbox.channel import Channel
from ci_platform.sandbox.limits import SandboxLimits
from ci_platform.sandbox.processes import Process, Processes, WarmKey

SECONDS_MAX = 10.0


class Idlers(Processes):
    """Their processes only wait to be ended."""

    def _spawn(self) -> Process:
        command = [sys.executable, "-S", "-c", "input()"]
        ours, theirs = socket.socketpair()
        theirs.close()
        return Process(subprocess.Popen(command, stdin=subprocess.PIPE), Channel(ours))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Idlers]:
    guest = tmp_path / "guest"
    guest.touch()
    made = Idlers(SandboxLimits(processes=4), guest)
    taken: list[Process] = []
    take = made.take

    def noted(key: WarmKey | None) -> Process:
        process = take(key)
        taken.append(process)
        return process

    made.take = noted  # type: ignore[method-assign]
    try:
        yield made
    finally:
        made.close()
        for process in taken:
            assert process.popen.stdin is not None
            process.popen.stdin.close()
            process.kill()


def of(repository: str) -> WarmKey:
    return repository, "digest", True


def wanting(processes: Processes, repository: str) -> tuple[threading.Thread, list[Process]]:
    """A thread that waits for a process."""
    got: list[Process] = []
    waiting = processes.waiting

    def want() -> None:
        with suppress(SandboxUnavailable):  # it was closed
            got.append(processes.take(of(repository)))

    thread = threading.Thread(target=want)
    thread.start()
    deadline = time.monotonic() + SECONDS_MAX
    while processes.waiting == waiting and not got:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return thread, got


def test_one_repository_has_at_most_three_in_four_of_the_processes(processes: Idlers) -> None:
    first = processes.take(of("flood"))
    for _ in range(2):
        processes.take(of("flood"))
    thread, got = wanting(processes, "flood")
    processes.take(of("other"))  # does not wait behind the flood
    assert not got
    processes.give_back(first)
    thread.join(SECONDS_MAX)
    assert got == [first]


def test_a_process_that_is_kept_for_others_is_started_when_one_of_them_comes(
    processes: Idlers,
) -> None:
    for _ in range(3):
        processes.take(of("flood"))
    first, _ = wanting(processes, "flood")
    assert processes.idle() == []
    other = processes.take(of("other"))
    processes.give_back(other)
    assert processes.idle() == [other]
    processes.close()
    first.join(SECONDS_MAX)


def test_a_process_that_falls_free_goes_to_the_first_who_may_have_it(processes: Idlers) -> None:
    flood = [processes.take(of("flood")) for _ in range(3)]
    other = processes.take(of("other"))
    crowd, more = wanting(processes, "flood")
    thread, got = wanting(processes, "third")
    processes.give_back(other)
    thread.join(SECONDS_MAX)
    assert got == [other]
    assert not more
    processes.give_back(flood[0])
    crowd.join(SECONDS_MAX)
    assert more == [flood[0]]
