"""Corners of the protocol that the git client takes for granted, spoken raw."""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from git_store import Limits
from git_store.pktline import packet
from tests.integration.git_world import GIT, GitWorld, Recorder
from tests.integration.test_git_wire import MAIN, ZERO, commit_of, fetch, pack_of, push, sha

KEEP_ALIVE = b"0005\1"
REFS = 10_000
LIMITS = Limits(
    process_objects=1,
    process_bytes=5000,
    inline_pack_bytes=1000,
    processes=1,
    keepalive_seconds=0.01,
)


@pytest.fixture(scope="module", params=[None, GIT], ids=["without git", "with git"])
def world(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path_factory.mktemp("git"), limits=LIMITS, git=request.param)
    world.store.listen(Recorder())
    yield world
    world.close()


@pytest.fixture
def url(world: GitWorld, request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:80].strip("-")
    return world.create(f"acme/{name}-{zlib.crc32(request.node.name.encode()):x}")


def test_ten_thousand_refs_are_created_in_one_push(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    commands = [(ZERO, sha(objects), f"refs/tags/t{number:05}") for number in range(REFS)]
    answer = push(url, pack_of(objects), *commands, (ZERO, sha(objects), MAIN))
    assert answer.count(b"ok refs/") == REFS + 1 and b"ng " not in answer
    assert world.git("ls-remote", "--tags", url).count("\n") == REFS
    moved = commit_of({b"a": b"again"}, parents=[objects[-1].id])
    commands = [(sha(objects), sha(moved), ref) for _, _, ref in commands]
    answer = push(url, pack_of(moved), *commands, capabilities="report-status atomic")
    assert answer.count(b"ok refs/") == REFS and b"ng " not in answer


@pytest.mark.parametrize("capability", ["report-status", "report-status-v2"])
def test_a_push_is_reported_in_both_forms(world: GitWorld, url: str, capability: str) -> None:
    objects = commit_of({b"a": b"hello"})
    bad = (ZERO, "1" * 40, "refs/heads/bad")
    answer = push(
        url, pack_of(objects), (ZERO, sha(objects), MAIN), bad, capabilities=f"{capability} quiet"
    )
    assert answer.startswith(packet(b"unpack ok\n") + packet(b"ok refs/heads/main\n"))
    assert b"ng refs/heads/bad missing necessary objects" in answer and answer.endswith(b"0000")


def test_a_push_that_asks_for_no_report_gets_none(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    command = (ZERO, sha(objects), MAIN)
    assert push(url, pack_of(objects), command, capabilities="ofs-delta") == b""
    assert world.git("ls-remote", url, MAIN).startswith(sha(objects))


def test_tags_go_along_with_their_commits_only(world: GitWorld, url: str) -> None:
    work = world.work(f"tags-{url[-12:-4]}", url)
    for number in range(3):
        world.commit(work, {"a.txt": str(number)})
        world.git("tag", "-a", "-m", "t", f"v{number}", cwd=work)
    world.git("push", "-q", "--tags", "origin", "main", cwd=work)
    clone = work.with_name(f"{work.name}-clone")
    world.git("init", "-q", str(clone))
    for version in ("0", "2"):
        middle = f"{world.head(work, 'v1^{}')}:refs/heads/m{version}"
        p = ("-c", f"protocol.version={version}")
        world.git(*p, "fetch", "-q", url, "refs/tags/v0:refs/tags/v0", middle, cwd=clone)
        assert world.git("tag", cwd=clone).split() == ["v0", "v1"]  # v2 is of a later commit
        world.fsck(clone)


def test_a_client_that_waits_for_its_turn_hears_something(
    world: GitWorld, url: str, tmp_path: Path
) -> None:
    """Else a proxy between would take the connection for dead."""
    objects = commit_of({b"a": b"hello", b"noise": os.urandom(20_000)})
    command = f"{ZERO} {sha(objects)} {MAIN}\0 report-status side-band-64k quiet"
    asked = packet(command.encode()) + b"0000" + pack_of(objects)
    assert _kept_waiting(world, f"{url}/git-receive-pack", asked).count(b"ok refs/heads/main") == 1
    wanted = f"want {sha(objects)} side-band-64k ofs-delta no-progress\n"
    # A depth, so that the pack is not sent as it is stored.
    asked = packet(wanted.encode()) + packet(b"deepen 1\n") + b"0000" + packet(b"done\n")
    assert b"PACK" in _kept_waiting(world, f"{url}/git-upload-pack", asked)


def _kept_waiting(world: GitWorld, address: str, asked: bytes) -> bytes:
    """Ask while no process is free, until the answer says that it is still coming."""
    kind = f"application/x-{address.rsplit('/', 1)[1]}-request"
    taken = world.store.pack_processes.free
    taken.acquire()
    let_go = threading.Event()
    said = b""
    try:
        with httpx.stream("POST", address, content=asked, headers={"content-type": kind}) as answer:
            for chunk in answer.iter_bytes():
                said += chunk
                if KEEP_ALIVE in said and not let_go.is_set():
                    let_go.set()
                    taken.release()
    finally:
        if not let_go.is_set():
            taken.release()
    assert KEEP_ALIVE in said
    return said


def test_what_is_hidden_cannot_be_fetched_by_its_id(world: GitWorld, url: str) -> None:
    objects = commit_of({b"a": b"hello"})
    secret = commit_of({b"s": b"secret"}, parents=[objects[-1].id])
    push(url, pack_of(objects), (ZERO, sha(objects), MAIN))
    push(url, pack_of(secret), (ZERO, sha(secret), "refs/heads/gone"))
    full_name = url.split("/", 3)[3].removesuffix(".git")
    repository = world.store.repositories.get(*full_name.split("/"))
    world.store.refs.keep(repository.id, "run_1", sha(secret))
    push(url, b"", (sha(secret), ZERO, "refs/heads/gone"))
    for have in (b"", packet(f"have {sha(objects)}\n".encode())):
        asked = packet(f"want {sha(secret)} side-band-64k\n".encode()) + b"0000" + have
        answer = fetch(url, asked + packet(b"done\n"))
        assert b"ERR upload-pack: not our ref" in answer and b"PACK" not in answer
    everything = packet(f"want {sha(objects)} ofs-delta\n".encode()) + packet(b"deepen 9\n")
    answer = fetch(url, everything + b"0000" + packet(b"done\n"))
    assert answer[answer.index(b"PACK") :][8:12] == (3).to_bytes(4, "big")
