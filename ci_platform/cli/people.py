"""The command line's commands on tokens and people.

Parses arguments and calls the API. Part of main.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ci_platform.cli.door import AsJson, Name, lazy, show, wants_json
from ci_platform.errors import Forbidden

if TYPE_CHECKING:
    from ci_platform.cli import client, console, terminal
else:
    client, console, terminal = map(
        lazy, ("ci_platform.cli.client", "ci_platform.cli.console", "ci_platform.cli.terminal")
    )

token = typer.Typer(help="Tokens for git and the API.", no_args_is_help=True)
user = typer.Typer(help="People and their roles.", no_args_is_help=True)


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
    show(context, made, as_json, made["secret"])


@token.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List tokens, without their secrets."""
    with context.obj.open() as api:
        found = api.get("/api/v1/tokens")["tokens"]
    if wants_json(context, as_json):
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
    show(context, {"revoked": token_id}, as_json, f"revoked {token_id}")


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
    show(context, made, as_json, f"created {name}")


@user.command("list")
def list_users(context: typer.Context, as_json: AsJson = False) -> None:
    """List the users."""
    with context.obj.open() as api:
        found = api.get("/api/v1/users")["users"]
    if wants_json(context, as_json):
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
    show(context, body, as_json, f"{name} is {role} of {repository}")


@user.command("link")
def setup_link(context: typer.Context, as_json: AsJson = False) -> None:
    """Make a new one-time link with which the first admin signs in."""
    link = console.setup_link(context.obj.config())
    if link is None:
        raise Forbidden("there are users already: sign in, or use `sluice user create`")
    show(context, {"url": link}, as_json, link)
