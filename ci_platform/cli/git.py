"""The command line's commands on what repositories hold: import, fork, gc, fsck.

Parses arguments and calls the API. Part of main.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.cli.door import PLATFORM_FAILED, AsJson, Name, lazy, show, wants_json

if TYPE_CHECKING:
    from ci_platform.cli import client, terminal
else:
    client, terminal = map(lazy, ("ci_platform.cli.client", "ci_platform.cli.terminal"))

IMPORT_SECONDS = 600.0
UPKEEP_SECONDS = 3600.0

git = typer.Typer()
repo_git = typer.Typer()

Names = Annotated[list[str] | None, typer.Argument(metavar="[OWNER/NAME]...", help="Which [all].")]


@repo_git.command("import")
def import_repository(
    context: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="https://… of another git server.")],
    username: Annotated[str | None, typer.Option(help="For a remote that asks.")] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar="SLUICE_REMOTE_PASSWORD", help="Better in the environment."),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Also into one with branches; drops what only it has.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a repository from another server, history and all."""
    body = {"url": url, "username": username, "password": password, "mirror": mirror}
    with context.obj.open() as api:
        done = api.post(client.repo_path(name) + "/import", body, seconds=IMPORT_SECONDS)
    lines = [f"imported {done['refs']} branches and tags into {name}"]
    lines += [f"not taken over: {ref}: {why}" for ref, why in done["refused"].items()]
    show(context, done, as_json, "\n".join(lines))


@repo_git.command("fork")
def fork_repository(
    context: typer.Context,
    name: Name,
    into: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What it is to be called.")],
    as_json: AsJson = False,
) -> None:
    """Copy a repository that is here; what is stored is shared."""
    owner, _, short = into.partition("/")
    with context.obj.open() as api:
        made = api.post(client.repo_path(name) + "/fork", {"owner": owner, "name": short})
    show(context, made, as_json, f"forked {name} into {into}")


@git.command("gc")
def collect_garbage(context: typer.Context, names: Names = None, as_json: AsJson = False) -> None:
    """Drop what nothing in a repository has reached for two weeks."""
    with context.obj.open() as api:
        done = {
            name: api.post(client.repo_path(name) + "/gc", seconds=UPKEEP_SECONDS)
            for name in names or _all(api)
        }
    if wants_json(context, as_json):
        return terminal.print_json(done)
    rows = [(name, f"{one['dropped']:,}") for name, one in done.items()]
    return terminal.print_table(("REPOSITORY", "OBJECTS DROPPED"), rows, "No repositories.")


@git.command("fsck")
def prove(context: typer.Context, names: Names = None, as_json: AsJson = False) -> None:
    """Read every object of a repository; exit code 4 if any is damaged or missing."""
    with context.obj.open() as api:
        done = {
            name: api.post(client.repo_path(name) + "/fsck", seconds=UPKEEP_SECONDS)
            for name in names or _all(api)
        }
    if wants_json(context, as_json):
        terminal.print_json(done)
    else:
        rows = [
            (name, f"{one['objects']:,}", "; ".join(one["problems"]) or "whole")
            for name, one in done.items()
        ]
        terminal.print_table(("REPOSITORY", "OBJECTS", "STATE"), rows, "No repositories.")
    if not all(one["whole"] for one in done.values()):
        raise typer.Exit(PLATFORM_FAILED)


def _all(api: client.Client) -> list[str]:
    return [one["full_name"] for one in api.pages("/api/v1/repos", "repositories", limit=1_000_000)]
