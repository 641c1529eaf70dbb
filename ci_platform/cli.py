"""The command line: parses arguments and calls one thing. `sluice --help` is its manual.

Every command but those that run processes speaks to the API: over HTTP with --url, else with the
application in this process, on the same data directory that a server may be using right now.
Exit codes: 0 done, 1 the run failed, 2 asked wrongly, 3 not found or not allowed, 4 the platform
failed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform import supervise
from ci_platform.config import Config, read_config
from ci_platform.errors import Forbidden, NotFound, NotSignedIn, RequestError, SluiceError
from ci_platform.model import Json


def _lazy(name: str) -> ModuleType:
    """A module that loads when it is first used.

    A killed server must serve again within a second, and half of that would be imports which the
    supervisor never needs. importlib's own recipe.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from ci_platform import app, check, client, demo, guest, local, processes, terminal, watch
else:
    terminal = _lazy("ci_platform.terminal")
    client = _lazy("ci_platform.client")
    watch = _lazy("ci_platform.watch")
    app = _lazy("ci_platform.app")
    processes = _lazy("ci_platform.processes")
    check = _lazy("ci_platform.check")
    local = _lazy("ci_platform.local")
    demo = _lazy("ci_platform.demo")
    guest = _lazy("ci_platform.guest")

DONE, RUN_FAILED, USAGE, REFUSED, PLATFORM_FAILED = range(5)
LIMIT = 20  # rows of a listing, unless asked otherwise

cli = typer.Typer(
    name="sluice",
    help="Self-hosted CI/CD: every repository carries its own durable Python pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
repo = typer.Typer(help="Repositories.", no_args_is_help=True)
token = typer.Typer(help="Tokens for git and the API.", no_args_is_help=True)
user = typer.Typer(help="People and their roles.", no_args_is_help=True)
settings = typer.Typer(help="Settings: what is in force, and whether it works.")
cli.add_typer(repo, name="repo")
cli.add_typer(token, name="token")
cli.add_typer(user, name="user")
cli.add_typer(settings, name="config", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id: run_…")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="K=V", help="A parameter; V is JSON, else text."),
]
DieWith = Annotated[int | None, typer.Option("--die-with", metavar="PID", hidden=True)]


@dataclass(frozen=True, slots=True)
class Door:
    """Which deployment a command acts on, and how it answers."""

    data: Path | None
    url: str | None
    token: str | None
    json: bool

    def config(self, **given: Json) -> Config:
        if self.data is not None:
            given["data"] = self.data
        return read_config(**{name: value for name, value in given.items() if value is not None})

    @contextlib.contextmanager
    def open(self) -> Iterator[client.Client]:
        if self.url is not None:
            with client.Client.remote(self.url, self.token) as remote:
                yield remote
            return
        with app.local_client(self.config()) as inside:
            yield inside


@cli.callback()
def _door(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="SLUICE_DATA", help="The deployment's directory [.sluice]."),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="A remote deployment; its token in SLUICE_TOKEN.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option("--token", envvar="SLUICE_TOKEN", hidden=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    context.obj = Door(data, url, secret, as_json)


# --- processes ------------------------------------------------------------------------------------


@cli.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes [one per core].")] = None,
    die_with: DieWith = None,
) -> None:
    """Run the server until SIGTERM or SIGINT; print its URL when it is ready."""
    if die_with is not None:
        supervise.die_with(die_with)
    config = context.obj.config(host=host, port=port, workers=workers)
    guest.build_guest(config.cache, terminal.console(stderr=True))
    supervise.serve(config, dict(os.environ))


@cli.command()
def web(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    fd: Annotated[int | None, typer.Option("--fd", hidden=True)] = None,
    die_with: DieWith = None,
) -> None:
    """Run one web process: git, pages, API and webhooks."""
    if die_with is not None:
        supervise.die_with(die_with)
    processes.run_web(context.obj.config(host=host, port=port), fd=fd)


@cli.command()
def worker(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Option(help="Its name on this machine; no two may share one.")
    ] = None,
    die_with: DieWith = None,
) -> None:
    """Run one worker process: it executes pipelines and their commands."""
    if die_with is not None:
        supervise.die_with(die_with)
    processes.run_worker(context.obj.config(), name=name)


@cli.command("demo")
def show_demo(
    auto: Annotated[bool, typer.Option("--auto", help="Unattended: approve and check.")] = False,
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 0,
    directory: Annotated[Path, typer.Option("--dir", help="Where it keeps its files.")] = Path(
        ".sluice/demo"
    ),
) -> None:
    """Start a server, push an example repository, show its run."""
    raise typer.Exit(demo.run(directory, auto=auto, port=port))


@cli.command("run")
def run_here(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("--dir", "-C", help="The working tree.")] = Path("."),
    pipeline: Annotated[str | None, typer.Option(help="Which, if the file has several.")] = None,
    param: Params = None,
    approve: Annotated[bool, typer.Option("--approve", help="Approve every gate.")] = False,
    unsandboxed: Annotated[
        bool, typer.Option("--unsandboxed", help="Run commands without a sandbox.")
    ] = False,
) -> None:
    """Run the pipeline of this working tree on this machine, without a server."""
    request = local.LocalRun(
        directory=directory,
        pipeline=pipeline,
        params=_params(param),
        approve=approve,
        unsandboxed=unsandboxed,
    )
    raise typer.Exit(local.run(request))


# --- repositories ---------------------------------------------------------------------------------


@repo.command("create")
def create_repository(
    context: typer.Context,
    name: Name,
    branch: Annotated[str, typer.Option(help="The default branch.")] = "main",
    description: Annotated[str, typer.Option()] = "",
    as_json: AsJson = False,
) -> None:
    """Create an empty repository."""
    owner, _, short = name.partition("/")
    body = {
        "owner": owner,
        "name": short,
        "default_branch": branch,
        "description": description,
    }
    with context.obj.open() as api:
        made = api.post("/api/v1/repos", body)
    _show(context, made, as_json, f"created {name}")


@repo.command("list")
def list_repositories(context: typer.Context, as_json: AsJson = False) -> None:
    """List the repositories you may see."""
    with context.obj.open() as api:
        found = api.get("/api/v1/repos")["repositories"]
    if _wants_json(context, as_json):
        return terminal.print_json(found)
    rows = [(f"{one['owner']}/{one['name']}", one["description"]) for one in found]
    empty = "No repositories yet. Make one: sluice repo create OWNER/NAME"
    return terminal.print_table(("REPOSITORY", "DESCRIPTION"), rows, empty)


@repo.command("delete")
def delete_repository(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Delete a repository with its runs."""
    with context.obj.open() as api:
        api.delete(client.repo_path(name))
    _show(context, {"deleted": name}, as_json, f"deleted {name}")


@repo.command("hook")
def create_hook(
    context: typer.Context,
    name: Name,
    remote: Annotated[
        str | None, typer.Option(help="Where the commits of a delivery are fetched from.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a webhook for GitHub; prints its address and its secret, once."""
    with context.obj.open() as api:
        made = api.post(client.repo_path(name) + "/hooks", {"remote_url": remote})
    _show(context, made, as_json, f"url     {made['url']}\nsecret  {made['secret']}")


# --- runs -----------------------------------------------------------------------------------------


@cli.command("start")
def start_run(
    context: typer.Context,
    name: Name,
    pipeline: Annotated[str | None, typer.Option(help="Which, if there are several.")] = None,
    ref: Annotated[str | None, typer.Option(help="A branch, tag or ref.")] = None,
    commit: Annotated[str | None, typer.Option(help="A commit of it.")] = None,
    param: Params = None,
    run_id: Annotated[str | None, typer.Option("--id", help="An id of your own.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run of a repository."""
    given = {"pipeline": pipeline, "ref": ref, "commit": commit, "id": run_id}
    body: dict[str, Json] = {key: value for key, value in given.items() if value is not None}
    if param:
        body["params"] = _params(param)
    with context.obj.open() as api:
        run = api.post(client.repo_path(name) + "/runs", body)
        if follow:
            _follow(context, api, run["id"], as_json)
        _show(context, run, as_json, f"{run['id']}\n{run['url']}")


@cli.command("runs")
def list_runs(
    context: typer.Context,
    name: Name,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    branch: Annotated[str | None, typer.Option(help="Only those of this branch.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = LIMIT,
    as_json: AsJson = False,
) -> None:
    """List the runs of a repository, newest first."""
    path = client.repo_path(name) + "/runs"
    with context.obj.open() as api:
        found = list(api.pages(path, "runs", limit=limit, state=state, branch=branch))
    if _wants_json(context, as_json):
        return terminal.print_json(found)
    return terminal.print_runs(found, empty=f"No runs of {name} yet. Push to it, or: sluice start")


@cli.command("show")
def show_run(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Show a run: its state, what it waits for, its steps."""
    with context.obj.open() as api:
        run = api.get(client.run_path(run_id))
    if _wants_json(context, as_json):
        return terminal.print_json(run)
    return terminal.print_run(run)


@cli.command("logs")
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
        if step is None and not _wants_json(context, as_json):
            watch.Watch(api, run_id, terminal.Ticker(terminal.console())).look()
            return
        lines = list(watch.read_log(api, run_id, step or "$run"))
    if _wants_json(context, as_json):
        terminal.print_json(lines)
    else:
        terminal.print_lines(lines)


@cli.command("approve")
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


@cli.command("reject")
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
    body = {"decision": decision, "comment": comment, "form": _params(form)}
    with context.obj.open() as api:
        run = api.post(client.run_path(run_id) + "/approvals/" + client.segment(name), body)
    _show(context, run, as_json, f"{decision}d {name}: {run_id} is {run['state']}")


@cli.command("event")
def send_event(
    context: typer.Context,
    run_id: RunId,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="The event's type.")],
    payload: Annotated[str, typer.Argument(help="JSON; - reads standard input.")] = "null",
    as_json: AsJson = False,
) -> None:
    """Send an event to a run."""
    body = _json(sys.stdin.read() if payload == "-" else payload, "PAYLOAD")
    with context.obj.open() as api:
        run = api.post(client.run_path(run_id) + "/events/" + client.segment(kind), body)
    _show(context, run, as_json, f"{run_id} is {run['state']}")


@cli.command("pause")
def pause(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Start no more steps of a run, until it is resumed."""
    _change(context, run_id, "pause", {}, as_json)


@cli.command("resume")
def resume(context: typer.Context, run_id: RunId, as_json: AsJson = False) -> None:
    """Go on with a paused run."""
    _change(context, run_id, "resume", {}, as_json)


@cli.command("cancel")
def cancel(
    context: typer.Context,
    run_id: RunId,
    rollback: Annotated[bool, typer.Option("--rollback", help="Undo finished steps.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a run for good."""
    _change(context, run_id, "cancel", {"rollback": rollback}, as_json)


@cli.command("restart")
def restart(
    context: typer.Context,
    run_id: RunId,
    start_from: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="sh:build, or sh:build#2.")
    ] = None,
    commit: Annotated[str | None, typer.Option(help="Another commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a finished run again: a new run with the same parameters."""
    body: dict[str, Json] = {}
    if start_from is not None:
        body["from"] = watch.step_json(start_from)
    if commit is not None:
        body["commit"] = commit
    _change(context, run_id, "restart", body, as_json)


def _change(context: typer.Context, run_id: str, what: str, body: Json, as_json: bool) -> None:
    with context.obj.open() as api:
        run = api.post(f"{client.run_path(run_id)}/{what}", body)
    _show(context, run, as_json, f"{run['id']} is {run['state']}")


# --- tokens and people ----------------------------------------------------------------------------


@token.command("create")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="What it is for.")],
    scope: Annotated[
        list[str], typer.Option(help="repo:read, repo:write, run or admin; may be repeated.")
    ],
    repository: Annotated[
        str | None, typer.Option("--repo", metavar="OWNER/NAME", help="For this one alone.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires [never].")] = None,
    owner: Annotated[str | None, typer.Option("--user", help="Whose it is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token; prints its secret, once, and nothing else."""
    body = {"name": name, "scopes": scope, "repository": repository, "days": days, "user": owner}
    with context.obj.open() as api:
        made = api.post("/api/v1/tokens", {k: v for k, v in body.items() if v is not None})
    _show(context, made, as_json, made["secret"])


@token.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    with context.obj.open() as api:
        found = api.get("/api/v1/tokens")["tokens"]
    if _wants_json(context, as_json):
        return terminal.print_json(found)
    rows = [
        (one["id"], one["name"], " ".join(one["scopes"]), one["expires_at"] or "never")
        for one in found
    ]
    empty = "No tokens. Make one: sluice token create --name laptop --scope repo:write"
    return terminal.print_table(("ID", "NAME", "SCOPES", "EXPIRES"), rows, empty)


@token.command("revoke")
def revoke_token(context: typer.Context, token_id: str, as_json: AsJson = False) -> None:
    """End a token at once."""
    with context.obj.open() as api:
        api.delete("/api/v1/tokens/" + client.segment(token_id))
    _show(context, {"revoked": token_id}, as_json, f"revoked {token_id}")


@user.command("create")
def create_user(
    context: typer.Context,
    name: str,
    admin: Annotated[bool, typer.Option("--admin", help="May do everything.")] = False,
    password: Annotated[
        str | None, typer.Option(envvar="SLUICE_PASSWORD", help="Asked for if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a user."""
    secret = password or typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    with context.obj.open() as api:
        made = api.post("/api/v1/users", {"name": name, "password": secret, "admin": admin})
    _show(context, made, as_json, f"created {name}")


@user.command("list")
def list_users(context: typer.Context, as_json: AsJson = False) -> None:
    """List the users."""
    with context.obj.open() as api:
        found = api.get("/api/v1/users")["users"]
    if _wants_json(context, as_json):
        return terminal.print_json(found)
    rows = [(one["id"], one["name"], "admin" if one["admin"] else "") for one in found]
    return terminal.print_table(("ID", "NAME", ""), rows, "No users yet: open the sign-in link.")


@user.command("role")
def set_role(
    context: typer.Context,
    repository: Name,
    name: str,
    role: Annotated[str, typer.Argument(help="reader, writer, maintainer or none.")],
    as_json: AsJson = False,
) -> None:
    """Give a user a role in a repository."""
    body = {"user": name, "role": None if role == "none" else role}
    with context.obj.open() as api:
        api.post(client.repo_path(repository) + "/roles", body)
    _show(context, body, as_json, f"{name} is {role} of {repository}")


@user.command("link")
def setup_link(context: typer.Context, as_json: AsJson = False) -> None:
    """Make a new one-time link with which the first admin signs in."""
    link = app.setup_link(context.obj.config())
    if link is None:
        raise Forbidden("there are users already: sign in, or use `sluice user create`")
    _show(context, {"url": link}, as_json, link)


# --- settings -------------------------------------------------------------------------------------


@settings.command("show")
def show_settings(context: typer.Context, as_json: AsJson = False) -> None:
    """Print every setting that is in force; secrets are masked."""
    values = context.obj.config().shown()
    if _wants_json(context, as_json):
        return terminal.print_json(values)
    rows = [(f"SLUICE_{name.upper()}", str(value)) for name, value in values.items()]
    return terminal.print_table(("SETTING", "VALUE"), rows, "")


@settings.command("check")
def check_settings(context: typer.Context, as_json: AsJson = False) -> None:
    """Try what a server needs: database, objects, git, both sandboxes."""
    found = check.run(context.obj.config(), os.environ)
    if _wants_json(context, as_json):
        terminal.print_json([{"name": n, "ok": ok, "detail": d} for n, ok, d in found])
    else:
        terminal.print_checks(found)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(PLATFORM_FAILED)


# --- what the commands share ----------------------------------------------------------------------


def _wants_json(context: typer.Context, here: bool) -> bool:
    return here or bool(context.obj.json)


def _show(context: typer.Context, value: Json, as_json: bool, text: str) -> None:
    if _wants_json(context, as_json):
        terminal.print_json(value)
    else:
        sys.stdout.write(text + "\n")


def _follow(context: typer.Context, api: client.Client, run_id: str, as_json: bool) -> None:
    """Show a run to its end and leave with its verdict."""
    silent = _wants_json(context, as_json)
    listener = watch.Silent() if silent else terminal.Ticker(terminal.console())
    run = watch.Watch(api, run_id, listener).until()
    if silent:
        terminal.print_json(run)
    raise typer.Exit(watch.exit_code(run))


def _params(pairs: list[str] | None) -> dict[str, Json]:
    """`k=v` options: v is JSON where it can be read as such, else text."""
    params: dict[str, Json] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not K=V")
        try:
            params[key] = json.loads(value)
        except ValueError:
            params[key] = value
    return params


def _json(text: str, what: str) -> Json:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from error


def _exit_code(error: SluiceError) -> int:
    if isinstance(error, NotFound | Forbidden | NotSignedIn):
        return REFUSED
    if isinstance(error, RequestError):
        return USAGE
    return error.exit_code if isinstance(error, client.ClientError) else PLATFORM_FAILED


def main() -> None:
    """Run the command and leave with its exit code."""
    try:
        cli()
    except SluiceError as error:
        sys.stderr.write(f"sluice: {error.detail}\n")
        sys.exit(_exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(PLATFORM_FAILED)


if __name__ == "__main__":
    main()
