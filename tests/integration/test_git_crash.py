"""kill -9 at every stage of a push and of joining packs: nothing half there, nothing acknowledged
lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from tests.integration import git_doomed_upkeep
from tests.integration.git_doomed import STAGES, doomed_world
from tests.integration.git_world import GitWorld
from tests.postgres import PostgresServer
from tests.s3 import S3

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite and a directory", "postgresql and s3"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Where the server keeps what it is pushed: URLs of database and objects, or nothing."""
    if request.param.startswith("sqlite"):
        yield []
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    bucket: S3 = request.getfixturevalue("s3")
    with server.database() as url:
        yield [url, bucket.url]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_push_cut_short_by_a_crash_leaves_the_store_whole(
    tmp_path: Path, stage: str, elsewhere: list[str]
) -> None:
    world = doomed_world(tmp_path, *elsewhere)
    try:
        url = world.create()
        work = world.work("work", url)
        first = world.commit(work, {"a.txt": "1"})
        world.git("push", "-q", "origin", "main", cwd=work)
        second = world.commit(work, {"large.bin": os.urandom(300_000)})
        push_to_doomed_server(world, url, stage, *elsewhere)

        repository = world.store.repositories.get("acme", "app")
        committed = stage == "committed"
        assert world.store.refs.resolve(repository.id, "main") == (second if committed else first)
        assert [e.changes[0].new for e in world.store.pending_events()] == [second] * committed
        assert world.store.fsck(repository.id).problems == ()

        world.git("push", "-q", "origin", "main", cwd=work)
        world.fsck(world.clone(url, "clone"))
        world.clock.ms = 4_000_000_000_000
        world.store.sweep()
        left = [item["path"] for page in obstore.list(world.objects) for item in page]
        assert len(left) == 2, "one large pack and its index"
        quarantine = tmp_path / "cache/quarantine"
        assert not quarantine.exists() or not list(quarantine.iterdir())
        assert world.store.fsck(repository.id).problems == ()
    finally:
        world.close()


@pytest.mark.slow
@pytest.mark.parametrize("stage", git_doomed_upkeep.STAGES)
def test_a_crash_while_packs_are_joined_leaves_the_store_whole(
    tmp_path: Path, stage: str, elsewhere: list[str]
) -> None:
    world = doomed_world(tmp_path, *elsewhere, limits=git_doomed_upkeep.LIMITS)
    try:
        url = world.create()
        work = world.work("work", url)
        for number in range(6):
            world.commit(work, {f"f{number}": os.urandom(600)})
            world.git("push", "-q", "origin", "main", cwd=work)
        repository = world.store.repositories.get("acme", "app")
        before = world.store.fsck(repository.id)
        command = [sys.executable, "-m", "tests.integration.git_doomed_upkeep"]
        command += [str(tmp_path), stage, *elsewhere]
        died = subprocess.run(command, cwd=ROOT, check=False, timeout=60)
        assert died.returncode == -signal.SIGKILL
        assert world.store.fsck(repository.id) == before
        world.store.maintain()
        joined = world.store.fsck(repository.id)
        assert joined.packs == 1 and joined.objects == before.objects and joined.problems == ()
        world.fsck(world.clone(url, "clone"))
        world.clock.ms = 4_000_000_000_000
        world.store.sweep()
        left = [item["path"] for page in obstore.list(world.objects) for item in page]
        assert len(left) == 2, "one pack and its index"
        assert not list((tmp_path / "cache/quarantine").iterdir())
    finally:
        world.close()


def push_to_doomed_server(world: GitWorld, url: str, stage: str, *elsewhere: str) -> None:
    server_of = [sys.executable, "-m", "tests.integration.git_doomed", str(world.directory)]
    command = [*server_of, stage, *elsewhere]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        doomed = url.replace(f":{world.port}/", f":{port}/")
        world.git("push", "-q", doomed, "main", cwd="work", ok=False)
        assert server.wait(10) == -signal.SIGKILL
