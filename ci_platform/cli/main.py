"""The command line: parses arguments and calls one thing. `sluice --help` is its manual.

Every command but those that run processes speaks to the API: over HTTP with --url, else with the
application in this process, on the same data directory that a server may be using right now.
Exit codes: 0 done, 1 the run failed, 2 asked wrongly, 3 not found or not allowed, 4 the platform
failed.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.cli.debug import debug
from ci_platform.cli.door import (
    PLATFORM_FAILED,
    REFUSED,
    USAGE,
    AsJson,
    Door,
    Name,
    Params,
    lazy,
    params_of,
    show,
    wants_json,
)
from ci_platform.cli.git import git, repo_git
from ci_platform.cli.people import token, user
from ci_platform.cli.remotes import repo_remotes
from ci_platform.cli.runs import runs
from ci_platform.cli.workers import worker
from ci_platform.errors import Forbidden, NotFound, NotSignedIn, RequestError, SluiceError

if TYPE_CHECKING:
    from ci_platform import migrating
    from ci_platform.cli import check, client, demo, guest, local, terminal
    from ci_platform.server import serve, supervise
else:
    check = lazy("ci_platform.cli.check")
    client = lazy("ci_platform.cli.client")
    demo = lazy("ci_platform.cli.demo")
    guest = lazy("ci_platform.cli.guest")
    local = lazy("ci_platform.cli.local")
    migrating = lazy("ci_platform.migrating")
    serve = lazy("ci_platform.server.serve")
    supervise = lazy("ci_platform.server.supervise")
    terminal = lazy("ci_platform.cli.terminal")

cli = typer.Typer(
    name="sluice",
    help="Self-hosted CI/CD: every repository carries its own durable Python pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
repo = typer.Typer(help="Repositories.", no_args_is_help=True)
settings = typer.Typer(help="Settings: what is in force, and whether it works.")
cli.add_typer(runs)
cli.add_typer(debug)
repo.add_typer(repo_git)
repo.add_typer(repo_remotes)
cli.add_typer(repo, name="repo")
cli.add_typer(git)
cli.add_typer(worker, name="worker")
cli.add_typer(token, name="token")
cli.add_typer(user, name="user")
cli.add_typer(settings, name="config", no_args_is_help=True)

DieWith = Annotated[int | None, typer.Option("--die-with", metavar="PID", hidden=True)]


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


@cli.command("serve")
def run_server(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes [one per core].")] = None,
    die_with: DieWith = None,
) -> None:
    """Run the server until SIGTERM or SIGINT; print its URL when it is ready."""
    gc.disable()  # a sixth of the time to load what follows; the supervisor turns it on again
    if die_with is not None:
        supervise.die_with(die_with)
    config = context.obj.config(host=host, port=port, workers=workers)
    guest.build_guest(config.cache)
    serve.serve(config)


@cli.command("web")
def run_web(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
) -> None:
    """Run one web process: git, pages, API and webhooks. For deployments on several machines."""
    serve.serve_web(context.obj.config(host=host, port=port))


@cli.command("migrate")
def migrate(context: typer.Context, as_json: AsJson = False) -> None:
    """Move the database to this version's schema. All processes of the deployment must be stopped.

    `sluice serve` does it by itself for a database in the data directory.
    """
    done = migrating.run(context.obj.config())
    show(context, done, as_json, migrating.told(done))


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
        params=params_of(param),
        approve=approve,
        unsandboxed=unsandboxed,
    )
    raise typer.Exit(local.run(request))


@cli.command("system")
def show_system(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the queue, and the workers that are there."""
    with context.obj.open() as api:
        found = api.get("/api/v1/system")
    if wants_json(context, as_json):
        return terminal.print_json(found)
    return terminal.print_system(found)


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
    show(context, made, as_json, f"created {name}")


@repo.command("list")
def list_repositories(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List the repositories you may see, by name."""
    with context.obj.open() as api:
        found = list(api.pages("/api/v1/repos", "repositories", limit=limit))
    if wants_json(context, as_json):
        return terminal.print_json(found)
    rows = [(f"{one['owner']}/{one['name']}", one["description"]) for one in found]
    empty = "No repositories yet. Make one: sluice repo create OWNER/NAME"
    return terminal.print_table(("REPOSITORY", "DESCRIPTION"), rows, empty)


@repo.command("delete")
def delete_repository(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Delete a repository with its runs."""
    with context.obj.open() as api:
        api.delete(client.repo_path(name))
    show(context, {"deleted": name}, as_json, f"deleted {name}")


@repo.command("hook")
def create_hook(
    context: typer.Context,
    name: Name,
    remote: Annotated[
        str | None, typer.Option(help="Where the commits of a delivery are fetched from.")
    ] = None,
    provider: Annotated[
        str, typer.Option(help="Who sends: github, gitlab, gitea (also Forgejo) or bitbucket.")
    ] = "github",
    as_json: AsJson = False,
) -> None:
    """Create a webhook for a forge; prints its address and its secret, once."""
    wanted = {"remote_url": remote, "provider": provider}
    with context.obj.open() as api:
        made = api.post(client.repo_path(name) + "/hooks", wanted)
    show(context, made, as_json, f"url     {made['url']}\nsecret  {made['secret']}")


# --- settings -------------------------------------------------------------------------------------


@settings.command("show")
def show_settings(context: typer.Context, as_json: AsJson = False) -> None:
    """Print every setting that is in force; secrets are masked."""
    values = context.obj.config().shown()
    if wants_json(context, as_json):
        return terminal.print_json(values)
    rows = [(f"SLUICE_{name.upper()}", str(value)) for name, value in values.items()]
    return terminal.print_table(("SETTING", "VALUE"), rows, "")


@settings.command("check")
def check_settings(context: typer.Context, as_json: AsJson = False) -> None:
    """Try what a server needs: database, objects, git, both sandboxes."""
    found = check.run(context.obj.config(), os.environ)
    if wants_json(context, as_json):
        terminal.print_json([{"name": n, "ok": ok, "detail": d} for n, ok, d in found])
    else:
        terminal.print_checks(found)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(PLATFORM_FAILED)


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
