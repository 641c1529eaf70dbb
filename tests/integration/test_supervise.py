"""The supervisor with real processes, but none of the server's. It forks, so it has its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ci_platform.errors import InvalidRequest
from ci_platform.server.data_lock import ServerBusy, locked, note, running_url
from ci_platform.server.serve import listen

SECONDS = 30
SCRIPT = """
import os, signal, sys, time
from ci_platform.server.supervise import Child, ServerFailed, Supervisor

def good(ready):
    os.write(1, f"good {os.getpid()}\\n".encode())  # at once: others write there too
    ready()
    time.sleep(600)

def stubborn(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    good(ready)

def crashes(ready):
    raise ValueError("cannot start")

try:
    Supervisor(
        [Child(name, globals()[name]) for name in sys.argv[2:]],
        drain_seconds=float(sys.argv[1]),
        on_ready=lambda: os.write(1, b"ready\\n"),
    ).run()
except ServerFailed as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def supervisor(*children: str, drain_seconds: float = 20) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(drain_seconds), *children],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_pid(process: subprocess.Popen[str]) -> int:
    """The process that starts next."""
    assert process.stdout is not None
    for line in process.stdout:
        word, _, pid = line.strip().partition(" ")
        if word == "good":
            return int(pid)
    raise AssertionError("the supervisor ended")


def ends(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=SECONDS)
    return not psutil.pid_exists(pid)


def test_a_child_that_is_killed_is_replaced() -> None:
    with supervisor("good") as process:
        first = next_pid(process)
        os.kill(first, signal.SIGKILL)
        second = next_pid(process)
        assert second != first
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert ends(second)


def test_the_others_start_when_the_first_is_ready() -> None:
    with supervisor("good", "good", "good") as process:
        assert process.stdout is not None
        words = [process.stdout.readline().split()[0] for _ in range(4)]
        assert words == ["good", "ready", "good", "good"]


def test_a_server_whose_child_cannot_start_gives_up_and_says_why() -> None:
    with supervisor("crashes") as process:
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "crashes crashed 2 times in a row: exit code 1" in errors
    assert "ValueError: cannot start" in errors


def test_a_child_that_does_not_drain_is_killed() -> None:
    with supervisor("stubborn", drain_seconds=0.2) as process:
        pid = next_pid(process)
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert ends(pid)


def test_a_second_stop_signal_ends_the_wait_for_the_drain() -> None:
    with supervisor("stubborn", drain_seconds=600) as process:
        pid = next_pid(process)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # two signals that come at once are one to the kernel
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert process.returncode == 0
        assert ends(pid)


def test_children_end_with_their_supervisor_even_when_that_is_killed() -> None:
    with supervisor("good", "stubborn") as process:
        pids = [next_pid(process), next_pid(process)]
        process.kill()
        assert all(ends(pid) for pid in pids)


ORPHAN = """
import sys
from ci_platform.server.supervise import die_with
die_with(int(sys.argv[1]))
print("goes on", flush=True)
"""


@pytest.mark.parametrize(
    ("supervisor_pid", "said"), [(os.getpid(), b"goes on\n"), (1, b"")], ids=["there", "gone"]
)
def test_a_child_whose_supervisor_is_gone_already_ends_at_once(
    supervisor_pid: int, said: bytes
) -> None:
    command = [sys.executable, "-c", ORPHAN, str(supervisor_pid)]
    assert subprocess.run(command, capture_output=True, check=False).stdout == said


def test_a_data_directory_has_one_server(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        note(lock, "http://127.0.0.1:1234")
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
    monkeypatch.setattr("ci_platform.server.serve.LISTEN_SECONDS", 0.05)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest, match=f"cannot listen on 127.0.0.1:{port}: Address"):
            listen("127.0.0.1", port)
