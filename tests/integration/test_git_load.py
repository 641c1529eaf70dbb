"""What large pushes and clones take of the server: bounded memory, and no one else's time."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from bench.git import history
from git_store.pktline import packet
from tests.integration.git_world import TOKEN

COMMITS = 12_600  # each a commit, two trees and a file
MEMORY_BYTES = 64 << 20


@dataclass
class Server:
    port: int
    process: psutil.Process

    def url(self, name: str) -> str:
        return f"http://any:{TOKEN}@127.0.0.1:{self.port}/acme/{name}.git"

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def resident_bytes(self) -> int:
        """What is in memory because of them: not the libraries that they share."""
        total = 0
        for process in self.family():
            try:
                total += process.memory_full_info().uss
            except psutil.NoSuchProcess:  # it ended just now
                continue
        return total


@pytest.fixture(scope="module", params=["with git", "without git"])
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    git = "git" if request.param == "with git" else ""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.git_server", str(directory), git],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            yield Server(int(child.stdout.readline()), psutil.Process(child.pid))
        finally:
            child.kill()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history of 50,400 objects."""
    path = tmp_path_factory.mktemp("large")
    git(path, "init", "-q", "--bare", "-b", "main")
    git(path, "fast-import", "--quiet", given=history(COMMITS))
    return path


def git(cwd: Path, *arguments: str, given: bytes | None = None) -> None:
    command = ["git", "-c", "gc.auto=0", *arguments]
    subprocess.run(command, cwd=cwd, input=given, check=True, capture_output=True)


def growth(server: Server, work: Callable[[], None]) -> int:
    """By how much the server's memory, with that of its children, grew at most."""
    before = server.resident_bytes()
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(server.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(seen) - before


def leave_more_than_is_wanted(large: Path, url: str) -> None:
    """What a deleted branch left behind makes the packs hold more than a clone may get."""
    git(large, "push", "-q", url, "main:refs/heads/gone", "+main~5:refs/heads/main")
    git(large, "push", "-q", url, ":refs/heads/gone")


def test_a_large_history_takes_bounded_memory(server: Server, large: Path, tmp_path: Path) -> None:
    url = server.url("app0")
    assert growth(server, lambda: git(large, "push", "-q", url, "main")) < MEMORY_BYTES
    whole, packed = tmp_path / "whole", tmp_path / "packed"
    clone = ("clone", "-q", "--bare", url)
    assert growth(server, lambda: git(tmp_path, *clone, str(whole))) < MEMORY_BYTES
    leave_more_than_is_wanted(large, url)
    assert growth(server, lambda: git(tmp_path, *clone, str(packed))) < MEMORY_BYTES
    git(packed, "fsck", "--full", "--connectivity-only")


def test_a_large_file_takes_bounded_memory(server: Server, tmp_path: Path) -> None:
    url, work = server.url("app1"), tmp_path / "work"
    git(tmp_path, "init", "-q", "-b", "main", "work")
    (work / "noise.bin").write_bytes(random.Random(8).randbytes(200_000_000))
    git(work, "-c", "core.compression=0", "add", "-A")
    git(work, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "noise")
    push = ("-c", "core.compression=0", "push", "-q", url, "main")
    assert growth(server, lambda: git(work, *push)) < MEMORY_BYTES
    clone = ("clone", "-q", "--bare", url, "clone")
    assert growth(server, lambda: git(tmp_path, *clone)) < MEMORY_BYTES
    sent = (work / ".git/refs/heads/main").read_text()
    assert sent[:40] in (tmp_path / "clone/packed-refs").read_text()


def test_small_requests_do_not_wait_for_large_ones(
    server: Server, large: Path, tmp_path: Path
) -> None:
    """Not in seconds, which depend on the machine: beside how long the large ones take. In a server
    that stands still, one small request takes as long as they do."""
    url = server.url("app2")
    small = f"{server.url('app3')}/info/refs?service=git-upload-pack"
    done = threading.Event()

    def work() -> None:
        git(large, "push", "-q", url, "main")
        leave_more_than_is_wanted(large, url)
        git(tmp_path, "clone", "-q", "--bare", url, "clone")
        done.set()

    started = time.perf_counter()
    worker = threading.Thread(target=work)
    worker.start()
    taken: list[float] = []
    with httpx.Client() as client:
        while not done.wait(0.005) and worker.is_alive():
            began = time.perf_counter()
            client.get(small).raise_for_status()
            taken.append(time.perf_counter() - began)
    worker.join()
    large_seconds = time.perf_counter() - started
    assert done.is_set()
    taken.sort()
    assert len(taken) > 50
    assert taken[len(taken) * 99 // 100] < large_seconds / 10
    assert sum(taken) / len(taken) < large_seconds / 40


def test_the_server_itself_does_little_of_large_work(
    server: Server, large: Path, tmp_path: Path
) -> None:
    url = server.url("app3")
    before = server.process.cpu_times()
    git(large, "push", "-q", url, "main")
    leave_more_than_is_wanted(large, url)
    git(tmp_path, "clone", "-q", "--bare", url, "clone")
    after = server.process.cpu_times()
    own = after.user + after.system - before.user - before.system
    children = after.children_user + after.children_system
    children -= before.children_user + before.children_system
    assert own < children


def test_what_works_for_a_server_ends_with_it(server: Server, large: Path, tmp_path: Path) -> None:
    """The last test of a server. Its client asks for much and reads nothing of it."""
    url = server.url("app3")
    git(large, "push", "-q", url, "+main:refs/heads/main")
    head = subprocess.run(
        ["git", "rev-parse", "main"], cwd=large, check=True, capture_output=True, text=True
    ).stdout.strip()
    wanted = f"want {head} ofs-delta\n".encode()
    asked = packet(wanted) + packet(b"deepen 2147483646\n") + b"0000" + packet(b"done\n")
    kind = {"content-type": "application/x-git-upload-pack-request"}
    with httpx.stream("POST", f"{url}/git-upload-pack", content=asked, headers=kind) as answer:
        assert answer.status_code == 200
        children = server.process.children(recursive=True)
        assert children
        server.process.kill()
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
