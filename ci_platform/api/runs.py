"""Routes of runs: of a repository, and one by its id."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from ci_platform.api import answers, entries, requests, streams
from ci_platform.api.desk import Caller, From
from ci_platform.commands import StartRun
from ci_platform.errors import InvalidRequest
from ci_platform.model import Json, Run, RunId

router = APIRouter(tags=["runs"])

ANY_JSON = {
    "requestBody": {
        "description": "Any JSON: the event's payload. Nothing counts as null.",
        "content": {"application/json": {"schema": {}}},
    }
}


def _start(body: requests.NewRun) -> StartRun:
    return StartRun(
        pipeline=body.pipeline,
        ref=body.ref,
        commit=body.commit,
        params={} if body.params is None else body.params,
        id=body.id,
        resume=body.resume,
        trigger="api",
        priority=body.priority,
    )


def _state(caller: Caller, run: Run) -> answers.RunState:
    return answers.RunState.of(run, caller.desk.base_url)


@router.post("/repos/{owner}/{name}/runs", status_code=201)
def start_run(
    caller: From, owner: str, name: str, body: requests.NewRun | None = None
) -> answers.RunState:
    what = _start(body or requests.NewRun())
    return _state(caller, caller.desk.commands.runs.start(caller.actor(), owner, name, what))


@router.post("/repos/{owner}/{name}/runs/batch", status_code=201)
def start_runs(caller: From, owner: str, name: str, body: requests.NewRuns) -> answers.RunStates:
    """Start up to 100 runs; ids that exist are left out of the answer."""
    runs = caller.desk.commands.runs.start_many(
        caller.actor(), owner, name, [_start(one) for one in body.runs]
    )
    return answers.RunStates(runs=[_state(caller, run) for run in runs])


@router.post("/repos/{owner}/{name}/runs/batch/delete")
def delete_runs(caller: From, owner: str, name: str, body: requests.RunIds) -> answers.Deletions:
    """Remove 1 to 100 finished runs, each on its own: the answer says of each, in the order asked,
    whether it is gone, and if not, why."""
    found = caller.desk.commands.runs.delete_many(caller.actor(), owner, name, body.ids)
    return answers.Deletions(results=[answers.Deletion.of(one) for one in found])


@router.get("/repos/{owner}/{name}/runs")
def list_runs(
    caller: From, owner: str, name: str, page: Annotated[requests.RunsOf, Query()]
) -> answers.RunList:
    found = caller.desk.queries.runs(
        caller.actor(), owner, name, which=page.filter(), cursor=page.cursor, limit=page.limit
    )
    runs = [answers.RunSummary.of(run, caller.desk.base_url) for run in found.runs]
    return answers.RunList(runs=runs, cursor=found.cursor)


@router.get("/runs/{run_id}")
async def get_run(
    caller: From, run_id: str, page: Annotated[requests.RunOf, Query()]
) -> answers.RunAnswer:
    """A run as it is now or, with `wait`, once it has ended; after so many seconds at most. Of its
    steps, in the order they started, as many as `steps` says; `steps_cursor` leads on."""
    if page.wait:
        await streams.until_ended(caller, RunId(run_id), seconds=page.wait)

    def look() -> answers.RunAnswer:
        view = caller.desk.queries.run_page(caller.actor(), RunId(run_id))
        return answers.RunAnswer.of_view(view, caller.desk.base_url, page)

    return await run_in_threadpool(look)


@router.delete("/runs/{run_id}", status_code=204)
def delete_run(caller: From, run_id: str) -> None:
    caller.desk.commands.runs.delete(caller.actor(), RunId(run_id))


@router.get("/runs/{run_id}/journal")
def get_journal(
    caller: From, run_id: str, page: Annotated[requests.JournalOf, Query()]
) -> entries.Journal:
    """Entries after `after`; with `type` and `step`, which may be given several times, those
    alone. `cursor` is where to look on."""
    found = caller.desk.queries.entries(
        caller.actor(), RunId(run_id), page.filter(), after=page.after, limit=page.limit
    )
    return entries.Journal.of(found)


@router.get("/runs/{run_id}/logs")
def get_log(caller: From, run_id: str, page: Annotated[requests.LogOf, Query()]) -> answers.LogPage:
    """Lines of one log: what was printed outside steps, or by `step` (`sh:build`, `do:x#2`)."""
    actor = caller.actor()
    lines = caller.desk.queries.log(
        actor, RunId(run_id), page.step, after=page.after, limit=page.limit
    )
    logs = caller.desk.queries.logs(actor, RunId(run_id))
    return answers.LogPage(
        step=page.step,
        lines=[answers.LineAnswer.of(line) for line in lines],
        logs=[answers.LogName(step=one.step, lines=one.lines) for one in logs],
    )


@router.post("/runs/{run_id}/events/{type:path}", openapi_extra=ANY_JSON)
async def send_event(
    caller: From,
    request: Request,
    run_id: str,
    type: str,
    event: Annotated[requests.Event, Query()],
) -> answers.RunState:
    """Give a run an event; the body is its payload. With an `id`, 1 to 256 characters, it is safe
    to repeat: the run takes it once, and another event under the same id is a conflict."""
    payload = parse_json(await request.body())

    def send() -> Run:
        return caller.desk.commands.runs.send_event(
            caller.actor(), RunId(run_id), type, payload, id=event.id
        )

    return _state(caller, await run_in_threadpool(send))


@router.post("/runs/{run_id}/pause")
def pause_run(caller: From, run_id: str) -> answers.RunState:
    """Let steps in flight end, and start none."""
    return _state(caller, caller.desk.commands.runs.pause(caller.actor(), RunId(run_id)))


@router.post("/runs/{run_id}/resume")
def resume_run(caller: From, run_id: str) -> answers.RunState:
    """Go on; the time the run was paused does not count for its timers."""
    return _state(caller, caller.desk.commands.runs.resume(caller.actor(), RunId(run_id)))


@router.post("/runs/{run_id}/cancel")
def cancel_run(caller: From, run_id: str, body: requests.Cancel | None = None) -> answers.RunState:
    """Stop its commands and end it."""
    rollback = body is not None and body.rollback
    run = caller.desk.commands.runs.cancel(caller.actor(), RunId(run_id), rollback=rollback)
    return _state(caller, run)


@router.post("/runs/{run_id}/restart", status_code=201)
def restart_run(
    caller: From, run_id: str, body: requests.Restart | None = None
) -> answers.RunState:
    """Run a finished run again, as a new run with the same params: the answer is the new one."""
    body = body or requests.Restart()
    run = caller.desk.commands.runs.restart(
        caller.actor(),
        RunId(run_id),
        from_step=None if body.from_step is None else body.from_step.key(),
        commit=body.commit,
        id=body.id,
    )
    return _state(caller, run)


@router.get("/runs/{run_id}/approvals")
def list_approvals_of_run(caller: From, run_id: str) -> answers.ApprovalList:
    view = caller.desk.queries.run_page(caller.actor(), RunId(run_id))
    found = [answers.ApprovalAnswer.of(one) for one in view.approvals]
    return answers.ApprovalList(approvals=found)


@router.post("/runs/{run_id}/approvals/{name:path}")
def decide_approval(caller: From, run_id: str, name: str, body: requests.Decide) -> answers.Decided:
    """Approve or reject. A second answer by the same person changes nothing and shows the first."""
    decided = caller.desk.commands.approvals.decide(
        caller.actor(),
        RunId(run_id),
        name,
        decision=body.decision,
        comment=body.comment,
        form=body.form,
        way=caller.desk.way,
    )
    return answers.Decided(
        **dict(_state(caller, decided.run)),
        decision=decided.decision.decision,
        first=decided.first,
        outcome=decided.approval.outcome,
    )


@router.get("/approvals", tags=["approvals"])
def list_approvals(caller: From) -> answers.ApprovalList:
    """Open approvals that the caller sees, those it may answer first."""
    found = caller.desk.queries.approvals(caller.actor())
    return answers.ApprovalList(approvals=[answers.ApprovalAnswer.of(one) for one in found])


def parse_json(body: bytes) -> Json:
    """A body that may be any JSON; nothing at all is null."""
    if not body:
        return None
    try:
        return json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
