"""Packs in S3: an object store that answers 503 for a while, and several web processes on one."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine

from git_store import (
    FileEdit,
    GitStore,
    Limits,
    ObjectNotFound,
    Pusher,
    PushRejected,
    StorageFailed,
)
from tests.cluster import REPOSITORY, cluster, commit, ended, get
from tests.integration.git_world import GitWorld
from tests.postgres import PostgresServer
from tests.s3 import S3

COMMITS = 8  # of each branch
PIPELINE = """
from pipelines import Pipeline, on_push

class CI(Pipeline):
    triggers = [on_push(branches=["main"])]

    async def run(self, event, step):
        await step.sh("write", "head -c 300000 /dev/urandom > made", artifacts=["made"])
        return (await step.sh("read", "wc -c < made")).output_tail.strip()
"""


@pytest.fixture
def world(tmp_path: Path, s3: S3) -> Iterator[GitWorld]:
    world = GitWorld(tmp_path, objects=s3.open(), limits=Limits(inline_pack_bytes=1000))
    yield world
    world.close()


@pytest.mark.parametrize("works", [0, 1], ids=["the pack", "its index"])
def test_a_push_is_refused_while_s3_is_away_and_leaves_nothing(
    world: GitWorld, s3: S3, works: int
) -> None:
    url = world.create()
    work = world.work("work", url)
    head = world.commit(work, {"large.bin": os.urandom(50_000)})
    with s3.away("PUT", "POST", works=works) as outage:
        said = world.git("push", "origin", "main", cwd=work, ok=False)
    assert outage.refused > 1, "one refusal is asked again"
    assert "try again later" in said and "unpacker error" in said
    repository = world.store.repositories.get("acme", "app")
    assert world.store.refs.all(repository.id) == [] and repository.pack_bytes == 0
    assert world.store.pending_events() == [] == world.listener.events
    assert len(s3.names()) == works
    world.git("push", "-q", "origin", "main", cwd=work)
    assert world.store.refs.resolve(repository.id, "main") == head
    world.clock.ms = 4_000_000_000_000
    world.store.sweep()
    assert len(s3.names()) == 2, "one pack and its index"
    assert not list((world.directory / "cache/quarantine").iterdir())
    world.fsck(world.clone(url, "clone"))


def test_one_refusal_of_s3_is_not_noticed(world: GitWorld, s3: S3) -> None:
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"large.bin": os.urandom(50_000)})
    with s3.away("PUT") as outage:
        outage.methods = _Once("PUT")
        world.git("push", "-q", "origin", "main", cwd=work)
    assert outage.refused == 1
    world.fsck(world.clone(url, "clone"))


class _Once(set[str]):
    """Holds what it is made of until it was asked."""

    def __init__(self, *methods: str) -> None:
        super().__init__(methods)

    def __contains__(self, method: object) -> bool:
        found = super().__contains__(method)
        self.discard(str(method))
        return found


def test_a_clone_fails_while_s3_is_away_and_works_later(world: GitWorld, s3: S3) -> None:
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"large.bin": os.urandom(50_000)})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.store.close()  # forget what was opened
    cached = world.directory / "cache/packs"
    for path in cached.glob("*"):
        path.unlink()
    with s3.away("GET"):
        assert "try again later" in world.git("clone", url, "clone", ok=False)
    assert not cached.exists() or not list(cached.iterdir()), "no half copy stays"
    world.fsck(world.clone(url, "clone"))


def test_a_sweep_while_s3_is_away_is_finished_by_the_next(world: GitWorld, s3: S3) -> None:
    url = world.create()
    work = world.work("work", url)
    world.commit(work, {"large.bin": os.urandom(50_000)})
    world.git("push", "-q", "origin", "main", cwd=work)
    world.store.repositories.delete(world.store.repositories.get("acme", "app").id)
    world.clock.ms = 4_000_000_000_000
    with s3.away("DELETE", "POST"), pytest.raises(StorageFailed):
        world.store.sweep()
    assert s3.names()
    assert world.store.sweep() > 0
    assert s3.names() == []


@pytest.mark.slow
def test_web_processes_on_postgresql_and_s3_share_every_repository(
    postgres: PostgresServer, tmp_path: Path, guest_cache: Path, s3: S3
) -> None:
    with (
        postgres.database() as database,
        cluster(tmp_path, cache=guest_cache, database_url=database, objects_url=s3.url) as made,
    ):
        webs = [made.web(f"web-{number}") for number in range(2)]
        made.worker("worker")
        with made.client(webs[0]) as one, made.client(webs[1]) as two:
            commit(one, PIPELINE)
            (pushed,) = get(two, f"{REPOSITORY}/runs")["runs"]
            assert (ended(two, pushed["id"])["output"], ended(one, pushed["id"])["state"]) == (
                "300000",
                "passed",
            )
            kinds = {key.partition("/")[0] for key in s3.names()}
            assert {"layers", "artifacts"} <= kinds, kinds
            (kept,) = get(one, f"/api/v1/runs/{pushed['id']}/artifacts")["artifacts"]
            path = f"/api/v1/runs/{pushed['id']}/artifacts/{kept['sha256']}"
            assert len(two.get(path).content) == 300_000
            remotes = [
                f"{web.url.replace('://', f'://git:{made.token}@')}/acme/app.git" for web in webs
            ]
            _one_of_two_pushes_wins(remotes, tmp_path)
            _away_for_a_while(one, two, s3)


def _one_of_two_pushes_wins(remotes: list[str], root: Path) -> None:
    """Each through a web process of its own, from one base, with a pack that goes to S3."""
    git("clone", "-q", remotes[0], "first", cwd=root)
    git("clone", "-q", remotes[1], "second", cwd=root)
    for name in ("first", "second"):
        (root / name / name).write_bytes(os.urandom(200_000))
        git("add", "-A", cwd=root / name)
        git("commit", "-qm", name, cwd=root / name)
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(
                lambda name: _git("push", "origin", "HEAD:raced", cwd=root / name),
                ("first", "second"),
            )
        )
    assert sorted(one.returncode for one in done) == [0, 1], [one.stderr for one in done]
    winner = ("first", "second")[[one.returncode for one in done].index(0)]
    for number, remote in enumerate(remotes):
        git("clone", "-q", "-b", "raced", remote, f"clone-{number}", cwd=root)
        assert (root / f"clone-{number}" / winner).read_bytes() == (
            root / winner / winner
        ).read_bytes()
        git("fsck", "--full", "--strict", cwd=root / f"clone-{number}")


def _away_for_a_while(one: httpx.Client, two: httpx.Client, s3: S3) -> None:
    content = os.urandom(100_000).hex()
    change = {"path": "large.txt", "content": content}
    body = {"branch": "later", "message": "large", "changes": [change]}
    with s3.away("GET", "PUT", "POST", "DELETE"):
        refused = one.post(f"{REPOSITORY}/commits", json=body)
        assert refused.status_code == 503, refused.text
        assert refused.headers["content-type"] == "application/problem+json"
        assert "object store cannot be reached" in refused.json()["detail"]
    assert two.get(f"{REPOSITORY}/files/large.txt", params={"ref": "later"}).status_code == 404
    one.post(f"{REPOSITORY}/commits", json=body).raise_for_status()
    found = get(two, f"{REPOSITORY}/files/large.txt?ref=later")
    assert found["content"] == content


def git(*arguments: str, cwd: Path) -> None:
    done = _git(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr


def _git(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(
        ["git", *who, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_pushes_beside_upkeep_of_another_process_lose_nothing(
    postgres: PostgresServer, tmp_path: Path, s3: S3
) -> None:
    """Two stores on one PostgreSQL and one S3, as two machines: one joins and drops without rest,
    both are pushed to. Whatever was acknowledged is there in the end."""
    limits = Limits(inline_pack_bytes=1000, repository_packs=3)
    with postgres.database() as url, ExitStack() as opened:
        stores = []
        for number in range(2):
            engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
            opened.callback(engine.dispose)
            store = GitStore(
                engine, s3.open(), tmp_path / f"cache-{number}", clock=now_ms, limits=limits
            )
            opened.callback(store.close)
            stores.append(store)
        stores[0].create_tables()
        repository = stores[0].repositories.create("acme", "app").id
        done = threading.Event()

        def tend() -> int:
            turns = 0
            while not done.is_set():
                stores[1].maintain()
                stores[1].gc(repository, grace_ms=0)
                turns += 1
            return turns

        with ThreadPoolExecutor(5) as pool:
            upkeep = pool.submit(tend)
            writers = [
                pool.submit(_write, stores[number % 2], repository, f"b{number}")
                for number in range(4)
            ]
            heads = {f"refs/heads/b{n}": one.result() for n, one in enumerate(writers)}
            done.set()
            assert upkeep.result() > 1
        assert {ref.name: ref.sha for ref in stores[0].refs.all(repository)} == heads
        stores[1].maintain()
        proof = stores[1].fsck(repository)
        assert proof.problems == () and proof.packs <= 4
        for head in heads.values():
            assert len(stores[0].files(repository).log(head)) == COMMITS


def _write(store: GitStore, repository: str, branch: str) -> str:
    """Commit on a branch, now and then a large file; again when told to push again."""
    head = None
    for number in range(COMMITS):
        content = os.urandom(4000 if number % 3 else 20)
        while True:
            try:
                head = store.commit(
                    repository,
                    [FileEdit(f"{branch}/{number}", content)],
                    branch=branch,
                    message="change",
                    author="A <a@example.org>",
                    pusher=Pusher(None, "a"),
                    expected_parent=head,
                )
                break
            except (PushRejected, ObjectNotFound) as error:
                assert "again" in error.detail or "repacked" in error.detail, error
    assert head is not None
    return head


def now_ms() -> int:
    return time.time_ns() // 1_000_000
