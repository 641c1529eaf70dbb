"""The command line's commands on runs: start them, look at them, answer and change them.

Parses arguments and calls the API. Part of main.py.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.cli.door import (
    REFUSED,
    AsJson,
    Name,
    Params,
    RunId,
    lazy,
    params_of,
    parse_json,
    show,
    wants_json,
)
from ci_platform.model import Json

if TYPE_CHECKING:
    from ci_platform.cli import client, terminal, watch
else:
    client, terminal, watch = map(
        lazy, ("ci_platform.cli.client", "ci_platform.cli.terminal", "ci_platform.cli.watch")
    )

LIMIT = 20  # rows of a listing, unless asked otherwise

runs = typer.Typer()


@runs.command("start")
def start_run(
    context: typer.Context,
    name: Name,
    pipeline: Annotated[str | None, typer.Option(help="Which, if there are several.")] = None,
    ref: Annotated[str | None, typer.Option(help="A branch, tag or ref.")] = None,
    commit: Annotated[str | None, typer.Option(help="A commit of it.")] = None,
    param: Params = None,
    resume: Annotated[
        str | None, typer.Option(help="pinned or latest: whose code goes on after a wait.")
    ] = None,
    run_id: Annotated[str | None, typer.Option("--id", help="An id of your own.")] = None,
    priority: Annotated[
        int, typer.Option(min=0, max=100, help="Higher ones of the repository go first.")
    ] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run of a repository."""
    given = {"pipeline": pipeline, "ref": ref, "commit": commit, "id": run_id, "resume": resume}
    body: dict[str, Json] = {key: value for key, value in given.items() if value is not None}
    if priority:
        body["priority"] = priority
    if param:
        body["params"] = params_of(param)
    with context.obj.open() as api:
        run = api.post(client.repo_path(name) + "/runs", body)
        if follow:
            _follow(context, api, run["id"], as_json)
        show(context, run, as_json, f"{run['id']}\n{run['url']}")


@runs.command("runs")
def list_runs(
    context: typer.Context,
    name: Name,
    state: Annotated[
        list[str] | None, typer.Option(help="Only those in this state. May be given again.")
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Only those of this branch.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Only those of this pipeline.")] = None,
    commit: Annotated[str | None, typer.Option(help="Only those at this commit.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Only those: push, manual, ...")] = None,
    actor: Annotated[str | None, typer.Option(help="Only those caused by them.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only those created then or later: 2026-01-31T12:00:00Z.")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Only those created earlier.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = LIMIT,
    as_json: AsJson = False,
) -> None:
    """List the runs of a repository, newest first."""
    path = client.repo_path(name) + "/runs"
    with context.obj.open() as api:
        found = list(
            api.pages(
                path,
                "runs",
                limit=limit,
                state=state,
                branch=branch,
                pipeline=pipeline,
                commit=commit,
                trigger=trigger,
                actor=actor,
                created_after=since,
                created_before=before,
            )
        )
    if wants_json(context, as_json):
        return terminal.print_json(found)
    return terminal.print_runs(found, empty=f"No runs of {name} yet. Push to it, or: sluice start")


@runs.command("show")
def show_run(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Show a run: its state, what it waits for, its steps."""
    with context.obj.open() as api:
        run = api.run(run_id)
    if wants_json(context, as_json):
        return terminal.print_json(run)
    return terminal.print_run(run)


@runs.command("logs")
def logs(
    context: typer.Context,
    run_id: RunId,
    step: Annotated[
        str | None, typer.Option(help="One step: sh:build, or sh:build#2 [all].")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a run has written."""
    with context.obj.open() as api:
        if follow:
            _follow(context, api, run_id, as_json)
        if step is None and not wants_json(context, as_json):
            watch.Watch(api, run_id, terminal.Ticker(terminal.console())).look()
            return
        lines = list(watch.read_log(api, run_id, step or "$run"))
    if wants_json(context, as_json):
        terminal.print_json(lines)
    else:
        terminal.print_lines(lines)


@runs.command("watch")
def watch_run(
    context: typer.Context,
    run_id: RunId,
    after: Annotated[int, typer.Option(min=0, help="The last entry that you have.")] = 0,
    kind: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only such entries: step_passed, ... May be given again."),
    ] = None,
    step: Annotated[
        list[str] | None, typer.Option(help="Only of this step: sh:build. May be given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's journal as it grows, one entry a line, to its end."""
    silent = wants_json(context, as_json)
    with context.obj.open() as api:
        for entry in watch.entries(api, run_id, after=after, types=kind or (), steps=step or ()):
            terminal.print_entry(entry, as_json=silent)
        run = api.get(client.run_path(run_id), steps=0)
    raise typer.Exit(watch.exit_code(run))


@runs.command("approve")
def approve(
    context: typer.Context,
    run_id: RunId,
    name: Annotated[str, typer.Argument(help="The approval's name.")],
    comment: Annotated[str, typer.Option()] = "",
    form: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A field.")] = None,
    as_json: AsJson = False,
) -> None:
    """Approve what a run waits for."""
    _decide(context, run_id, name, decision="approve", comment=comment, form=form, as_json=as_json)


@runs.command("reject")
def reject(
    context: typer.Context,
    run_id: RunId,
    name: Annotated[str, typer.Argument(help="The approval's name.")],
    comment: Annotated[str, typer.Option()] = "",
    form: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A field.")] = None,
    as_json: AsJson = False,
) -> None:
    """Reject what a run waits for."""
    _decide(context, run_id, name, decision="reject", comment=comment, form=form, as_json=as_json)


def _decide(
    context: typer.Context,
    run_id: str,
    name: str,
    *,
    decision: str,
    comment: str,
    form: list[str] | None,
    as_json: bool,
) -> None:
    body = {"decision": decision, "comment": comment, "form": params_of(form)}
    with context.obj.open() as api:
        run = api.post(client.run_path(run_id) + "/approvals/" + client.segment(name), body)
    show(context, run, as_json, f"{decision}d {name}: {run_id} is {run['state']}")


@runs.command("event")
def send_event(
    context: typer.Context,
    run_id: RunId,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="The event's type.")],
    payload: Annotated[str, typer.Argument(help="JSON; - reads standard input.")] = "null",
    event_id: Annotated[
        str | None, typer.Option("--id", help="An id of your own: the run takes it once.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send an event to a run."""
    body = parse_json(sys.stdin.read() if payload == "-" else payload, "PAYLOAD")
    with context.obj.open() as api:
        path = client.run_path(run_id) + "/events/" + client.segment(kind)
        run = api.post(path, body, id=event_id)
    show(context, run, as_json, f"{run_id} is {run['state']}")


@runs.command("pause")
def pause(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Start no more steps of a run, until it is resumed."""
    _change(context, run_id, "pause", {}, as_json)


@runs.command("resume")
def resume(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Go on with a paused run."""
    _change(context, run_id, "resume", {}, as_json)


@runs.command("cancel")
def cancel(
    context: typer.Context,
    run_id: RunId,
    rollback: Annotated[bool, typer.Option("--rollback", help="Undo finished steps.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a run for good."""
    _change(context, run_id, "cancel", {"rollback": rollback}, as_json)


@runs.command("restart")
def restart(
    context: typer.Context,
    run_id: RunId,
    start_from: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="sh:build, or sh:build#2.")
    ] = None,
    commit: Annotated[str | None, typer.Option(help="Another commit, or newest.")] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="An id of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a finished run again: a new run with the same parameters."""
    body: dict[str, Json] = {} if new_id is None else {"id": new_id}
    if start_from is not None:
        body["from"] = watch.step_json(start_from)
    if commit is not None:
        body["commit"] = commit
    _change(context, run_id, "restart", body, as_json)


@runs.command("delete")
def delete_runs(
    context: typer.Context,
    name: Name,
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN...", help="1 to 100 of them.")],
    as_json: AsJson = False,
) -> None:
    """Remove finished runs of a repository, with their logs."""
    with context.obj.open() as api:
        found = api.post(client.repo_path(name) + "/runs/batch/delete", {"ids": run_ids})
    kept = [one for one in found["results"] if not one["deleted"]]
    lines = [f"{one['id']}: {one['detail'] or 'deleted'}" for one in found["results"]]
    show(context, found["results"], as_json, "\n".join(lines))
    if kept:
        raise typer.Exit(REFUSED)


def _change(context: typer.Context, run_id: str, what: str, body: Json, as_json: bool) -> None:
    with context.obj.open() as api:
        run = api.post(f"{client.run_path(run_id)}/{what}", body)
    show(context, run, as_json, f"{run['id']} is {run['state']}")


def _follow(context: typer.Context, api: client.Client, run_id: str, as_json: bool) -> None:
    """Show a run to its end and leave with its verdict."""
    silent = wants_json(context, as_json)
    listener = watch.Silent() if silent else terminal.Ticker(terminal.console())
    run = watch.Watch(api, run_id, listener).until()
    if silent:
        terminal.print_json(run)
    raise typer.Exit(watch.exit_code(run))
