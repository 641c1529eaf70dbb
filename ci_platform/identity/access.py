"""Who may do what: the one authorisation function, for pages, API, CLI, git and links alike.

Pure: it looks at an Actor and answers. It makes no actors (identity/door.py does) and reads no
tables. "Not there" and "not yours to see" are one answer, so that names cannot be probed.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from ci_platform.errors import Forbidden, NotFound, NotSignedIn, RepositoryNotFound
from ci_platform.model import Actor, Approval, RepositoryId, Role, Run

ROLE_PREFIX = "role:"
GROUP_PREFIX = "group:"


class Scope(StrEnum):
    """What a token may be used for. Each of them also reads."""

    READ = "repo:read"
    WRITE = "repo:write"  # push, write files
    RUN = "run"  # start and change runs, answer approvals
    ADMIN = "admin"  # everything its user may do


class Action(StrEnum):
    """Everything anyone may ask for. Closed: a new door needs a new line in RULES."""

    READ_REPOSITORY = "read repository"  # its files, runs, journals and logs
    WRITE_REPOSITORY = "write repository"  # push, write files, fork into
    CONFIGURE_REPOSITORY = "configure repository"  # webhooks, roles
    DELETE_REPOSITORY = "delete repository"
    START_RUN = "start run"
    CHANGE_RUN = "change run"  # pause, resume, cancel, restart, send an event
    DELETE_RUN = "delete run"
    DECIDE_APPROVAL = "decide approval"  # then also `may_decide`
    CREATE_REPOSITORY = "create repository"
    MANAGE_TOKENS = "manage own tokens"
    MANAGE_PEOPLE = "manage people"
    MANAGE_WORKERS = "manage workers"
    READ_SYSTEM = "read system"


_RANK = {Role.READER: 1, Role.WRITER: 2, Role.MAINTAINER: 3}

# What a repository's action needs: the role, and the scope if a token asks.
RULES: dict[Action, tuple[Role, Scope]] = {
    Action.READ_REPOSITORY: (Role.READER, Scope.READ),
    Action.WRITE_REPOSITORY: (Role.WRITER, Scope.WRITE),
    Action.CONFIGURE_REPOSITORY: (Role.MAINTAINER, Scope.ADMIN),
    Action.DELETE_REPOSITORY: (Role.MAINTAINER, Scope.ADMIN),
    Action.START_RUN: (Role.WRITER, Scope.RUN),
    Action.CHANGE_RUN: (Role.WRITER, Scope.RUN),
    Action.DELETE_RUN: (Role.MAINTAINER, Scope.RUN),
    Action.DECIDE_APPROVAL: (Role.READER, Scope.RUN),
}

# What an action of the whole instance needs: to be its admin, and the scope if a token asks.
INSTANCE_RULES: dict[Action, tuple[bool, Scope]] = {
    Action.CREATE_REPOSITORY: (True, Scope.WRITE),
    Action.MANAGE_TOKENS: (False, Scope.ADMIN),
    Action.MANAGE_PEOPLE: (True, Scope.ADMIN),
    Action.MANAGE_WORKERS: (True, Scope.ADMIN),
    Action.READ_SYSTEM: (True, Scope.READ),
}


def authorise(actor: Actor, action: Action, repository_id: RepositoryId | None = None) -> None:
    """Return if the actor may do this; raise NotSignedIn, NotFound or Forbidden if not."""
    if actor.kind == "system":
        return
    if actor.kind == "anonymous":
        raise NotSignedIn()
    if action in INSTANCE_RULES:
        _authorise_instance(actor, action)
        return
    if repository_id is None:
        raise AssertionError(f"{action!r} needs a repository")
    needed, scope = RULES[action]
    role = role_in(actor, repository_id)
    if role is None:
        raise RepositoryNotFound()
    if _RANK[role] < _RANK[needed]:
        raise Forbidden(f"to {action} you must be its {needed}; you are its {role}")
    _require_scope(actor, action, scope)


def may(actor: Actor, action: Action, repository_id: RepositoryId | None = None) -> bool:
    """Say whether `authorise` would pass: for showing or hiding a button, never for deciding."""
    try:
        authorise(actor, action, repository_id)
    except (NotSignedIn, NotFound, Forbidden):
        return False
    return True


def role_in(actor: Actor, repository_id: RepositoryId) -> Role | None:
    """The actor's role in a repository: an admin is maintainer of all of them."""
    if actor.repository_id is not None and actor.repository_id != repository_id:
        return None
    if actor.admin or actor.kind == "system":
        return Role.MAINTAINER
    return actor.roles.get(repository_id)


def readable(actor: Actor) -> Sequence[RepositoryId] | None:
    """The repositories the actor may see; None means all of them."""
    if actor.repository_id is not None:
        return [actor.repository_id] if role_in(actor, actor.repository_id) else []
    if actor.admin or actor.kind == "system":
        return None
    return sorted(actor.roles)


def check_decider(actor: Actor, approval: Approval, run: Run) -> None:
    """Raise Forbidden, saying why, unless this actor may answer this gate.

    `authorise(actor, DECIDE_APPROVAL, …)` comes first: this only adds the gate's own rules.
    """
    if actor.kind == "system":
        raise Forbidden("an approval is a person's answer; the platform may not give it")
    if not approval.spec.get("allow_self", False) and run.actor_id == actor.id:
        raise Forbidden("you caused this run, and this approval asks for somebody else")
    role = role_in(actor, approval.repository_id)
    approvers = list(approval.spec.get("approvers") or ())
    if not approvers:
        if role is None or _RANK[role] < _RANK[Role.WRITER]:
            raise Forbidden("writers of the repository may answer this approval")
        return
    if not any(_matches(entry, actor, role) for entry in approvers):
        raise Forbidden(f"this approval is for {', '.join(approvers)}")


def may_decide(actor: Actor, approval: Approval, run: Run) -> bool:
    """Say whether this actor may answer this gate: for showing its buttons."""
    try:
        authorise(actor, Action.DECIDE_APPROVAL, approval.repository_id)
        check_decider(actor, approval, run)
    except (NotSignedIn, NotFound, Forbidden):
        return False
    return True


def _matches(entry: str, actor: Actor, role: Role | None) -> bool:
    if entry.startswith(GROUP_PREFIX):
        return entry.removeprefix(GROUP_PREFIX) in actor.groups
    if entry.startswith(ROLE_PREFIX):
        wanted = entry.removeprefix(ROLE_PREFIX)
        return (wanted in _RANK and role is not None and _RANK[role] >= _RANK[Role(wanted)]) or (
            wanted == "admin" and actor.admin
        )
    # A console, and a token that belongs to nobody, have a name too, but are no person of it.
    nobody = actor.kind == "console" or (actor.kind == "token" and actor.id == actor.token_id)
    return entry == actor.name and not nobody


def _authorise_instance(actor: Actor, action: Action) -> None:
    needs_admin, scope = INSTANCE_RULES[action]
    if needs_admin and not actor.admin:
        raise Forbidden(f"to {action} you must be an admin of this instance")
    if actor.repository_id is not None:
        raise Forbidden(f"this token is for one repository; it may not {action}")
    _require_scope(actor, action, scope)


def _require_scope(actor: Actor, action: Action, scope: Scope) -> None:
    if actor.kind != "token" or scope in actor.scopes or Scope.ADMIN in actor.scopes:
        return
    if scope is Scope.READ and actor.scopes:
        return
    raise Forbidden(f"to {action} the token needs the scope {scope}")
