"""The command line's commands on other servers: mirrors that follow them, subscriptions that tell
them, hosts that commands may reach; and repositories made many at once.

Parses arguments and calls the API. Part of main.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.cli.door import USAGE, AsJson, Name, lazy, show, wants_json

if TYPE_CHECKING:
    from ci_platform.cli import client, terminal
else:
    client, terminal = map(lazy, ("ci_platform.cli.client", "ci_platform.cli.terminal"))

BATCH = 100  # repositories of one request

repo_remotes = typer.Typer()


@repo_remotes.command("mirror")
def mirror_repository(
    context: typer.Context,
    name: Name,
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="What to follow [show what it follows].")
    ] = None,
    minutes: Annotated[int, typer.Option(help="Between two looks; 0: only when pinged.")] = 60,
    username: Annotated[str | None, typer.Option(help="For a remote that asks.")] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar="SLUICE_REMOTE_PASSWORD", help="Better in the environment."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the branches it has of its own.")
    ] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Look at the remote now.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Follow it no more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a repository follow one on another server."""
    path = client.repo_path(name) + "/mirror"
    if sum((url is not None, sync, remove)) > 1:
        raise typer.BadParameter("give a URL, --sync or --remove")
    with context.obj.open() as api:
        if remove:
            api.delete(path)
            return show(context, {"removed": name}, as_json, f"{name} is no mirror any more")
        if sync:
            found = api.post(f"{path}/sync")
        elif url is None:
            found = api.get(path)
        else:
            body = {"url": url, "username": username, "password": password}
            every = minutes * 60 if minutes else None
            found = api.post(path, {**body, "every_seconds": every, "overwrite": overwrite})
    lines = [f"{name} follows {found['url']}"]
    lines += [
        f"{label:<9}{found[field]}"
        for label, field in (
            ("worked", "synced_at"),
            ("looked", "checked_at"),
            ("outcome", "outcome"),
            ("next", "next_at"),
        )
        if found[field] is not None
    ]
    show(context, found, as_json, "\n".join(lines))


@repo_remotes.command("network")
def network(
    context: typer.Context,
    name: Name,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="All it may reach: name, *.name, name:port; repeatable."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="No network at all.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="What the server allows.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show or set which hosts a repository's commands may reach, of those the server allows."""
    if sum((bool(allow), none, clear)) > 1:
        raise typer.BadParameter("give --allow, --none or --clear")
    path = client.repo_path(name) + "/network"
    with context.obj.open() as api:
        if clear:
            api.delete(path)
        elif allow or none:
            api.put(path, {"hosts": allow or []})
        found = api.get(path)
    hosts = found["hosts"]
    said = f"commands of {name} may reach "
    if hosts is None:
        said += "what the server allows"
    else:
        said += ", ".join(hosts) or "no host"
    show(context, found, as_json, said)


@repo_remotes.command("create-many")
def create_repositories(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="OWNER/NAME...")],
    template: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="What each begins with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make repositories, empty or from a template; exit code 2 if one could not be made."""
    wanted = [dict(zip(("owner", "name"), one.split("/", 1), strict=False)) for one in names]
    for one, name in zip(wanted, names, strict=True):
        if len(one) != 2:
            raise typer.BadParameter(f"{name!r} is not OWNER/NAME")
    done = []
    with context.obj.open() as api:
        for at in range(0, len(wanted), BATCH):
            body = {"repositories": wanted[at : at + BATCH], "template": template}
            done += api.post("/api/v1/repos/batch", body)["repositories"]
    if wants_json(context, as_json):
        terminal.print_json(done)
    else:
        rows = [(name, one["problem"] or "created") for name, one in zip(names, done, strict=True)]
        terminal.print_table(("REPOSITORY", "STATE"), rows, "")
    if any(one["problem"] for one in done):
        raise typer.Exit(USAGE)


@repo_remotes.command("subscribe")
def subscribe(
    context: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent.")],
    event: Annotated[list[str], typer.Option(help="pushed, forked, ...; several times.")],
    as_json: AsJson = False,
) -> None:
    """Have what happens to a repository sent to an address; prints the secret, once."""
    path = client.repo_path(name) + "/subscriptions"
    with context.obj.open() as api:
        made = api.post(path, {"url": url, "events": event})
    show(context, made, as_json, f"id      {made['id']}\nsecret  {made['secret']}")


@repo_remotes.command("subscriptions")
def list_subscriptions(
    context: typer.Context,
    name: Name,
    log: Annotated[
        str | None, typer.Option(metavar="ID", help="What this one was told lately.")
    ] = None,
    remove: Annotated[str | None, typer.Option(metavar="ID", help="End this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List who is told of what happens to a repository, or what one was told."""
    path = client.repo_path(name) + "/subscriptions"
    with context.obj.open() as api:
        if remove is not None:
            api.delete(f"{path}/{client.segment(remove)}")
            return show(context, {"removed": remove}, as_json, f"ended {remove}")
        if log is not None:
            return _print_log(context, api, f"{path}/{client.segment(log)}/deliveries", as_json)
        found = api.get(path)["subscriptions"]
    if wants_json(context, as_json):
        return terminal.print_json(found)
    rows = [(one["id"], one["url"], ", ".join(one["events"])) for one in found]
    return terminal.print_table(("ID", "URL", "EVENTS"), rows, "Nobody is told of it.")


def _print_log(context: typer.Context, api: client.Client, path: str, as_json: bool) -> None:
    found = api.get(path)["deliveries"]
    if wants_json(context, as_json):
        return terminal.print_json(found)
    rows = [
        (one["created_at"], one["event"], one["state"], str(one["tries"]), one["outcome"] or "")
        for one in found
    ]
    columns = ("AT", "EVENT", "STATE", "TRIES", "OUTCOME")
    return terminal.print_table(columns, rows, "It was told nothing lately.")
