"""Many at once: whoever comes second looks again, and nothing is lost or done twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ci_platform.commands import StartRun
from ci_platform.errors import Conflict, NotFound, RunExists, SluiceError
from ci_platform.model import SYSTEM, EntryKind, Push, RefUpdate, Role, RunId, User
from tests.integration.api.front import PASSWORD, Front

MANY = 12
T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], T]]) -> list[T | SluiceError]:
    """Call all of them at the same moment; errors of the platform are answers too."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], T]) -> T | SluiceError:
        barrier.wait(10)
        try:
            return call()
        except SluiceError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def kinds(front: Front, run_id: RunId) -> Counter[EntryKind]:
    return Counter(entry.kind for entry in front.store.runs.journal(run_id))


def test_one_of_many_starts_with_the_same_id_wins(front: Front) -> None:
    repository = front.repository(pipeline=None)
    front.push(repository, {".ci/pipeline.py": "# " + '[{"name": "CI"}]'})
    answers = at_once(
        [
            lambda: front.commands.runs.start(SYSTEM, "acme", "widget", StartRun(id="mine"))
            for _ in range(MANY)
        ]
    )
    assert Counter(type(one).__name__ for one in answers) == {"Run": 1, "RunExists": MANY - 1}
    assert any(isinstance(one, RunExists) for one in answers)
    assert len(front.runs(repository)) == 1


def test_a_push_told_by_many_at_once_starts_one_run(front: Front) -> None:
    repository = front.repository()
    commit = front.runs(repository)[0].commit
    update = RefUpdate("refs/heads/main", None, commit)
    push = Push("push_1", repository.id, front.clock.now_ms(), "ada", None, [update])
    answers = at_once([lambda: front.commands.pushes.received(push)] * MANY)
    assert len({str(one) for one in answers}) == 1
    assert len(front.runs(repository)) == 2


def test_every_event_of_many_senders_is_kept_and_one_is_consumed(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.wait_for(run.id, "go")
    answers = at_once(
        [
            partial(front.commands.runs.send_event, SYSTEM, run.id, "go", number)
            for number in range(MANY)
        ]
    )
    assert not [one for one in answers if isinstance(one, SluiceError)]
    found = kinds(front, run.id)
    assert found[EntryKind.EVENT_RECEIVED] == MANY
    assert found[EntryKind.STEP_PASSED] == 1


def people(front: Front, count: int) -> list[User]:
    repository = front.queries.repository(SYSTEM, "acme", "widget")
    found = []
    for number in range(count):
        user = front.user(f"user{number}")
        front.role(user, repository, Role.WRITER)
        found.append(user)
    return found


def test_many_approvers_at_once_are_all_counted(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.approval(run.id, required=MANY)
    decide = front.commands.approvals.decide
    answers = at_once(
        [
            partial(decide, front.identity.of_user(user), run.id, "deploy", decision="approve")
            for user in people(front, MANY)
        ]
    )
    assert not [one for one in answers if isinstance(one, SluiceError)]
    gate = front.store.approvals.of_run(run.id)[0]
    assert (gate.outcome, len(gate.decisions)) == ("approved", MANY)
    found = kinds(front, run.id)
    assert (found[EntryKind.APPROVAL_DECIDED], found[EntryKind.STEP_PASSED]) == (MANY, 1)


def test_one_person_who_answers_many_times_at_once_has_answered_once(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.approval(run.id, required=2)
    actor = front.identity.of_user(people(front, 1)[0])
    decide = front.commands.approvals.decide
    answers = at_once([lambda: decide(actor, run.id, "deploy", decision="approve")] * MANY)
    firsts = [one.first for one in answers if not isinstance(one, SluiceError)]
    assert Counter(firsts) == {True: 1, False: MANY - 1}
    assert len(front.store.approvals.of_run(run.id)[0].decisions) == 1


def test_approvals_against_rejections_end_in_one_outcome(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.approval(run.id)
    decide = front.commands.approvals.decide
    answers = at_once(
        [
            partial(decide, front.identity.of_user(user), run.id, "deploy", decision=word)
            for user, word in zip(people(front, MANY), ["approve", "reject"] * MANY, strict=False)
        ]
    )
    assert Counter(type(one).__name__ for one in answers) == {"Decided": 1, "Conflict": MANY - 1}
    found = kinds(front, run.id)
    assert found[EntryKind.STEP_PASSED] + found[EntryKind.STEP_FAILED] == 1


def test_holding_and_letting_go_at_once_leaves_a_run_that_can_go_on(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.approval(run.id)
    runs = front.commands.runs
    at_once([lambda: runs.pause(SYSTEM, run.id), lambda: runs.resume(SYSTEM, run.id)] * (MANY // 2))
    runs.pause(SYSTEM, run.id)
    assert runs.resume(SYSTEM, run.id).state == "queued"


def test_cancelling_many_times_cancels_once(front: Front) -> None:
    run = front.runs(front.repository())[0]
    answers = at_once([lambda: front.commands.runs.cancel(SYSTEM, run.id)] * MANY)
    assert Counter(type(one).__name__ for one in answers) == {"Run": 1, "Conflict": MANY - 1}
    assert any(isinstance(one, Conflict) for one in answers)
    assert kinds(front, run.id)[EntryKind.RUN_CANCELLED] == 1


def test_the_link_makes_one_admin_however_many_use_it(front: Front) -> None:
    secret = front.identity.setup_link() or ""
    answers = at_once(
        [
            partial(front.commands.people.set_up, secret, f"user{number}", PASSWORD)
            for number in range(MANY)
        ]
    )
    assert sum(isinstance(one, NotFound) for one in answers) == MANY - 1
    assert len(front.store.identity.users()) == 1
