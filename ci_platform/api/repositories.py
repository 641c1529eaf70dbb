"""Routes of repositories: the things themselves, their files, roles, webhooks, and the hosts that
their commands may reach."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from ci_platform.api import answers, requests
from ci_platform.api.desk import Caller, From
from ci_platform.errors import InvalidRequest, NotFound, RepositoryExists
from ci_platform.model import Repository
from ci_platform.ports.hosting import NewRepository

router = APIRouter(prefix="/repos", tags=["repositories"])


@router.post("", status_code=201)
def create_repository(caller: From, body: requests.NewRepository) -> answers.RepositoryAnswer:
    created = caller.desk.commands.repositories.create(
        caller.actor(),
        body.owner,
        body.name,
        default_branch=body.default_branch,
        description=body.description,
        object_format=body.object_format,
    )
    return answers.RepositoryAnswer.of(created, caller.desk.base_url)


class Created(answers.Answer):
    """What became of one position of a batch."""

    repository: answers.RepositoryAnswer | None
    problem: str | None
    field: str | None


class CreatedList(answers.Answer):
    created: int
    repositories: list[Created]


@router.post("/batch", status_code=201)
def create_repositories(caller: From, body: requests.NewRepositories) -> CreatedList:
    """Make many, empty or from a template; what stops one is told at its position."""
    owner, _, name = (body.template or "").partition("/")
    made = caller.desk.commands.repositories.create_many(
        caller.actor(),
        [NewRepository(one.owner, one.name, one.description) for one in body.repositories],
        template=None if body.template is None else (owner, name),
    )
    found = [_created(one, caller.desk.base_url) for one in made]
    count = sum(one.repository is not None for one in found)
    return CreatedList(created=count, repositories=found)


def _created(one: Repository | InvalidRequest | RepositoryExists, base_url: str) -> Created:
    if isinstance(one, Repository):
        shown = answers.RepositoryAnswer.of(one, base_url)
        return Created(repository=shown, problem=None, field=None)
    field = one.field if isinstance(one, InvalidRequest) else "name"
    return Created(repository=None, problem=one.detail, field=field)


@router.get("")
def list_repositories(
    caller: From, page: Annotated[requests.After, Query()]
) -> answers.RepositoryList:
    found = caller.desk.queries.repository_list(caller.actor(), after=page.cursor, limit=page.limit)
    return answers.RepositoryList(
        repositories=[answers.RepositoryAnswer.of(one, caller.desk.base_url) for one in found],
        cursor=found[-1].full_name if len(found) == page.limit else None,
    )


@router.get("/{owner}/{name}")
def get_repository(caller: From, owner: str, name: str) -> answers.RepositoryAnswer:
    found = caller.desk.queries.repository(caller.actor(), owner, name)
    return answers.RepositoryAnswer.of(found, caller.desk.base_url)


@router.delete("/{owner}/{name}", status_code=204)
def delete_repository(caller: From, owner: str, name: str) -> None:
    caller.desk.commands.repositories.delete(caller.actor(), owner, name)


@router.post("/{owner}/{name}/fork", status_code=201)
def fork_repository(
    caller: From, owner: str, name: str, body: requests.Fork
) -> answers.RepositoryAnswer:
    created = caller.desk.commands.repositories.fork(
        caller.actor(), owner, name, into_owner=body.owner, into_name=body.name
    )
    return answers.RepositoryAnswer.of(created, caller.desk.base_url)


@router.post("/{owner}/{name}/commits", status_code=201)
def commit_files(
    caller: From, owner: str, name: str, body: requests.NewCommit
) -> answers.CommitAnswer:
    """Write files on a branch, without a git client. It is a push: it starts what one starts."""
    commit = caller.desk.commands.repositories.commit_files(
        caller.actor(),
        owner,
        name,
        branch=body.branch,
        changes=[change.change(index) for index, change in enumerate(body.changes)],
        message=body.message,
        expected_parent=body.expected_parent,
    )
    return answers.CommitAnswer(commit=commit, branch=body.branch)


@router.get("/{owner}/{name}/files/{path:path}", response_model_exclude_unset=True)
def read_file(
    caller: From, owner: str, name: str, path: str, at: Annotated[requests.FileOf, Query()]
) -> answers.FileAnswer:
    """A file's content at a ref, or what is in a directory."""
    path = path.strip("/")
    if path:
        try:
            return _file(caller, owner, name, path, at.ref)
        except NotFound:
            pass  # it may be a directory; if not, that is what is said
    found = caller.desk.queries.tree(caller.actor(), owner, name, path, at.ref)
    entries = [answers.EntryName(name=name, kind=kind) for name, kind in found.entries]
    return answers.FileAnswer(path=path, commit=found.commit, kind="dir", entries=entries)


def _file(caller: Caller, owner: str, name: str, path: str, ref: str | None) -> answers.FileAnswer:
    found = caller.desk.queries.file(caller.actor(), owner, name, path, ref)
    try:
        encoding, content = "utf-8", found.content.decode()
    except UnicodeDecodeError:
        encoding, content = "base64", base64.b64encode(found.content).decode()
    return answers.FileAnswer(
        path=path, commit=found.commit, kind="file", encoding=encoding, content=content
    )


@router.post("/{owner}/{name}/roles", status_code=204)
def set_role(caller: From, owner: str, name: str, body: requests.RoleOf) -> None:
    """Give a user a role in the repository; null takes it away."""
    caller.desk.commands.people.set_role(
        caller.actor(), owner, name, user=body.user, role=body.role
    )


class AllowedHosts(requests.Body):
    hosts: list[str]  # name, *.name or name:port; an empty list: no network


class NetworkAnswer(answers.Answer):
    hosts: list[str] | None  # null: what the server allows

    @classmethod
    def of(cls, hosts: Sequence[str] | None) -> NetworkAnswer:
        return cls(hosts=None if hosts is None else list(hosts))


@router.get("/{owner}/{name}/network")
def get_network(caller: From, owner: str, name: str) -> NetworkAnswer:
    return NetworkAnswer.of(caller.desk.commands.networks.get(caller.actor(), owner, name))


@router.put("/{owner}/{name}/network")
def set_network(caller: From, owner: str, name: str, body: AllowedHosts) -> NetworkAnswer:
    """Let its commands reach these hosts, of those that the server allows, and no others."""
    networks = caller.desk.commands.networks
    return NetworkAnswer.of(networks.put(caller.actor(), owner, name, body.hosts))


@router.delete("/{owner}/{name}/network", status_code=204)
def clear_network(caller: From, owner: str, name: str) -> None:
    """Leave it to the server again."""
    caller.desk.commands.networks.remove(caller.actor(), owner, name)


@router.get("/{owner}/{name}/hooks")
def list_hooks(caller: From, owner: str, name: str) -> answers.HookList:
    found = caller.desk.queries.hooks(caller.actor(), owner, name)
    return answers.HookList(
        hooks=[answers.HookAnswer.of(one, caller.desk.base_url) for one in found]
    )


@router.post("/{owner}/{name}/hooks", status_code=201)
def create_hook(
    caller: From, owner: str, name: str, body: requests.NewHook
) -> answers.NewHookAnswer:
    made = caller.desk.commands.hooks.create(
        caller.actor(),
        owner,
        name,
        remote_url=body.remote_url,
        secret=body.secret,
        provider=body.provider,
    )
    shown = answers.HookAnswer.of(made.hook, caller.desk.base_url)
    return answers.NewHookAnswer(**dict(shown), secret=made.secret)


@router.delete("/{owner}/{name}/hooks/{hook_id}", status_code=204)
def remove_hook(caller: From, owner: str, name: str, hook_id: str) -> None:
    caller.desk.commands.hooks.remove(caller.actor(), owner, name, hook_id)
