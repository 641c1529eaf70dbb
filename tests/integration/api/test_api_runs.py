"""Runs over HTTP: starting, looking, changing, answering."""

from __future__ import annotations

import httpx
import pytest

from ci_platform.identity import Scope, console
from ci_platform.model import SYSTEM, Json, Repository, Role, Run, StartStep, StepKey, StepKind
from tests.integration.api.front import BASE_URL, PUSHED, Front, pipeline_file

pytestmark = pytest.mark.anyio
RUNS = "/api/v1/repos/acme/widget/runs"


async def post(client: httpx.AsyncClient, path: str, body: Json = None, status: int = 200) -> Json:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def waiting_run(front: Front, repository: Repository, **spec: Json) -> Run:
    return front.approval(front.runs(repository)[0].id, **spec)


async def test_a_run_is_started_with_nothing_said(front: Front) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(RUNS)
    assert answer.status_code == 201
    started = answer.json()
    assert started == {
        "id": started["id"],
        "number": 2,
        "url": f"{BASE_URL}/runs/{started['id']}",
        "state": "queued",
        "reason": None,
        "pause_requested": False,
    }


async def test_a_run_shows_what_design_promises(front: Front) -> None:
    repository = front.repository()
    async with front.client(front.token()) as client:
        started = await post(client, RUNS, {"params": {"__dispatch": "mine"}}, 201)
        front.wait_for(started["id"], "go")
        shown = (await client.get(f"/api/v1/runs/{started['id']}")).json()
    assert shown["state"] == "waiting"
    assert shown["repository"] == repository.full_name
    assert shown["payload"]["params"] == {"__dispatch": "mine"}
    assert shown["payload"]["__dispatch"]["pipeline"] == "CI"
    assert shown["waits"] == [
        {
            "kind": "wait",
            "name": "for go",
            "type": "go",
            "since": "2026-09-21T14:13:20.000Z",
            "until": "2026-09-21T15:13:20.000Z",
        }
    ]
    (step,) = shown["steps"]
    assert (step["kind"], step["name"], step["occurrence"]) == ("wait", "for go", 1)
    assert (step["state"], step["attempts"], step["ended_at"]) == ("waiting", 1, None)
    assert step["commit"] == shown["commit"]
    assert (shown["output"], shown["error"], shown["branch"]) == (None, None, "main")


async def test_steps_come_in_pages_in_the_order_they_started(front: Front) -> None:
    run = front.runs(front.repository())[0]
    names = [f"s{n}" for n in range(5)]
    keys = [StepKey(StepKind.SH, name) for name in names]
    front.play(run.id, *(StartStep(key, {"script": "true"}) for key in keys))
    async with front.client(front.token()) as client:

        async def page(**asked: Json) -> tuple[list[str], int | None]:
            shown = (await client.get(f"/api/v1/runs/{run.id}", params=asked)).json()
            return [step["name"] for step in shown["steps"]], shown["steps_cursor"]

        assert await page() == (names, None)
        assert await page(steps=2) == (names[:2], 2)
        assert await page(steps=3, steps_after=2) == (names[2:], None)
        assert await page(steps=0) == ([], 0)
        assert await page(steps_after=9) == ([], None)
        refused = await client.get(f"/api/v1/runs/{run.id}?steps=5001")
        assert (refused.status_code, refused.json()["field"]) == (400, "steps")


async def test_an_event_wakes_a_waiting_run(front: Front) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        started = await post(client, RUNS, {}, 201)
        front.wait_for(started["id"], "go")
        path = f"/api/v1/runs/{started['id']}/events/go"
        assert (await post(client, path, {"x": [1, None]}))["state"] == "queued"
        journal = (await client.get(f"/api/v1/runs/{started['id']}/journal")).json()["entries"]
    kinds = [entry["kind"] for entry in journal]
    assert kinds[-2:] == ["event_received", "step_passed"]
    assert journal[-1]["data"]["value"]["payload"] == {"x": [1, None]}
    assert journal[-1]["key"] == {"kind": "wait", "name": "for go", "occurrence": 1}
    assert [entry["seq"] for entry in journal] == list(range(1, len(journal) + 1))


async def test_an_event_with_an_id_is_safe_to_repeat(front: Front) -> None:
    run = front.runs(front.repository())[0]
    path = f"/api/v1/runs/{run.id}/events/go"
    async with front.client(front.token()) as client:
        first = await post(client, path + "?id=d-1", 1)
        assert await post(client, path + "?id=d-1", 1) == first
        problem = await post(client, path + "?id=d-1", 2, 409)
        assert "'d-1' with another type or payload" in problem["detail"]
        assert (await post(client, path + "?id=", 2, 400))["field"] == "id"
        journal = (await client.get(f"/api/v1/runs/{run.id}/journal")).json()["entries"]
    received = [one["data"] for one in journal if one["kind"] == "event_received"]
    assert [(one["payload"], one["id"]) for one in received] == [(1, "d-1")]


async def test_an_event_without_a_body_has_null_as_payload(front: Front) -> None:
    run = front.runs(front.repository())[0]
    async with front.client(front.token()) as client:
        answer = await client.post(f"/api/v1/runs/{run.id}/events/go")
        journal = (await client.get(f"/api/v1/runs/{run.id}/journal")).json()["entries"]
    assert answer.status_code == 200
    assert journal[-1]["data"]["payload"] is None


async def test_pause_resume_and_cancel_answer_the_new_state(front: Front) -> None:
    run = waiting_run(front, front.repository())
    path = f"/api/v1/runs/{run.id}"
    async with front.client(front.token()) as client:
        assert (await post(client, path + "/pause"))["state"] == "paused"
        assert (await post(client, path + "/pause"))["state"] == "paused"
        assert (await post(client, path + "/resume"))["state"] == "queued"
        cancelled = await post(client, path + "/cancel")
        assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "user")
        for verb in ("pause", "resume", "cancel"):
            problem = await post(client, f"{path}/{verb}", None, 409)
            assert problem["type"] == "urn:sluice:problem:conflict"
        assert (await post(client, path + "/events/go", 1, 409))["status"] == 409


async def test_a_finished_run_can_be_restarted_as_a_new_one(front: Front) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        first = await post(client, RUNS, {"params": {"a": 1}}, 201)
        path = f"/api/v1/runs/{first['id']}/restart"
        await post(client, path, {}, 409)
        front.finish(first["id"], {"done": True})
        shown = (await client.get(f"/api/v1/runs/{first['id']}")).json()
        assert (shown["state"], shown["output"]) == ("passed", {"done": True})
        second = await post(client, path, None, 201)
        assert second["number"] == first["number"] + 1
        again = (await client.get(f"/api/v1/runs/{second['id']}")).json()
        assert again["payload"]["params"] == {"a": 1}
        assert again["commit"] == shown["commit"]
        problem = await post(client, path, {"from": {"kind": "sh", "name": "build"}}, 400)
        assert problem["field"] == "from"
        problem = await post(client, path, {"from": {"kind": "huh", "name": "build"}}, 400)
        assert problem["field"] == "from.kind"


async def test_a_finished_run_can_be_deleted(front: Front) -> None:
    run = front.runs(front.repository())[0]
    path = f"/api/v1/runs/{run.id}"
    async with front.client(front.token()) as client:
        assert (await client.delete(path)).status_code == 409
        front.finish(run.id)
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == 404


async def test_an_id_that_exists_is_an_error_that_names_it(front: Front) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        await post(client, RUNS, {"id": "release-1"}, 201)
        problem = await post(client, RUNS, {"id": "release-1"}, 409)
        assert "release-1" in problem["detail"]
        again = await post(
            client, RUNS + "/batch", {"runs": [{"id": "release-1"}, {"id": "release-2"}]}, 201
        )
        assert [run["id"] for run in again["runs"]] == ["release-2"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ref": "nope"}, "ref"),
        ({"ref": "refs/heads/nope"}, "ref"),
        ({"ref": ""}, "ref"),
        ({"ref": "a\nb"}, "ref"),
        ({"ref": "x" * 300}, "ref"),
        ({"ref": 1}, "ref"),
        ({"commit": "abc"}, "commit"),
        ({"commit": "0" * 40}, "commit"),
        ({"pipeline": "Nope"}, "pipeline"),
        ({"resume": "sometimes"}, "resume"),
        ({"id": ""}, "id"),
        ({"id": "a" * 101}, "id"),
        ({"id": "-a"}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "ä"}, "id"),
        ({"params": {"a": "x" * (1 << 20)}}, "params"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_bad_field_is_named(front: Front, body: Json, field: str) -> None:
    repository = front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(RUNS, json=body)
    assert answer.status_code in (400, 413), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == field
    assert len(front.runs(repository)) == 1


async def test_a_pipeline_must_be_named_when_there_are_several(front: Front) -> None:
    front.repository(pipeline=pipeline_file({"name": "A"}, {"name": "B"}))
    async with front.client(front.token()) as client:
        problem = await post(client, RUNS, {}, 400)
        assert problem["field"] == "pipeline" and "A, B" in problem["detail"]
        await post(client, RUNS, {"pipeline": "B"}, 201)


async def test_inputs_of_a_pipeline_are_checked_and_filled_in(front: Front) -> None:
    inputs = {"target": {"type": "choice", "options": ["staging", "prod"], "default": "staging"}}
    file = pipeline_file({"name": "CI", "triggers": [{"kind": "manual", "inputs": inputs}]})
    front.repository(pipeline=file)
    async with front.client(front.token()) as client:
        run = await post(client, RUNS, {}, 201)
        shown = (await client.get(f"/api/v1/runs/{run['id']}")).json()
        assert shown["payload"]["params"] == {"target": "staging"}
        problem = await post(client, RUNS, {"params": {"target": "moon"}}, 400)
        assert problem["field"] == "params.target"


async def test_a_tag_and_a_commit_can_be_run(front: Front) -> None:
    repository = front.repository()
    first = front.runs(repository)[0].commit
    front.push(repository, {"a": "1"})
    async with front.client(front.token()) as client:
        run = await post(client, RUNS, {"commit": first, "resume": "latest"}, 201)
        shown = (await client.get(f"/api/v1/runs/{run['id']}")).json()
    assert (shown["commit"], shown["resume"], shown["ref"]) == (first, "latest", "refs/heads/main")


async def test_a_file_that_does_not_load_starts_nothing(front: Front) -> None:
    front.repository(pipeline="def run(:")
    async with front.client(front.token()) as client:
        problem = await post(client, RUNS, {}, 400)
    assert "line 1: SyntaxError" in problem["detail"]


@pytest.mark.parametrize("runs", [[], [{}] * 101])
async def test_a_batch_has_1_to_100_runs(front: Front, runs: list[Json]) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        problem = await post(client, RUNS + "/batch", {"runs": runs}, 400)
    assert problem["field"] == "runs" and "100" in problem["detail"]


async def test_a_batch_is_created_whole_or_not_at_all(front: Front) -> None:
    repository = front.repository()
    async with front.client(front.token()) as client:
        await post(client, RUNS + "/batch", {"runs": [{"id": "a"}, {"ref": "nope"}]}, 400)
        assert len(front.runs(repository)) == 1
        many = await post(client, RUNS + "/batch", {"runs": [{}] * 100}, 201)
    assert len({run["id"] for run in many["runs"]}) == 100


async def test_runs_are_listed_newest_first_in_pages(front: Front) -> None:
    repository = front.repository()
    for number in range(4):
        front.clock.advance(1)
        files: dict[str, str | None] = {".ci/pipeline.py": PUSHED, "a": str(number)}
        front.push(repository, files, branch="main" if number % 2 else "topic")
    async with front.client(front.token()) as client:
        numbers, cursor = [], None
        while True:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await client.get(RUNS, params=query)).json()
            numbers += [run["number"] for run in page["runs"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert numbers == sorted(numbers, reverse=True) and len(numbers) == 5
        topic = (await client.get(RUNS, params={"branch": "topic"})).json()["runs"]
        assert {run["branch"] for run in topic} == {"topic"}
        assert (await client.get(RUNS, params={"state": "passed"})).json()["runs"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"state": "odd"}, "state.0"),
        ({"limit": "0"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"page": "2"}, "page"),
        ({"cursor": "\x00"}, "cursor"),
        ({"cursor": "nonsense"}, "cursor"),
    ],
)
async def test_a_bad_query_is_named(front: Front, query: dict[str, str], field: str) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.get(RUNS, params=query)
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field


async def test_logs_are_read_by_step_and_line(front: Front) -> None:
    run = front.runs(front.repository())[0]
    front.print(run.id, "$run", "one", "two", "three")
    front.print(run.id, "sh:build#2", "x")
    path = f"/api/v1/runs/{run.id}/logs"
    async with front.client(front.token()) as client:
        page = (await client.get(path, params={"after": 1, "limit": 1})).json()
        assert [line["text"] for line in page["lines"]] == ["two"]
        assert page["lines"][0]["number"] == 2
        assert {"step": "sh:build#2", "lines": 1} in page["logs"]
        named = (await client.get(path, params={"step": "sh:build#2"})).json()
        assert [line["text"] for line in named["lines"]] == ["x"]
        for step in ("build", "sh:", "huh:x", ""):
            problem = (await client.get(path, params={"step": step})).json()
            assert (problem["status"], problem["field"]) == (400, "step")


# --- approvals ------------------------------------------------------------------------------------


async def test_an_approval_wakes_the_run_and_a_second_answer_changes_nothing(front: Front) -> None:
    repository = front.repository()
    ada = front.user("ada")
    front.role(ada, repository, Role.WRITER)
    run = waiting_run(front, repository)
    path = f"/api/v1/runs/{run.id}/approvals/deploy"
    async with front.client(front.token(ada, Scope.RUN)) as client:
        gates = (await client.get("/api/v1/approvals")).json()["approvals"]
        assert [(gate["name"], gate["may_answer"]) for gate in gates] == [("deploy", True)]
        decided = await post(client, path, {"decision": "approve", "comment": "ship it"})
        assert decided["state"] == "queued" and decided["first"] is True
        assert (decided["decision"], decided["outcome"]) == ("approve", "approved")
        again = await post(client, path, {"decision": "reject"})
        assert (again["first"], again["decision"]) == (False, "approve")
        gates = (await client.get(f"/api/v1/runs/{run.id}/approvals")).json()["approvals"]
    (answer,) = gates[0]["decisions"]
    assert (answer["user"], answer["comment"], answer["way"]) == ("ada", "ship it", "api")


async def test_an_approval_can_ask_for_several_people(front: Front) -> None:
    repository = front.repository()
    run = waiting_run(front, repository, required=2)
    outcomes = []
    for name in ("ada", "bob"):
        person = front.user(name)
        front.role(person, repository, Role.WRITER)
        async with front.client(front.token(person, Scope.RUN)) as client:
            path = f"/api/v1/runs/{run.id}/approvals/deploy"
            outcomes.append((await post(client, path, {"decision": "approve"}))["outcome"])
    assert outcomes == [None, "approved"]


async def test_a_rejection_fails_the_gate(front: Front) -> None:
    run = waiting_run(front, front.repository())
    async with front.client(front.token()) as client:
        path = f"/api/v1/runs/{run.id}/approvals/deploy"
        decided = await post(client, path, {"decision": "reject", "comment": "no"})
    assert decided["outcome"] == "rejected"


async def test_whoever_pushed_may_not_approve_their_own_run(front: Front) -> None:
    repository = front.repository(pipeline=None)
    ada = front.user("ada")
    front.role(ada, repository, Role.MAINTAINER)
    async with front.client(front.token(ada)) as client:
        changes = [{"path": ".ci/pipeline.py", "content": PUSHED}]
        body = {"branch": "main", "message": "x", "changes": changes}
        await post(client, "/api/v1/repos/acme/widget/commits", body, 201)
        run = waiting_run(front, repository)
        path = f"/api/v1/runs/{run.id}/approvals/deploy"
        problem = await post(client, path, {"decision": "approve"}, 403)
    assert "you caused this run" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "decision"),
        ({"decision": "maybe"}, "decision"),
        ({"decision": "approve", "comment": "x" * 4001}, "comment"),
        ({"decision": "approve", "comment": "a\x00b"}, "comment"),
        ({"decision": "approve", "form": {"x": 1}}, "form.x"),
        ({"decision": "approve", "form": 1}, "form"),
        ({"decision": "approve", "way": "page"}, "way"),
    ],
)
async def test_a_bad_answer_is_named(front: Front, body: Json, field: str) -> None:
    run = waiting_run(front, front.repository())
    async with front.client(front.token()) as client:
        path = f"/api/v1/runs/{run.id}/approvals/deploy"
        assert (await post(client, path, body, 400))["field"] == field


async def test_a_gate_that_is_not_there_or_closed_is_said_so(front: Front) -> None:
    run = waiting_run(front, front.repository())
    async with front.client(front.token()) as client:
        path = f"/api/v1/runs/{run.id}/approvals/"
        for name in ("nope", "deploy%232", "a%2Fb"):
            await post(client, path + name, {"decision": "approve"}, 404)
        await post(client, f"/api/v1/runs/{run.id}/cancel")
        problem = await post(client, path + "deploy", {"decision": "approve"}, 409)
    assert run.id in problem["detail"]


async def test_the_console_may_approve_but_the_platform_may_not(front: Front) -> None:
    run = waiting_run(front, front.repository(), approvers=["role:maintainer"])
    path = f"/api/v1/runs/{run.id}/approvals/deploy"
    async with front.client(acting_as=SYSTEM) as client:
        await post(client, path, {"decision": "approve"}, 403)
    async with front.client(acting_as=console("root"), way="cli") as client:
        decided = await post(client, path, {"decision": "approve"})
    assert decided["outcome"] == "approved"
