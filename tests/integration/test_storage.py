"""The storage of repositories: real SQLite in real processes, and SQL that means harm."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, MemoryStore

from ci_platform.capabilities import (
    KvHandler,
    LocalShelf,
    ObjectShelf,
    SqlDatabases,
    SqlHandler,
    StorageLimits,
)
from ci_platform.capabilities.shelf import Shelf
from ci_platform.errors import InternalError, NotGranted, RequestError, SqlError, TooLarge, TooMany
from ci_platform.model import RepositoryId
from ci_platform.ports.granting import Grant
from ci_platform.testing.records import InMemoryShelves
from tests.deployment import OWNER, REPOSITORY, deployed
from tests.unit.engine.journal import RUN

SCENARIOS = Path(__file__).parent.parent / "scenarios"

A, B = RepositoryId("repo_a"), RepositoryId("repo_b")
MIB = 1 << 20
COUNTING = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module", params=["files", "objects"])
def shelves(request: pytest.FixtureRequest, folder: Path) -> Callable[[], Shelf]:
    """Makes what one worker has of the one storage that all of them share."""
    if request.param == "files":
        return lambda: LocalShelf(folder)
    rows, objects = InMemoryShelves(), MemoryStore()
    return lambda: ObjectShelf(rows, objects)


@pytest.fixture(scope="module")
def databases(shelves: Callable[[], Shelf]) -> Iterator[SqlDatabases]:
    made = SqlDatabases(shelves(), StorageLimits(database_bytes=2 * MIB, seconds=0.5))
    yield made
    made.close()


def run(databases: SqlDatabases, statement: str, *values: Any, at: RepositoryId = A) -> Any:
    return databases.execute(at, "sql", statement, values)


def test_a_statement_is_durable_and_another_repository_does_not_see_it(
    databases: SqlDatabases, shelves: Callable[[], Shelf]
) -> None:
    run(databases, "CREATE TABLE kept (name TEXT, n INTEGER)")
    assert run(databases, "INSERT INTO kept VALUES (?, ?) RETURNING n", "é", 2**62) == [
        {"n": 2**62}
    ]
    again = SqlDatabases(shelves(), StorageLimits())
    assert run(again, "SELECT * FROM kept") == [{"name": "é", "n": 2**62}]
    again.close()
    with pytest.raises(SqlError, match="no such table"):
        run(databases, "SELECT * FROM kept", at=B)


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH ':memory:' AS other",
        "ATTACH '/etc/passwd' AS other",
        "ATTACH '../repo_b/sql.db' AS other",
        "DETACH main",
        "VACUUM",
        "VACUUM INTO '/tmp/stolen.db'",
        "PRAGMA writable_schema = ON",
        "PRAGMA journal_mode = OFF",
        "PRAGMA max_page_count = 1000000",
        "PRAGMA synchronous = OFF",
        "PRAGMA mmap_size = 1000000000000",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA trusted_schema = ON",
        "PRAGMA hard_heap_limit = 0",
        "SELECT load_extension('/tmp/evil.so')",
        "SELECT fts3_tokenizer('simple', x'4141414141414141')",
        "CREATE VIRTUAL TABLE v USING fts5(a)",
        "CREATE VIRTUAL TABLE v USING rtree(a, b, c)",
        "CREATE TEMP TABLE t (a)",
        "CREATE TEMP TRIGGER g AFTER INSERT ON kept BEGIN SELECT 1; END",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "RELEASE a",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('/tmp/evil', 'x')",
        "SELECT edit('x')",
        "SELECT * FROM sqlite_dbpage",
        "UPDATE sqlite_master SET sql = 'x'",
        "DELETE FROM sqlite_master",
        "SELECT 1; SELECT 2",
        "SELECT ?",
        "SELEC",
        "",
        "SELECT zeroblob(1000000000)",
        "SELECT replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))",
        "SELECT 9e999",
        "SELECT " + "(" * 500 + "1" + ")" * 500,
        " UNION ".join(["SELECT 1"] * 100),
        "SELECT " + ", ".join(["1"] * 5_000),
    ],
)
def test_a_statement_that_reaches_out_or_too_far_is_refused(
    databases: SqlDatabases, statement: str
) -> None:
    if not statement:
        assert run(databases, statement) == []
        return
    with pytest.raises(RequestError):
        run(databases, statement)
    assert run(databases, "SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.parametrize(
    "statement",
    [
        COUNTING + "SELECT count(*) FROM r",
        COUNTING + "SELECT group_concat(n) FROM r",
        COUNTING + "SELECT max(randomblob(500000)) FROM r",
        "WITH RECURSIVE r(n, b) AS (SELECT 1, zeroblob(900000) UNION "
        "SELECT n + 1, randomblob(900000) FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r(n, b) AS (SELECT 1, zeroblob(900000) UNION ALL "
        "SELECT n + 1, randomblob(900000) FROM r LIMIT 5000) SELECT n FROM r ORDER BY b",
        "SELECT "
        + " + ".join(
            f"instr(hex(zeroblob(49000{n})), hex(zeroblob(250000)) || '{n + 1}')" for n in range(9)
        ),
    ],
)
def test_a_statement_that_never_ends_or_eats_memory_is_stopped(
    databases: SqlDatabases, statement: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(RequestError, match="took longer|memory|too big"):
        run(databases, statement)
    assert time.monotonic() - begun < 15
    assert run(databases, "SELECT 1 AS one") == [{"one": 1}]


def test_the_quota_holds_and_nothing_of_the_statement_stays(databases: SqlDatabases) -> None:
    run(databases, "CREATE TABLE filled (b)", at=B)
    with pytest.raises(TooMany, match="its quota is 2,097,152 bytes"):
        run(databases, f"{COUNTING}INSERT INTO filled SELECT randomblob(9000) FROM r", at=B)
    assert run(databases, "SELECT count(*) AS n FROM filled", at=B) == [{"n": 0}]


def test_an_answer_has_limits_of_rows_and_bytes(databases: SqlDatabases) -> None:
    with pytest.raises(TooLarge, match="10,000 rows"):
        run(databases, f"{COUNTING}SELECT n FROM r")
    with pytest.raises(TooLarge, match="bytes"):
        run(databases, f"{COUNTING}SELECT hex(zeroblob(100000)) AS b FROM r LIMIT 20")


def test_a_failed_statement_leaves_nothing_behind(databases: SqlDatabases) -> None:
    run(databases, "CREATE TABLE whole (n UNIQUE)")
    with pytest.raises(SqlError, match="UNIQUE"):
        run(databases, "INSERT INTO whole VALUES (1), (2), (1)")
    with pytest.raises(TooLarge):
        run(databases, f"{COUNTING}INSERT INTO whole SELECT n FROM r LIMIT 20000 RETURNING n")
    assert run(databases, "SELECT * FROM whole") == []


@pytest.mark.parametrize("value", [2**70, {"base64": "!"}, {"other": 1}, [1]])
def test_a_value_that_is_none_of_a_databases_is_refused(
    databases: SqlDatabases, value: Any
) -> None:
    grant = Grant(A, "c", body=True)
    with pytest.raises(RequestError):
        SqlHandler(databases)(
            grant, "execute", {"statement": "SELECT ? AS a", "arguments": [value]}
        )
    assert run(databases, "SELECT 1 AS one") == [{"one": 1}]


def test_a_process_that_is_killed_is_replaced(databases: SqlDatabases) -> None:
    run(databases, "SELECT 1")
    databases._processes[A].popen.kill()
    databases._processes[A].popen.wait()
    assert run(databases, "SELECT 1 AS one") == [{"one": 1}]


def test_more_repositories_than_processes_share_them(databases: SqlDatabases) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            at = RepositoryId(f"repo_{number}")
            run(databases, "CREATE TABLE IF NOT EXISTS t (n)", at=at)
            for n in range(3):
                run(databases, "INSERT INTO t VALUES (?)", n, at=at)
            assert run(databases, "SELECT count(*) AS n FROM t", at=at) == [{"n": 3}]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(databases._processes) <= databases.limits.processes


def test_two_workers_count_without_losing_one(shelves: Callable[[], Shelf]) -> None:
    limits = StorageLimits()
    workers = [SqlDatabases(shelves(), limits) for _ in range(2)]
    run(workers[0], "CREATE TABLE IF NOT EXISTS n (n)")
    run(workers[0], "INSERT INTO n VALUES (0)")

    def count(worker: SqlDatabases) -> None:
        for _ in range(10):
            run(worker, "UPDATE n SET n = n + 1")

    threads = [threading.Thread(target=count, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(workers[0], "SELECT n FROM n") == [{"n": 20}]
    for worker in workers:
        worker.close()


def test_values_by_key_are_listed_page_by_page(databases: SqlDatabases) -> None:
    kv, grant = KvHandler(databases), Grant(A, "c", body=True)
    keys = ["a", "a/1", "a/2", "a/\U0010ffff", "b%", "b_", "bx"]
    for key in keys:
        kv(grant, "put", {"key": key, "value": {"of": key}})
    listed = kv(grant, "list", {"prefix": "a/", "after": "", "limit": 2})
    assert listed == ["a/1", "a/2"]
    rest = kv(grant, "list", {"prefix": "a/", "after": "a/2", "limit": 2})
    assert rest == ["a/\U0010ffff"]
    assert kv(grant, "list", {"prefix": "b%", "after": "", "limit": 9}) == ["b%"]
    assert kv(grant, "get", {"key": "b_"}) == [{"of": "b_"}]
    assert kv(grant, "delete", {"key": "b_"}) is True
    assert kv(grant, "get", {"key": "b_"}) == []
    with pytest.raises(TooLarge, match="the limit is"):
        kv(grant, "put", {"key": "large", "value": "x" * MIB})
    with pytest.raises(TooLarge, match="512"):
        kv(grant, "put", {"key": "x" * 600, "value": 1})


def test_the_database_of_values_is_not_the_database_of_statements(databases: SqlDatabases) -> None:
    KvHandler(databases)(Grant(A, "c", body=True), "put", {"key": "k", "value": 1})
    with pytest.raises(SqlError, match="no such table"):
        run(databases, "SELECT * FROM kv")


def test_storage_needs_a_body_and_trusted_code(databases: SqlDatabases) -> None:
    kv = KvHandler(databases)
    with pytest.raises(NotGranted, match="no step's body"):
        kv(Grant(A, "c", run=RUN, body=False), "get", {"key": "k"})
    with pytest.raises(NotGranted, match="outside of the repository"):
        kv(Grant(A, "c", run=RUN, body=True, trusted=False), "get", {"key": "k"})


def test_what_a_deleted_repository_stored_is_gone(databases: SqlDatabases) -> None:
    gone = RepositoryId("repo_gone")
    run(databases, "CREATE TABLE t (n)", at=gone)
    databases.remove(gone)
    databases.remove(gone)
    with pytest.raises(SqlError, match="no such table"):
        run(databases, "SELECT * FROM t", at=gone)


def test_a_change_of_a_worker_that_was_overtaken_is_made_again_on_the_newer_state() -> None:
    rows, objects = InMemoryShelves(), MemoryStore()
    slow, fast = (SqlDatabases(ObjectShelf(rows, objects), StorageLimits()) for _ in range(2))
    run(slow, "CREATE TABLE n (n)")
    move = rows.move
    overtaken: list[int] = []

    def overtake(repository_id: RepositoryId, name: str, *, version: int, to: str) -> Any:
        if not overtaken:
            overtaken.append(version)
            run(fast, "INSERT INTO n VALUES ('fast')")
        return move(repository_id, name, version=version, to=to)

    rows.move = overtake  # type: ignore[method-assign]
    run(slow, "INSERT INTO n VALUES ('slow')")
    for worker in (slow, fast):
        assert run(worker, "SELECT n FROM n") == [{"n": "fast"}, {"n": "slow"}]
        worker.close()
    assert sum(len(page) for page in objects.list()) == 1  # what was replaced is removed


def test_an_object_store_that_is_out_of_reach_changes_nothing(tmp_path: Path) -> None:
    rows = InMemoryShelves()
    objects = LocalStore(tmp_path / "objects", mkdir=True)
    databases = SqlDatabases(ObjectShelf(rows, objects), StorageLimits())
    run(databases, "CREATE TABLE n (n)")
    (tmp_path / "objects" / "storage" / A).rename(tmp_path / "away")
    (tmp_path / "objects" / "storage" / A).write_text("no folder")
    with pytest.raises(InternalError):
        run(databases, "INSERT INTO n VALUES (1)")
    (tmp_path / "objects" / "storage" / A).unlink()
    (tmp_path / "away").rename(tmp_path / "objects" / "storage" / A)
    assert run(databases, "SELECT count(*) AS n FROM n") == [{"n": 0}]
    databases.close()


@pytest.mark.parametrize("hibernate", ["auto", "always"])
def test_a_deployment_with_its_own_object_store_keeps_storage_there(
    tmp_path: Path, guest_cache: Path, hibernate: str
) -> None:
    scenario = SCENARIOS / "30_storage"
    expect = json.loads((scenario / "expect.json").read_text())
    objects = tmp_path / "objects"
    objects.mkdir()
    with deployed(
        tmp_path / "data", cache=guest_cache, hibernate=hibernate, objects_url=objects.as_uri()
    ) as deployment:
        deployment.push({".ci/pipeline.py": (scenario / "pipeline.py").read_text()})
        run_id = deployment.start()
        deployment.work()
        deployment.advance(86_400)
        assert deployment.run(run_id).output == expect["output"]
        assert sorted(path.name[:3] for path in objects.glob("storage/*/*.db")) == ["kv-", "sql"]
        assert not (tmp_path / "data" / "storage").exists()
        deployment.platform.commands.runs.delete(OWNER, run_id)
        deployment.platform.commands.repositories.delete(OWNER, *REPOSITORY)
        assert list(objects.glob("storage/*/*.db")) == []
