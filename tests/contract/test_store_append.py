"""Appending: the one way a run moves. The same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ci_platform.effects import (
    CloseApproval,
    CloseOperation,
    DelayApprovals,
    RecordDecision,
    StopOperations,
)
from ci_platform.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    LeaseLost,
    RunNotFound,
    StepNotFound,
)
from ci_platform.model import (
    Draft,
    EntryKind,
    OperationId,
    OperationState,
    Run,
    RunId,
    RunState,
    StepKey,
    StepKind,
    WorkerId,
)
from ci_platform.ports import Append, Store
from tests.contract.store_values import (
    BUILD,
    GATE,
    LEASE_MS,
    WORKER,
    FakeClock,
    append,
    claimed,
    created,
    end,
    gate,
    note,
    operation,
    started,
    suspend,
    update,
)


def decide(user: str = "bob", decision: str = "approve", key: StepKey = GATE) -> RecordDecision:
    return RecordDecision(key, f"usr_{user}", user, decision, "looks good", "page", {"a": 1})


def test_entries_are_numbered_without_holes_and_stamped(store: Store, clock: FakeClock) -> None:
    run = started(store)
    clock.advance(5)
    key = StepKey(StepKind.DO, "build#2", 2)
    drafts = [Draft(EntryKind.STEP_STARTED, {"config": {}}, key, 1), note()]
    appended = append(store, run, *drafts, fence=run.fence)
    assert appended.applied
    assert [(entry.seq, entry.at_ms) for entry in appended.entries] == [
        (3, clock.now_ms()),
        (4, clock.now_ms()),
    ]
    assert list(store.runs.journal(run.id, after=2)) == list(appended.entries)
    assert store.runs.journal(run.id)[2].key == key


def test_an_append_behind_the_journal_is_refused_with_what_is_new(store: Store) -> None:
    run = started(store)
    append(store, run, note({"n": 1}), note({"n": 2}))
    late = append(store, run, note({"n": 3}), fence=run.fence)
    assert not late.applied
    assert [entry.data for entry in late.entries] == [{"n": 1}, {"n": 2}]
    assert late.run.last_seq == 4
    assert len(store.runs.journal(run.id)) == 4


def test_deciding_again_on_the_new_entries_succeeds(store: Store) -> None:
    run = started(store)
    append(store, run)
    late = append(store, run, fence=run.fence)
    assert append(store, late.run, fence=run.fence).applied


def test_a_worker_that_lost_its_lease_writes_nothing(store: Store, clock: FakeClock) -> None:
    run = started(store)
    clock.advance(LEASE_MS)
    assert store.runs.expire() == 1
    with pytest.raises(LeaseLost, match="run_one"):
        append(store, run, fence=run.fence)
    other = claimed(store, worker=WorkerId("worker-2"))
    with pytest.raises(LeaseLost):
        append(store, replace(run, last_seq=other.last_seq), fence=run.fence)
    assert append(store, other, fence=other.fence).applied


def test_a_lease_let_go_is_no_lease(store: Store) -> None:
    run = started(store)
    suspended = suspend(store, run)
    assert (suspended.worker, suspended.lease_until_ms) == (None, None)
    with pytest.raises(LeaseLost):
        append(store, suspended, fence=run.fence)


def test_people_append_without_a_lease_and_take_none_away(store: Store) -> None:
    run = started(store)
    appended = append(store, run, to=update(run, hold=True))
    assert appended.run.worker == WORKER
    assert append(store, appended.run, fence=run.fence).applied


def test_a_leased_run_is_due_at_no_time(store: Store) -> None:
    run = started(store)
    appended = append(store, run, to=update(run, ready_ms=1))
    assert appended.run.ready_ms is None
    assert store.runs.next_ready_ms() is None


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.PASSED])
def test_a_run_that_cannot_be_claimed_is_due_at_no_time(store: Store, state: RunState) -> None:
    run = started(store)
    append(store, run, to=update(run, state, ready_ms=1, hold=False))
    assert store.runs.get(run.id).ready_ms is None
    assert store.runs.claim(WORKER, limit=1, lease_ms=LEASE_MS) == []


def test_the_end_of_a_run_is_noted_and_drops_the_lease(store: Store, clock: FakeClock) -> None:
    run = started(store)
    clock.advance(7)
    to = update(run, RunState.PASSED, output={"version": 1}, hold=True)
    ended = append(store, run, Draft(EntryKind.RUN_PASSED), to=to, fence=run.fence).run
    assert (ended.ended_ms, ended.worker, ended.output) == (clock.now_ms(), None, {"version": 1})
    assert ended.started_ms == clock.now_ms() - 7
    assert store.runs.get(run.id) == ended


def test_an_ended_run_takes_no_more_entries(store: Store) -> None:
    run = started(store)
    ended = end(store, run)
    late = append(store, run)
    assert not late.applied
    assert [entry.kind for entry in late.entries] == [EntryKind.RUN_PASSED]
    with pytest.raises(Conflict, match="has ended"):
        append(store, ended)


def test_an_append_without_entries_is_refused(store: Store) -> None:
    run = started(store)
    with pytest.raises(InvalidRequest, match="without entries"):
        store.runs.append(Append(run.id, run.last_seq, (), update(run)))


def test_an_append_from_the_future_is_our_own_error(store: Store) -> None:
    run = started(store)
    with pytest.raises(InternalError, match="entry 99"):
        append(store, replace(run, last_seq=99))


def test_an_append_to_no_run_says_so(store: Store) -> None:
    run = started(store)
    with pytest.raises(RunNotFound, match="run_other"):
        append(store, replace(run, id=RunId("run_other")))


@pytest.mark.parametrize(
    "draft",
    [
        note({"value": {1}}),
        note({"value": float("inf")}),
        Draft(EntryKind.STEP_STARTED, {}, StepKey(StepKind.DO, "nul\0"), 1),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_is_written(
    store: Store, draft: Draft
) -> None:
    run = started(store)
    with pytest.raises(InvalidRequest):
        append(store, run, note(), draft, effects=[operation()])
    with pytest.raises(InvalidRequest):
        append(store, run, to=update(run, reason="nul\0"), effects=[operation()])
    with pytest.raises(InvalidRequest):
        append(store, run, to=update(run, output={1}), effects=[operation()])
    assert store.runs.get(run.id) == run
    assert store.operations.get(OperationId("op_1")) is None


def test_of_many_who_append_at_once_each_sees_all_the_others(store: Store) -> None:
    run = created(store)

    def add(thread: int) -> None:
        seen = run
        for index in range(20):
            while True:
                appended = append(
                    store, seen, note({"by": [thread, index]}), to=update(seen, RunState.QUEUED)
                )
                seen = appended.run
                if appended.applied:
                    break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    entries = store.runs.journal(run.id)
    assert [entry.seq for entry in entries] == list(range(1, 162))
    written = [entry.data["by"] for entry in entries[1:]]
    assert sorted(written) == [[thread, index] for thread in range(8) for index in range(20)]
    assert all(
        [index for by, index in written if by == thread] == list(range(20)) for thread in range(8)
    )


def test_an_error_in_one_append_harms_none_beside_it(store: Store) -> None:
    runs = [created(store, str(number)) for number in range(12)]

    def add(number: int) -> str:
        run = runs[number]
        to = update(run, RunState.QUEUED)
        effects = []
        match number % 4:
            case 1:
                effects = [operation("op_same")]
            case 2:
                to = update(run, RunState.QUEUED, output=object())
            case 3:
                run = replace(run, id=RunId(f"run_missing_{number}"))
        try:
            return str(append(store, run, to=to, effects=effects).applied)
        except (Conflict, InvalidRequest, RunNotFound) as error:
            return type(error).__name__

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(add, range(12)))
    assert [results[number] for number in (0, 4, 8)] == ["True"] * 3
    assert sorted(results[number] for number in (1, 5, 9)) == ["Conflict", "Conflict", "True"]
    assert [results[number] for number in (2, 6, 10)] == ["InvalidRequest"] * 3
    assert [results[number] for number in (3, 7, 11)] == ["RunNotFound"] * 3
    seqs = [store.runs.get(run.id).last_seq for run in runs]
    assert [seqs[n] for n in (0, 4, 8)] == [2, 2, 2]
    assert [seqs[n] for n in (2, 3, 6, 7, 10, 11)] == [1] * 6


# --- operations -----------------------------------------------------------------------------------


def opened(store: Store, *names: str) -> Run:
    run = started(store)
    effects = [operation(name) for name in names or ("op_1",)]
    return append(store, run, fence=run.fence, effects=effects).run


def test_an_operation_opens_and_closes_with_its_entries(store: Store) -> None:
    run = opened(store)
    (one,) = store.operations.claim(WORKER, limit=5, lease_ms=LEASE_MS)
    assert (one.id, one.run_id, one.repository_id) == ("op_1", run.id, run.repository_id)
    assert (one.key, one.attempt, one.spec) == (BUILD, 1, {"script": "make"})
    append(store, run, effects=[CloseOperation(one.id, one.fence)])
    done = store.operations.get(one.id)
    assert done is not None
    assert (done.state, done.worker, done.lease_until_ms) == (OperationState.DONE, None, None)


@pytest.mark.parametrize("fence", [0, 2])
def test_closing_an_operation_under_another_fence_is_refused(store: Store, fence: int) -> None:
    run = opened(store)
    store.operations.claim(WORKER, limit=5, lease_ms=LEASE_MS)
    with pytest.raises(LeaseLost, match="op_1"):
        append(store, run, effects=[CloseOperation(OperationId("op_1"), fence)])
    assert store.runs.get(run.id).last_seq == run.last_seq


def test_closing_an_operation_twice_is_refused(store: Store) -> None:
    run = opened(store)
    (one,) = store.operations.claim(WORKER, limit=5, lease_ms=LEASE_MS)
    run = append(store, run, effects=[CloseOperation(one.id, one.fence)]).run
    with pytest.raises(LeaseLost):
        append(store, run, effects=[CloseOperation(one.id, one.fence)])


def test_an_operation_that_exists_is_not_opened_again(store: Store) -> None:
    run = opened(store)
    with pytest.raises(Conflict):
        append(store, run, note(), effects=[operation("op_2"), operation("op_1")])
    assert store.operations.get(OperationId("op_2")) is None
    assert store.runs.get(run.id).last_seq == run.last_seq


def test_stopping_ends_queued_operations_and_tells_running_ones(store: Store) -> None:
    run = opened(store, "op_1", "op_2")
    store.operations.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    append(store, run, effects=[StopOperations()])
    running, queued = (store.operations.get(OperationId(name)) for name in ("op_1", "op_2"))
    assert running is not None and queued is not None
    assert (running.state, running.stop) == (OperationState.RUNNING, True)
    assert (queued.state, queued.stop) == (OperationState.DONE, True)
    assert store.operations.claim(WORKER, limit=5, lease_ms=LEASE_MS) == []


def test_stopping_one_step_leaves_the_others(store: Store) -> None:
    run = started(store)
    other = StepKey(StepKind.SH, "test")
    effects = [operation("op_1"), operation("op_2", key=other)]
    run = append(store, run, effects=effects).run
    append(store, run, effects=[StopOperations(BUILD)])
    assert [one.id for one in store.operations.claim(WORKER, limit=5, lease_ms=LEASE_MS)] == [
        "op_2"
    ]


def test_effects_apply_in_their_order(store: Store) -> None:
    run = opened(store, "op_1")
    append(store, run, effects=[StopOperations(), operation("op_2")])
    assert [one.id for one in store.operations.claim(WORKER, limit=5, lease_ms=LEASE_MS)] == [
        "op_2"
    ]


def test_the_end_of_a_run_ends_its_operations_and_gates(store: Store, clock: FakeClock) -> None:
    run = opened(store, "op_1", "op_2")
    run = append(store, run, effects=[gate()]).run
    store.operations.claim(WORKER, limit=1, lease_ms=LEASE_MS)
    end(store, run, RunState.CANCELLED)
    states = [store.operations.get(OperationId(name)) for name in ("op_1", "op_2")]
    assert [one.state for one in states if one] == [OperationState.RUNNING, OperationState.DONE]
    assert [one.stop for one in states if one] == [True, True]
    assert store.approvals.open() == []
    assert store.approvals.get(run.id, GATE).outcome == "cancelled"
    clock.advance(LEASE_MS)
    store.runs.expire()
    lost = store.operations.get(OperationId("op_1"))
    assert lost is not None and lost.state is OperationState.DONE


# --- gates ----------------------------------------------------------------------------------------


def test_a_gate_opens_is_answered_and_closes(store: Store, clock: FakeClock) -> None:
    run = started(store)
    run = append(store, run, effects=[gate(expires_ms=99)]).run
    assert [one.key for one in store.approvals.open()] == [GATE]
    clock.advance(3)
    run = append(store, run, effects=[decide("bob"), CloseApproval(GATE, "approved")]).run
    found = store.approvals.get(run.id, GATE)
    assert (found.outcome, found.closed_ms, found.expires_ms) == ("approved", clock.now_ms(), 99)
    assert found.opened_ms == clock.now_ms() - 3
    assert found.spec == {"approvers": ["role:maintainer"], "required": 1}
    (decision,) = found.decisions
    assert (decision.user, decision.decision, decision.way) == ("bob", "approve", "page")
    assert (decision.form, decision.comment) == ({"a": 1}, "looks good")
    assert store.approvals.decision(run.id, GATE, "usr_bob") == decision
    assert store.approvals.decision(run.id, GATE, "usr_eve") is None
    assert store.approvals.open() == []


def test_the_ends_of_open_gates_move_and_those_of_closed_ones_do_not(store: Store) -> None:
    closed, endless = StepKey(GATE.kind, "closed"), StepKey(GATE.kind, "endless")
    run = started(store)
    opened = [gate(expires_ms=99), gate(closed, expires_ms=99), gate(endless)]
    run = append(store, run, effects=[*opened, CloseApproval(closed, "approved")]).run
    run = append(store, run, effects=[DelayApprovals(2**40)]).run
    ends = {one.key: one.expires_ms for one in store.approvals.of_run(run.id)}
    assert ends == {GATE: 99 + 2**40, closed: 99, endless: None}


def test_a_second_answer_of_the_same_person_is_refused(store: Store) -> None:
    run = started(store)
    run = append(store, run, effects=[gate()]).run
    run = append(store, run, effects=[decide("bob")]).run
    with pytest.raises(Conflict, match="bob has already answered"):
        append(store, run, effects=[decide("bob", "reject")])
    append(store, run, effects=[decide("eve", "reject")])
    answers = store.approvals.get(run.id, GATE).decisions
    assert [(one.user, one.decision) for one in answers] == [("bob", "approve"), ("eve", "reject")]


def test_a_closed_gate_takes_no_answer(store: Store) -> None:
    run = started(store)
    run = append(store, run, effects=[gate()]).run
    run = append(store, run, effects=[CloseApproval(GATE, "expired")]).run
    with pytest.raises(Conflict, match="expired"):
        append(store, run, effects=[decide()])
    run = append(store, run, effects=[CloseApproval(GATE, "approved")]).run
    assert store.approvals.get(run.id, GATE).outcome == "expired"  # closed once


def test_an_answer_to_no_gate_is_refused(store: Store) -> None:
    run = started(store)
    with pytest.raises(StepNotFound, match="deploy"):
        append(store, run, effects=[decide()])
    with pytest.raises(StepNotFound):
        store.approvals.get(run.id, GATE)


def test_open_gates_are_listed_by_repository_oldest_first(store: Store, clock: FakeClock) -> None:
    for number, repository in enumerate(("repo_a", "repo_b", "repo_a")):
        created(store, str(number), repository=repository)
        run = claimed(store)
        append(store, run, effects=[gate()])
        clock.advance(1)

    def listed(*repositories: str) -> list[str]:
        return [one.run_id for one in store.approvals.open(repositories)]  # type: ignore[arg-type]

    assert [one.run_id for one in store.approvals.open()] == ["run_0", "run_1", "run_2"]
    assert listed("repo_a") == ["run_0", "run_2"]
    assert listed("repo_a", "repo_b") == ["run_0", "run_1", "run_2"]
    assert listed() == []
    assert [one.key for one in store.approvals.of_run(RunId("run_1"))] == [GATE]


@pytest.mark.parametrize("fence", [1, None], ids=["its worker", "a person"])
def test_what_was_decided_about_a_deleted_run_is_not_written_to_another_of_its_id(
    fence: int | None, store: Store
) -> None:
    before = started(store)
    store.runs.delete(end(store, before).id)
    after = started(store)
    assert (after.id, after.fence, after.last_seq) == (before.id, before.fence, before.last_seq)
    late = Append(
        run_id=before.id,
        expected_seq=before.last_seq,
        drafts=(note(),),
        update=update(before),
        fence=fence,
        identity=(before.repository_id, before.number),
    )
    with pytest.raises(RunNotFound if fence is None else LeaseLost, match="another one has its id"):
        store.runs.append(late)
    assert store.runs.get(after.id).last_seq == after.last_seq
    mine = replace(late, fence=after.fence, identity=(after.repository_id, after.number))
    assert store.runs.append(mine).applied
