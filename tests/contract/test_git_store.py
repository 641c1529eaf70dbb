"""The git store without HTTP, the same on every database and object store."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, ObjectStore
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.event import listen

from git_store import (
    BadName,
    EntryKind,
    FileEdit,
    GitStore,
    Limits,
    NewRepository,
    ObjectNotFound,
    OverLimit,
    Pusher,
    PushRejected,
    RefChange,
    RefConflict,
    RepoExists,
    RepoNotFound,
    Repository,
    RepositoryEvent,
)
from git_store.edits import CommitBuilder
from git_store.push import Request
from git_store.tables import metadata
from tests.integration.git_world import Clock, Recorder, sqlite_engine
from tests.s3 import S3

ALICE = Pusher("usr_1", "alice")
LARGE = os.urandom(200_000)  # a pack with this is an object, not a row


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = sqlite_engine(tmp_path / "git.db")
    else:
        url: str = request.getfixturevalue("postgres_url")
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        metadata.drop_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def objects(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> ObjectStore:
    """As deployments have them: a directory beside SQLite, S3 beside PostgreSQL."""
    if engine.dialect.name == "sqlite":
        (tmp_path / "objects").mkdir()
        return LocalStore(tmp_path / "objects")
    bucket: S3 = request.getfixturevalue("s3")
    return bucket.open()


@pytest.fixture
def listener() -> Recorder:
    return Recorder()


@pytest.fixture
def store(
    engine: Engine, objects: ObjectStore, tmp_path: Path, listener: Recorder
) -> Iterator[GitStore]:
    store = GitStore(engine, objects, tmp_path / "cache", clock=Clock(), listener=listener)
    store.create_tables()
    yield store
    store.close()


@pytest.fixture
def repository(store: GitStore) -> str:
    return store.repositories.create("acme", "app", description="an app").id


def commit(store: GitStore, repository_id: str, *edits: FileEdit, branch: str = "main") -> str:
    return store.commit(
        repository_id,
        edits,
        branch=branch,
        message="change",
        author="A <a@example.org>",
        pusher=ALICE,
    )


def stored(objects: ObjectStore) -> list[str]:
    return [item["path"] for page in obstore.list(objects) for item in page]


# --- repositories ---------------------------------------------------------------------------------


def test_a_repository_is_found_by_name_and_by_id(store: GitStore, repository: str) -> None:
    by_name = store.repositories.get("acme", "app")
    assert by_name == store.repositories.by_id(repository)
    assert by_name.full_name == "acme/app"
    assert (by_name.default_branch, by_name.description) == ("main", "an app")
    with pytest.raises(RepoNotFound):
        store.repositories.get("acme", "App")
    with pytest.raises(RepoNotFound):
        store.repositories.by_id("repo_x")


def test_a_name_is_taken_once(store: GitStore, repository: str) -> None:
    with pytest.raises(RepoExists, match="acme/app"):
        store.repositories.create("acme", "app")
    assert store.repositories.get("acme", "app").id == repository


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", "a..b", ".git", "a.git", "a.lock", "-a", "é", "a b", "x" * 101, "a\n"]
)
def test_bad_names_are_refused_by_field(store: GitStore, name: str) -> None:
    for owner, repo, field in ((name, "ok", "owner"), ("ok", name, "name")):
        with pytest.raises(BadName) as refused:
            store.repositories.create(owner, repo)
        assert refused.value.field == field


@pytest.mark.parametrize("branch", ["", "a..b", "-x", "a b", "x.lock", "a/", "HEAD", "a\0b"])
def test_a_bad_default_branch_is_refused(store: GitStore, branch: str) -> None:
    with pytest.raises(BadName) as refused:
        store.repositories.create("acme", "app", default_branch=branch)
    assert refused.value.field == "default_branch"


def test_repositories_are_listed_by_full_name_in_pages(store: GitStore) -> None:
    names = ["a/z", "a.b/c", "B/x", "a/b", "b/a"]
    for name in names:
        store.repositories.create(*name.split("/"))
    first = store.repositories.list(limit=2)
    rest = store.repositories.list(after=first[-1].full_name)
    assert [one.full_name for one in (*first, *rest)] == sorted(names)


def test_a_deleted_repository_leaves_nothing_after_the_sweep(
    store: GitStore, repository: str, objects: ObjectStore, engine: Engine
) -> None:
    commit(store, repository, FileEdit("small", b"s"))
    commit(store, repository, FileEdit("large", LARGE))
    assert len(stored(objects)) == 2
    store.repositories.delete(repository)
    with pytest.raises(RepoNotFound):
        store.files(repository)
    assert store.sweep(grace_ms=-1000) >= 2
    assert stored(objects) == []
    with engine.connect() as connection:
        for table in ("refs", "packs", "repository_packs", "push_events"):
            assert connection.execute(text(f"SELECT count(*) FROM git_{table}")).scalar() == 0


def test_the_sweep_keeps_what_is_young_or_used(
    store: GitStore, repository: str, objects: ObjectStore
) -> None:
    head = commit(store, repository, FileEdit("large", LARGE))
    obstore.put(objects, "packs/sh/pack_of_a_dead_push.pack", b"x")
    store.sweep()
    assert len(stored(objects)) == 3
    clock = store._clock
    assert isinstance(clock, Clock)
    clock.ms = 4_000_000_000_000
    assert store.sweep() >= 1
    assert len(stored(objects)) == 2
    assert store.files(repository).read(head, "large") == LARGE


# --- commits --------------------------------------------------------------------------------------


def test_a_commit_is_a_push(store: GitStore, repository: str, listener: Recorder) -> None:
    first = commit(store, repository, FileEdit("a/b.txt", b"1"), FileEdit("run", b"#!", True))
    second = commit(store, repository, FileEdit("a/b.txt", None), FileEdit("c.txt", b"2"))
    assert [event.changes for event in listener.events] == [
        (RefChange("refs/heads/main", None, first),),
        (RefChange("refs/heads/main", first, second),),
    ]
    assert listener.events[0].pusher == ALICE
    files = store.files(repository)
    assert [entry.path for entry in files.walk(first)] == ["run", "a/b.txt"]
    assert files.entry(first, "run") is not None and files.entry(first, "run").executable  # type: ignore[union-attr]
    assert [entry.path for entry in files.walk(second)] == ["c.txt", "run"]
    assert files.commit(second).parents == (first,)
    assert files.commit(second).author == "A <a@example.org>"


def test_a_commit_on_a_branch_that_moved_is_refused(store: GitStore, repository: str) -> None:
    first = commit(store, repository, FileEdit("a", b"1"))
    commit(store, repository, FileEdit("a", b"2"))
    with pytest.raises(RefConflict, match="is at"):
        store.commit(
            repository,
            [FileEdit("a", b"3")],
            branch="main",
            message="m",
            author="A <a@b>",
            pusher=ALICE,
            expected_parent=first,
        )


def test_a_listener_can_refuse_a_commit(
    store: GitStore, repository: str, listener: Recorder
) -> None:
    listener.refuse = "not today"
    with pytest.raises(PushRejected, match="not today"):
        commit(store, repository, FileEdit("a", b"1"))
    assert store.refs.list(repository) == []
    assert store.pending_events() == []


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a//b", "../a", "a/./b", ".git/config", "a/.GIT", "a\0b", "x" * 5000, "\ud800"],
)
def test_bad_paths_are_refused(store: GitStore, repository: str, path: str) -> None:
    with pytest.raises(BadName) as refused:
        commit(store, repository, FileEdit(path, b"x"))
    assert refused.value.field == "path"


def test_files_and_directories_do_not_replace_each_other_silently(
    store: GitStore, repository: str
) -> None:
    commit(store, repository, FileEdit("a/b", b"1"), FileEdit("c", b"1"))
    with pytest.raises(BadName, match="is a directory"):
        commit(store, repository, FileEdit("a", b"x"))
    with pytest.raises(BadName, match="leads through 'c', which is a file"):
        commit(store, repository, FileEdit("c/d", b"x"))
    with pytest.raises(ObjectNotFound, match="to delete"):
        commit(store, repository, FileEdit("nothing", None))
    commit(store, repository, FileEdit("a/b", None), FileEdit("c", None))
    head = store.refs.resolve(repository, "main") or ""
    assert store.files(repository).list(head) == []


@pytest.mark.parametrize("author", ["", "nobody", "A <a", "A <a>\nx", "A <a> b"])
def test_bad_authors_are_refused(store: GitStore, repository: str, author: str) -> None:
    with pytest.raises(BadName) as refused:
        store.commit(repository, [], branch="main", message="m", author=author, pusher=ALICE)
    assert refused.value.field == "author"


def test_concurrent_commits_each_win_or_are_told(store: GitStore, repository: str) -> None:
    commit(store, repository, FileEdit("base", b"1"))
    barrier = threading.Barrier(4)

    def work(number: int) -> bool:
        barrier.wait()
        try:
            commit(store, repository, FileEdit(f"f{number}", b"x"))
        except RefConflict:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(work, range(4)))
    head = store.refs.resolve(repository, "main") or ""
    assert len(store.files(repository).log(head)) == 1 + won.count(True)
    names = {entry.path for entry in store.files(repository).walk(head)}
    assert names == {"base"} | {f"f{number}" for number in range(4) if won[number]}


# --- reading --------------------------------------------------------------------------------------


def test_refs_resolve_by_every_name(store: GitStore, repository: str) -> None:
    assert store.refs.resolve(repository, "HEAD") is None
    head = commit(store, repository, FileEdit("a", b"1"))
    for name in ("HEAD", "main", "refs/heads/main", head):
        assert store.refs.resolve(repository, name) == head
    for name in ("nope", "refs/heads/nope", "1" * 40, "", "main\0"):
        assert store.refs.resolve(repository, name) is None


def test_a_kept_commit_outlives_its_branch(store: GitStore, repository: str) -> None:
    head = commit(store, repository, FileEdit("a", b"1"), branch="topic")
    store.refs.keep(repository, "run_1", head)
    store.refs.keep(repository, "run_1", head)
    assert [ref.name for ref in store.refs.all(repository)] == ["refs/heads/topic"]
    with pytest.raises(ObjectNotFound):
        store.refs.keep(repository, "run_2", "1" * 40)
    with pytest.raises(BadName):
        store.refs.keep(repository, "run 2", head)
    store.refs.release(repository, "run_1")
    store.refs.release(repository, "run_1")


def test_refs_are_found_by_how_their_names_begin(store: GitStore, repository: str) -> None:
    names = ["a-b", "a/b", "b", "\ud7ffx", "\ue000", "\U0010ffff", "\U0010ffff\U0010ffff"]
    names = sorted(f"refs/heads/{name}" for name in names)
    head = commit(store, repository, FileEdit("f", b"1"), branch="b")
    for name in names:
        if name != "refs/heads/b":
            commit(store, repository, FileEdit("f", b"1"), branch=name.removeprefix("refs/heads/"))
    store.refs.keep(repository, "kept", head)
    asked = ["refs/heads/" + end for end in ("", "a", "a-", "\ud7ff", "\U0010ffff", "z")]
    for prefix in ("", "r", "refs/", "refs", "HEAD", "refs/sluice/", "\U0010ffff", *asked):
        wanted = [name for name in names if name.startswith(prefix)]
        assert [ref.name for ref in store.refs.all(repository, [prefix])] == wanted, prefix
        assert [ref.name for ref in store.refs.list(repository, prefix)] == wanted, prefix
    overlapping = ["refs/heads/a", "refs/heads/a-", "HEAD"]
    found = [ref.name for ref in store.refs.all(repository, overlapping)]
    assert found == ["refs/heads/a-b", "refs/heads/a/b"]


def test_files_are_read_within_limits(store: GitStore, repository: str) -> None:
    head = commit(store, repository, FileEdit("d/large", LARGE), FileEdit("d/e/x", b"x"))
    files = store.files(repository)
    assert files.read(head, "d/large") == LARGE
    assert files.size(head, "d/large") == len(LARGE)
    assert b"".join(files.slices(head, "/d/large")) == LARGE
    with pytest.raises(OverLimit, match="200000 bytes; at most 10"):
        files.read(head, "d/large", max_bytes=10)
    for path in ("d", "nope", "d/large/x", "", "\ud800"):
        with pytest.raises(ObjectNotFound):
            files.read(head, path)
    with pytest.raises(ObjectNotFound):
        files.read("1" * 40, "a")
    with pytest.raises(ObjectNotFound):
        files.read("main", "a")
    listed = [(entry.name, entry.kind) for entry in files.list(head, "d")]
    assert listed == [("e", EntryKind.DIRECTORY), ("large", EntryKind.FILE)]
    with pytest.raises(ObjectNotFound):
        files.list(head, "d/large")


def test_changed_paths_between_commits(store: GitStore, repository: str) -> None:
    first = commit(
        store, repository, FileEdit("a/x", b"1"), FileEdit("a/y", b"1"), FileEdit("b", b"")
    )
    second = commit(
        store, repository, FileEdit("a/x", b"2"), FileEdit("b", None), FileEdit("c/d", b"")
    )
    third = commit(store, repository, FileEdit("a/x", b"1"))
    files = store.files(repository)
    assert files.changed_paths(first, second) == ["a/x", "b", "c/d"]
    assert files.changed_paths(first, third) == ["b", "c/d"]
    assert files.changed_paths(second, second) == []
    assert files.changed_paths(None, first) == ["a/x", "a/y", "b"]
    assert files.changed_paths("1" * 40, first) == ["a/x", "a/y", "b"]
    assert files.is_ancestor(first, third) and not files.is_ancestor(third, first)


def test_the_history_is_newest_first(store: GitStore, repository: str) -> None:
    commits = []
    for number in range(5):
        commits.append(commit(store, repository, FileEdit("a", str(number).encode())))
        clock = store._clock
        assert isinstance(clock, Clock)
        clock.ms += 1000
    log = store.files(repository).log(commits[-1], limit=3)
    assert [info.sha for info in log] == commits[:1:-1]


def test_a_commit_is_exported(store: GitStore, repository: str, tmp_path: Path) -> None:
    head = commit(
        store, repository, FileEdit("d/run.sh", b"#!/bin/sh", True), FileEdit("large", LARGE)
    )
    target = tmp_path / "out"
    target.mkdir()
    files = store.files(repository)
    assert files.export(head, target) == files.commit(head).tree
    assert (target / "large").read_bytes() == LARGE
    assert os.access(target / "d/run.sh", os.X_OK) and not os.access(target / "large", os.X_OK)
    with pytest.raises(FileExistsError):
        files.export(head, target)


def test_two_stores_of_one_database_see_each_other(
    store: GitStore, repository: str, engine: Engine, objects: ObjectStore, tmp_path: Path
) -> None:
    """As two processes do."""
    other = GitStore(engine, objects, tmp_path / "cache2", clock=Clock(), limits=Limits())
    for number in range(3):
        writer, reader = (store, other) if number % 2 else (other, store)
        head = commit(writer, repository, FileEdit(f"f{number}", LARGE[number:]))
        assert reader.files(repository).read(head, f"f{number}") == LARGE[number:]
    other.close()


def test_the_quota_counts_packs_and_is_told(
    engine: Engine, objects: ObjectStore, tmp_path: Path
) -> None:
    limits = Limits(repository_bytes=250_000)
    store = GitStore(engine, objects, tmp_path / "cache", clock=Clock(), limits=limits)
    store.create_tables()
    repository = store.repositories.create("acme", "app").id
    commit(store, repository, FileEdit("a", LARGE))
    assert store.repositories.by_id(repository).pack_bytes > len(LARGE)
    with pytest.raises(PushRejected, match="quota of 250000 bytes"):
        commit(store, repository, FileEdit("b", LARGE[1:]))
    store.close()


# --- upkeep ---------------------------------------------------------------------------------------


def pack_count(engine: Engine, repository_id: str) -> int:
    query = text("SELECT count(*) FROM git_repository_packs WHERE repository_id = :id")
    with engine.connect() as connection:
        return int(connection.execute(query, {"id": repository_id}).scalar_one())


def test_crowded_repositories_have_their_packs_joined(
    engine: Engine, objects: ObjectStore, tmp_path: Path
) -> None:
    limits = Limits(repository_packs=5)
    store = GitStore(engine, objects, tmp_path / "cache", clock=Clock(), limits=limits)
    store.create_tables()
    crowded, quiet = (store.repositories.create("acme", name).id for name in ("a", "b"))
    heads = [commit(store, crowded, FileEdit(f"f{n}", b"x" * n)) for n in range(9)]
    commit(store, crowded, FileEdit("large", LARGE))
    commit(store, quiet, FileEdit("f", b"x"))
    before = store.files(crowded)
    store.maintain()
    assert pack_count(engine, crowded) == 2, "the large one is left alone"
    assert pack_count(engine, quiet) == 1
    assert before.read(heads[3], "f3") == b"xxx", "a request from before still reads"
    assert store.files(crowded).read(heads[8], "f8") == b"x" * 8
    proof = store.fsck(crowded)
    assert (proof.problems, proof.packs, proof.refs) == ((), 2, 1)
    with engine.connect() as connection:
        sizes = text(
            "SELECT sum(size) FROM git_packs JOIN git_repository_packs ON id = pack_id"
            " WHERE repository_id = :id"
        )
        total = connection.execute(sizes, {"id": crowded}).scalar_one()
    assert store.repositories.by_id(crowded).pack_bytes == total
    store.close()


def test_what_nothing_reaches_is_dropped_after_a_while(
    store: GitStore, repository: str, engine: Engine
) -> None:
    base = commit(store, repository, FileEdit("a", b"1"))
    kept = commit(store, repository, FileEdit("b", b"kept"), branch="one")
    lost = commit(store, repository, FileEdit("c", LARGE), branch="two")
    store.refs.keep(repository, "run_1", kept)
    for branch in ("one", "two"):
        delete_branch(store, repository, branch)
    assert store.gc(repository) == 0, "it is young"
    assert store.gc(repository, grace_ms=-1000) == 3
    files = store.files(repository)
    assert files.has_commit(base) and files.has_commit(kept) and not files.has_commit(lost)
    assert store.fsck(repository).problems == ()
    assert store.repositories.by_id(repository).pack_bytes < len(LARGE)
    assert store.gc(repository, grace_ms=-1000) == 0
    store.refs.release(repository, "run_1")
    assert store.gc(repository, grace_ms=-1000) == 3
    assert not store.files(repository).has_commit(kept)
    with pytest.raises(ObjectNotFound):
        store.refs.keep(repository, "run_2", kept)


def delete_branch(store: GitStore, repository_id: str, branch: str) -> None:
    ref = f"refs/heads/{branch}"
    found = store.refs.get(repository_id, ref)
    assert found is not None
    repository = store.repositories.by_id(repository_id)
    request = Request(repository, ALICE, [RefChange(ref, found.sha, None)])
    report = store.pushes.receive(request, say=lambda text: None, progress=lambda text: None)
    assert report.refs == {ref: None}


def test_a_push_that_needs_what_is_just_dropped_is_told(
    store: GitStore, repository: str, listener: Recorder
) -> None:
    commit(store, repository, FileEdit("a", b"1"))
    base = commit(store, repository, FileEdit("c", b"2"), branch="two")
    built = CommitBuilder(store.objects(repository), Limits()).build(
        [FileEdit("d", b"3")], parent=base, message="m", author="A <a@b>", at_seconds=1
    )
    delete_branch(store, repository, "two")
    dropped: list[int] = []
    listener.look = lambda push: dropped.append(store.gc(repository, grace_ms=-1000))
    change = RefChange("refs/heads/three", None, built.sha)
    request = Request(store.repositories.by_id(repository), ALICE, [change], chunks=built.pack)
    report = store.pushes.receive(request, say=lambda text: None, progress=lambda text: None)
    assert "builds on objects that have just been removed" in (report.message or "")
    assert store.refs.get(repository, "refs/heads/three") is None
    assert store.fsck(repository).problems == ()


def test_a_push_beside_a_clean_up_that_drops_nothing_of_it_goes_through(
    store: GitStore, repository: str, listener: Recorder
) -> None:
    commit(store, repository, FileEdit("a", b"1"))
    commit(store, repository, FileEdit("c", b"2"), branch="two")
    delete_branch(store, repository, "two")
    dropped: list[int] = []
    listener.look = lambda push: dropped.append(store.gc(repository, grace_ms=-1000))
    head = commit(store, repository, FileEdit("b", b"3"))
    assert dropped == [3]
    assert store.refs.resolve(repository, "main") == head
    assert store.fsck(repository).problems == ()


def test_damage_is_found(
    store: GitStore, repository: str, engine: Engine, objects: ObjectStore
) -> None:
    head = commit(store, repository, FileEdit("a", b"1"))
    commit(store, repository, FileEdit("b", b"2"))
    with engine.begin() as connection:
        wrong = text("UPDATE git_refs SET sha = :sha WHERE name = 'refs/heads/main'")
        connection.execute(wrong, {"sha": "1" * 40})
    [problem] = store.fsck(repository).problems
    assert "refs/heads/main" in problem and "1" * 40 in problem
    with engine.begin() as connection:
        first = "DELETE FROM git_repository_packs WHERE pack_id = (SELECT min(id) FROM git_packs)"
        connection.execute(text(first))
    problems = store.fsck(repository).problems
    assert any(head in problem and "is missing" in problem for problem in problems)
    with engine.begin() as connection:
        data = connection.execute(text("SELECT max(id), data FROM git_packs GROUP BY id")).all()
        pack_id, content = max(data)
        flipped = bytearray(content)
        flipped[20] ^= 1
        update = text("UPDATE git_packs SET data = :data WHERE id = :id")
        connection.execute(update, {"data": bytes(flipped), "id": pack_id})
    store.close()
    assert any(f"{pack_id} cannot be read" in line for line in store.fsck(repository).problems)


# --- what others hear of --------------------------------------------------------------------------


def test_each_event_of_a_repository_is_recorded_in_its_transaction(
    engine: Engine, objects: ObjectStore, tmp_path: Path
) -> None:
    heard: list[tuple[str, str, str | None]] = []
    broken: list[bool] = []

    def record(connection: Connection, events: Sequence[RepositoryEvent]) -> None:
        if broken:
            raise RuntimeError("the outbox broke")
        assert connection.in_transaction()
        for event in events:
            source = None if event.source is None else event.source.full_name
            heard.append((event.kind, event.repository.full_name, source))

    store = GitStore(engine, objects, tmp_path / "cache", clock=Clock(), record=record)
    store.create_tables()
    parent = store.repositories.create("acme", "app")
    fork = store.repositories.fork(parent.id, "acme", "fork")
    with pytest.raises(RepoExists):
        store.repositories.create("acme", "app")
    store.repositories.delete(fork.id)
    assert heard == [
        ("created", "acme/app", None),
        ("forked", "acme/fork", "acme/app"),
        ("deleted", "acme/fork", None),
    ]
    broken.append(True)
    with pytest.raises(RuntimeError):
        store.repositories.create("acme", "never")
    with pytest.raises(RuntimeError):
        store.repositories.delete(parent.id)
    assert [one.full_name for one in store.repositories.list()] == ["acme/app"]
    store.close()


# --- many at once ---------------------------------------------------------------------------------


def test_many_are_made_at_once_and_each_is_answered_for(store: GitStore, repository: str) -> None:
    head = commit(store, repository, FileEdit("large", LARGE))
    names = ["one", "app", "..", "two", "one"]
    wanted = [NewRepository("acme", name, description=name) for name in names]
    made = store.repositories.create_many(wanted, template=repository)
    assert [type(one) for one in made] == [Repository, RepoExists, BadName, Repository, RepoExists]
    listed = [one.full_name for one in store.repositories.list()]
    assert listed == ["acme/app", "acme/one", "acme/two"]
    for one in (made[0], made[3]):
        assert isinstance(one, Repository)
        assert store.refs.resolve(one.id, "main") == head
        assert store.files(one.id).read(head, "large") == LARGE
        assert store.repositories.by_id(one.id).pack_bytes > len(LARGE)
    store.repositories.delete(repository)
    store.sweep(grace_ms=-1000)
    assert isinstance(made[3], Repository)
    assert store.fsck(made[3].id).problems == (), "the packs are theirs too"


def test_of_many_that_make_the_same_names_at_once_each_is_made_once(store: GitStore) -> None:
    wanted = [NewRepository("acme", f"r{number}") for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: store.repositories.create_many(wanted), range(4)))
    made = [one for some in answers for one in some if isinstance(one, Repository)]
    assert len(made) == 20 == len(store.repositories.list())


def test_many_of_a_template_that_is_gone_are_none(store: GitStore) -> None:
    with pytest.raises(RepoNotFound):
        store.repositories.create_many([NewRepository("a", "b")], template="repo_x")
    assert store.repositories.list() == []


# --- some of many ---------------------------------------------------------------------------------


def test_those_of_thousands_of_ids_are_listed_by_one_query(store: GitStore, engine: Engine) -> None:
    made = []
    for first in range(0, 3000, 1000):
        wanted = [NewRepository("acme", f"r{first + number:04}") for number in range(1000)]
        made += store.repositories.create_many(wanted)
    ids = [one.id for one in made if isinstance(one, Repository)][::2]
    asked: list[str] = []
    listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    page = store.repositories.list(after="acme/r0100", limit=3, among=[*ids, ids[0], "repo_gone"])
    assert [one.name for one in page] == ["r0102", "r0104", "r0106"]
    assert len(asked) == 1
    assert store.repositories.list(among=[]) == []
    found = store.repositories.by_ids([*reversed(ids), "repo_gone", ids[1]])
    assert sorted(one.id for one in found) == sorted(ids)
