"""Deleting many runs, and finding some among many."""

from __future__ import annotations

import pytest

from ci_platform.commands import StartRun
from ci_platform.model import SYSTEM, Json, Role, RunId, RunState
from tests.integration.api.front import Front

pytestmark = pytest.mark.anyio
RUNS = "/api/v1/repos/acme/widget/runs"
DELETE = f"{RUNS}/batch/delete"


def start(front: Front, name: str, **given: Json) -> str:
    return front.commands.runs.start(SYSTEM, "acme", "widget", StartRun(id=name, **given)).id


async def test_each_run_of_a_batch_is_deleted_on_its_own(front: Front) -> None:
    repository = front.repository()
    other = front.runs(front.repository("other"))[0]
    first = front.runs(repository)[0]
    for name in ("a", "b", "live"):
        start(front, name)
    for run_id in (first.id, "a", "b", other.id):
        front.commands.runs.cancel(SYSTEM, RunId(run_id))
    ids = ["a", "live", "nobody", other.id, "a", "not an id", "b"]
    async with front.client(front.token()) as client:
        answer = await client.post(DELETE, json={"ids": ids})
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
    assert [one["id"] for one in results] == ids
    assert [one["status"] for one in results] == [204, 409, 404, 404, 404, 400, 204]
    assert [one["deleted"] for one in results] == [True, *[False] * 5, True]
    assert "live" in results[1]["detail"] and results[0]["detail"] is None
    assert {run.id for run in front.runs(repository)} == {first.id, "live"}
    assert front.store.runs.get(other.id).state is RunState.CANCELLED


@pytest.mark.parametrize("ids", [[], ["x"] * 101])
async def test_a_batch_deletes_1_to_100_runs(front: Front, ids: list[str]) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(DELETE, json={"ids": ids})
        assert (answer.status_code, answer.json()["field"]) == (400, "ids")


async def test_who_may_not_delete_one_may_not_delete_many(front: Front) -> None:
    repository = front.repository()
    ada = front.user("ada")
    front.role(ada, repository, Role.READER)
    run = front.runs(repository)[0]
    front.finish(run.id)
    async with front.client(front.token(ada)) as client:
        assert (await client.post(DELETE, json={"ids": [run.id]})).status_code == 403
    assert len(front.runs(repository)) == 1


async def test_runs_are_found_by_trigger_actor_state_and_time(front: Front) -> None:
    repository = front.repository()
    pushed = front.runs(repository)[0]
    front.finish(pushed.id)
    front.clock.advance(3600)
    start(front, "later", trigger="api")
    async with front.client(front.token()) as client:

        async def found(**query: Json) -> list[str]:
            answer = await client.get(RUNS, params=query)
            assert answer.status_code == 200, answer.text
            return [run["id"] for run in answer.json()["runs"]]

        then = (await client.get(f"{RUNS}?trigger=api")).json()["runs"][0]["created_at"]
        assert await found(trigger="push") == [pushed.id]
        assert pushed.id in await found(actor=pushed.actor)
        assert await found(actor="nobody") == []
        assert await found(state="passed") == [pushed.id]
        assert await found(state=["passed", "queued"]) == ["later", pushed.id]
        assert await found(created_after=then) == ["later"]
        assert await found(created_before=then) == [pushed.id]
        page = (await client.get(RUNS, params={"limit": 1, "state": ["passed", "queued"]})).json()
        assert await found(cursor=page["cursor"]) == [pushed.id]
        bad = await client.get(RUNS, params={"created_after": "yesterday"})
        assert (bad.status_code, bad.json()["field"]) == (400, "created_after")
