"""Creating, reading, listing and deleting runs: the same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ci_platform.envelope import Dispatch, wrap
from ci_platform.errors import Conflict, InvalidRequest, RunExists, RunNotFound
from ci_platform.model import AuditNote, EntryKind, ErrorInfo, RepositoryId, RunId, RunState, Wait
from ci_platform.ports import RunFilter, Store
from tests.contract.store_values import (
    REPO,
    WORKER,
    FakeClock,
    append,
    claimed,
    created,
    end,
    new_run,
    note,
    started,
    suspend,
    update,
)


def test_a_new_run_is_queued_due_now_and_has_its_first_entry(
    store: Store, clock: FakeClock
) -> None:
    run = store.runs.create([new_run(params={"deep": [1, None, "é"]})])[0]
    assert (run.number, run.state, run.last_seq, run.fence) == (1, RunState.QUEUED, 1, 0)
    assert run.ready_ms == run.created_ms == clock.now_ms()
    assert (run.worker, run.started_ms, run.ended_ms) == (None, None, None)
    (entry,) = store.runs.journal(run.id)
    assert (entry.seq, entry.kind, entry.at_ms) == (1, EntryKind.RUN_CREATED, clock.now_ms())
    assert entry.data == {
        "trigger": "push",
        "actor": "ann",
        "pipeline": "CI",
        "ref": "refs/heads/main",
        "commit": "c" * 40,
    }


def test_the_audit_log_tells_of_runs_that_were_created_and_of_no_others(store: Store) -> None:
    told = AuditNote(5, "ann", "run started", "run_one", {"token": "tok_1"})
    store.runs.create([new_run("one")], notes=[told])
    with pytest.raises(RunExists):
        other = replace(told, subject="run_two")
        store.runs.create([new_run("two"), new_run("one")], notes=[other, told])
    assert store.audit.list() == [
        {"at_ms": 5, "actor": "ann", "action": "run started", "subject": "run_one"}
        | {"detail": {"token": "tok_1"}}
    ]


def test_the_audit_log_tells_of_each_run_of_a_batch_newest_first(store: Store) -> None:
    names = ("one", "two", "three")
    notes = [AuditNote(5, "ann", "run started", f"run_{name}", {"n": 1}) for name in names]
    store.runs.create([new_run(name) for name in names], notes=notes)
    store.audit.record(6, "ann", "run deleted", "run_four", {})
    told = ["run_four", "run_three", "run_two", "run_one"]
    assert [line["subject"] for line in store.audit.list()] == told
    assert [line["subject"] for line in store.audit.list(limit=2)] == told[:2]
    assert store.audit.list()[1] == {
        **{"at_ms": 5, "actor": "ann", "action": "run started", "subject": "run_three"},
        "detail": {"n": 1},
    }


def test_a_run_reads_back_as_it_was_created(store: Store) -> None:
    run = store.runs.create([new_run(params={"deep": [1, None, "é", 2**70, 0.5]})])[0]
    assert store.runs.get(run.id) == run
    assert store.runs.by_number(REPO, 1) == run


@pytest.mark.parametrize("changed", [None, "repository_id", "pipeline", "ref", "commit", "resume"])
def test_an_envelope_reads_back_as_it_was_whether_it_repeats_the_row_or_not(
    store: Store, changed: str | None
) -> None:
    new = new_run()
    dispatch = Dispatch(new.repository_id, new.pipeline, new.ref, new.commit, new.resume.value)
    if changed is not None:
        dispatch = replace(dispatch, **{changed: "b" * 40})
    new = replace(new, payload=wrap(dispatch, {"a": [1, None]}))
    created = store.runs.create([new])[0]
    (claim,) = store.runs.claim(WORKER, limit=1, lease_ms=1_000)
    assert created.payload == new.payload
    assert store.runs.get(new.id).payload == new.payload
    assert claim.run.payload == new.payload


def test_a_run_reads_back_as_it_was_appended(store: Store) -> None:
    run = started(store)
    waits = [Wait("wait", "answer", "reply", 5, None), Wait("sleep", "nap#2", None, 5, 9)]
    to = update(run, RunState.WAITING, ready_ms=99, waits=waits)
    appended = append(store, run, note(), to=to, fence=run.fence)
    read = store.runs.get(run.id)
    assert list(read.waits) == waits
    assert (read.state, read.ready_ms, read.worker) == (RunState.WAITING, 99, None)
    assert appended.run.last_seq == read.last_seq == 3
    assert appended.run.payload == read.payload == run.payload


def test_a_run_whose_pipeline_does_not_load_is_born_failed(store: Store, clock: FakeClock) -> None:
    error = ErrorInfo("SyntaxError", "bad", "line 1", {"line": 1})
    run = store.runs.create([new_run(failed=error)])[0]
    assert (run.state, run.error, run.ended_ms) == (RunState.FAILED, error, clock.now_ms())
    assert run.ready_ms is None
    kinds = [entry.kind for entry in store.runs.journal(run.id)]
    assert kinds == [EntryKind.RUN_CREATED, EntryKind.RUN_FAILED]
    assert store.runs.get(run.id) == run
    assert store.runs.claim(WORKER, limit=1, lease_ms=1000) == []


def test_runs_are_numbered_within_their_repository(store: Store) -> None:
    runs = store.runs.create([new_run("1"), new_run("2", repository="repo_b"), new_run("3")])
    runs += store.runs.create([new_run("4", repository="repo_b")])
    assert [(run.repository_id, run.number) for run in runs] == [
        ("repo_a", 1),
        ("repo_b", 1),
        ("repo_a", 2),
        ("repo_b", 2),
    ]


def test_an_existing_id_refuses_the_whole_batch_and_is_named(store: Store) -> None:
    created(store, "2")
    with pytest.raises(RunExists, match="run_2"):
        store.runs.create([new_run("1"), new_run("2")])
    with pytest.raises(RunNotFound):
        store.runs.get(RunId("run_1"))
    assert created(store, "3").number == 2  # the refused one used no number


def test_an_id_twice_in_one_batch_is_refused(store: Store) -> None:
    with pytest.raises(RunExists, match="run_1"):
        store.runs.create([new_run("1"), new_run("1")])


def test_skipping_existing_ids_creates_the_others(store: Store) -> None:
    created(store, "1")
    runs = store.runs.create([new_run("1"), new_run("2"), new_run("2")], skip_existing=True)
    assert [(run.id, run.number) for run in runs] == [("run_2", 2)]
    assert store.runs.create([new_run("2")], skip_existing=True) == []


def test_no_number_is_given_twice_or_left_out_when_many_create_at_once(store: Store) -> None:
    def create(worker: int) -> list[int]:
        return [
            run.number
            for index in range(20)
            for run in store.runs.create(
                [new_run(f"{worker}-{index}"), new_run(f"{index}-same")], skip_existing=True
            )
        ]

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for part in pool.map(create, range(8)) for number in part]
    assert sorted(numbers) == list(range(1, 8 * 20 + 20 + 1))


def test_unknown_runs_are_not_found(store: Store) -> None:
    missing = RunId("run_missing")
    for ask in (store.runs.get, store.runs.journal, store.runs.delete):
        with pytest.raises(RunNotFound, match="run_missing"):
            ask(missing)
    with pytest.raises(RunNotFound, match="#7"):
        store.runs.by_number(REPO, 7)


def test_the_journal_is_read_in_pieces(store: Store) -> None:
    run = started(store)
    append(store, run, *[note({"n": n}) for n in range(5)], fence=run.fence)
    assert [entry.seq for entry in store.runs.journal(run.id)] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry.seq for entry in store.runs.journal(run.id, after=5)] == [6, 7]
    assert [entry.seq for entry in store.runs.journal(run.id, after=2, limit=2)] == [3, 4]
    assert store.runs.journal(run.id, after=99) == []


def test_counts_are_of_states_that_are_not_terminal(store: Store) -> None:
    created(store, "1")
    suspend(store, claimed(store))
    created(store, "2")
    end(store, claimed(store))
    created(store, "3")
    assert store.runs.counts() == {
        RunState.QUEUED: 1,
        RunState.RUNNING: 0,
        RunState.WAITING: 1,
        RunState.PAUSED: 0,
    }


def test_pages_are_newest_first_and_meet_without_gap(store: Store) -> None:
    store.runs.create([new_run(f"{n:02}", repository=f"repo_{n % 3}") for n in range(10)])
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = store.runs.list(RunFilter(), cursor=cursor, limit=4)
        found += [run.id for run in page.runs]
        cursor, pages = page.cursor, pages + 1
    assert found == [f"run_{n:02}" for n in reversed(range(10))]
    assert pages == 3


def test_the_last_page_has_no_cursor_even_when_it_is_full(store: Store) -> None:
    store.runs.create([new_run("1"), new_run("2")])
    assert store.runs.list(RunFilter(), limit=2).cursor is None
    assert store.runs.list(RunFilter(), limit=1).cursor is not None


def test_a_page_stays_put_while_new_runs_come(store: Store) -> None:
    store.runs.create([new_run("1"), new_run("2"), new_run("3")])
    first = store.runs.list(RunFilter(), limit=2)
    created(store, "4")
    rest = store.runs.list(RunFilter(), cursor=first.cursor, limit=2)
    assert [run.id for run in rest.runs] == ["run_1"]


def test_lists_are_filtered_by_each_field(store: Store) -> None:
    store.runs.create(
        [
            new_run("1", ref="refs/heads/dev"),
            new_run("2", repository="repo_b"),
            new_run("3", pipeline="Nightly"),
            new_run("4"),
        ]
    )
    end(store, claimed(store))

    def listed(**fields: object) -> list[str]:
        page = store.runs.list(RunFilter(**fields))  # type: ignore[arg-type]
        return [run.id.removeprefix("run_") for run in page.runs]

    assert listed(repository_ids=[REPO]) == ["4", "3", "1"]
    assert listed(repository_ids=[REPO, RepositoryId("repo_b")]) == ["4", "3", "2", "1"]
    assert listed(repository_ids=[]) == []
    assert listed(pipeline="Nightly") == ["3"]
    assert listed(branch="dev") == ["1"]
    assert listed(states=(RunState.PASSED,)) == ["1"]
    assert listed(states=(RunState.PASSED, RunState.QUEUED)) == ["4", "3", "2", "1"]
    assert listed(states=(RunState.QUEUED,), repository_ids=[REPO]) == ["4", "3"]
    assert listed(commit="d" * 40) == []
    many = [RepositoryId(f"repo_{n}") for n in range(70)] + [REPO]
    assert listed(states=(RunState.QUEUED,), repository_ids=many) == ["4", "3"]


@pytest.mark.parametrize("cursor", ["x", "-1", "1" * 30, "", "１"])
def test_a_strange_cursor_is_named(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor") as caught:
        store.runs.list(RunFilter(), cursor=cursor)
    assert caught.value.field == "cursor"


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_a_page_limit_out_of_range_is_refused(store: Store, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        store.runs.list(RunFilter(), limit=limit)


def test_only_an_ended_run_is_deleted_and_all_of_it_goes(store: Store) -> None:
    run = started(store)
    with pytest.raises(Conflict, match="running"):
        store.runs.delete(run.id)
    end(store, run)
    store.runs.delete(run.id)
    with pytest.raises(RunNotFound):
        store.runs.get(run.id)
    with pytest.raises(RunNotFound):
        store.runs.journal(run.id)
    assert store.logs.steps(run.id) == {}
    assert created(store, "one").number == 2  # the id is free again, the number is not


@pytest.mark.parametrize("text", ["nul\0", "lone\ud800"])
def test_text_that_no_database_holds_is_refused_by_name(store: Store, text: str) -> None:
    with pytest.raises(InvalidRequest, match="ref") as caught:
        store.runs.create([new_run(ref=text)])
    assert caught.value.field == "ref"


def test_json_may_hold_any_text(store: Store) -> None:
    strange = {"nul": "\0", "lone": "\ud800", "emoji": "🦑", "line": "\u2028"}
    run = store.runs.create([new_run(params=strange)])[0]
    assert store.runs.get(run.id).payload["params"] == strange


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"bytes", object()])
def test_what_is_not_json_is_refused_by_name(store: Store, value: object) -> None:
    with pytest.raises(InvalidRequest, match="payload is not JSON"):
        store.runs.create([new_run(params=value)])


def test_runs_are_found_by_trigger_actor_and_time(store: Store, clock: FakeClock) -> None:
    store.runs.create([new_run("a"), replace(new_run("b"), trigger="api", actor="bob")])
    clock.advance(1000)
    store.runs.create([new_run("c")])
    now_ms = clock.now_ms()

    def found(which: RunFilter) -> list[str]:
        return [run.id for run in store.runs.list(which).runs]

    assert found(RunFilter(trigger="api")) == ["run_b"]
    assert found(RunFilter(actor="bob", trigger="push")) == []
    assert found(RunFilter(repository_ids=[REPO], actor="ann")) == ["run_c", "run_a"]
    assert found(RunFilter(created_after_ms=now_ms)) == ["run_c"]
    assert found(RunFilter(created_before_ms=now_ms)) == ["run_b", "run_a"]
