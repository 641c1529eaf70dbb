from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.errors import Forbidden, NotFound, NotSignedIn
from ci_platform.identity import (
    ANONYMOUS,
    Action,
    Scope,
    authorise,
    check_decider,
    console,
    may,
    may_decide,
    readable,
)
from ci_platform.identity.access import INSTANCE_RULES, RULES
from ci_platform.model import (
    SYSTEM,
    Actor,
    Approval,
    Json,
    RepositoryId,
    Resume,
    Role,
    Run,
    RunId,
    RunState,
    StepKey,
    StepKind,
)

HERE, THERE = RepositoryId("repo_here"), RepositoryId("repo_there")


def user(role: Role | None = None, *, name: str = "ada", admin: bool = False) -> Actor:
    roles = {} if role is None else {HERE: role}
    return Actor(kind="user", id=f"usr_{name}", name=name, admin=admin, roles=roles)


def token(of: Actor, *scopes: Scope, repository_id: RepositoryId | None = None) -> Actor:
    return replace(
        of,
        kind="token",
        scopes=frozenset(scopes),
        token_id="tok_1",
        repository_id=repository_id,
    )


NOBODYS = Actor(
    kind="token",
    id="tok_9",
    name="deploy",
    admin=True,
    scopes=frozenset({Scope.RUN}),
    token_id="tok_9",
)


def test_every_action_has_exactly_one_rule() -> None:
    assert set(RULES) | set(INSTANCE_RULES) == set(Action)
    assert not set(RULES) & set(INSTANCE_RULES)


@pytest.mark.parametrize("action", Action)
def test_anonymous_is_asked_to_sign_in_whatever_they_want(action: Action) -> None:
    with pytest.raises(NotSignedIn):
        authorise(ANONYMOUS, action, HERE)


@pytest.mark.parametrize("action", RULES)
def test_without_a_role_a_repository_is_not_there(action: Action) -> None:
    with pytest.raises(NotFound):
        authorise(user(), action, HERE)
    with pytest.raises(NotFound):
        authorise(user(Role.MAINTAINER), action, THERE)


@pytest.mark.parametrize("action", Action)
def test_admins_and_the_platform_may_do_everything(action: Action) -> None:
    authorise(user(admin=True), action, HERE)
    authorise(SYSTEM, action, HERE)
    authorise(console("root"), action, HERE)


def test_a_role_allows_what_lower_roles_allow() -> None:
    allowed = {role: {action for action in RULES if may(user(role), action, HERE)} for role in Role}
    assert allowed[Role.READER] < allowed[Role.WRITER] < allowed[Role.MAINTAINER] == set(RULES)


def test_a_reader_is_told_that_they_may_not_write() -> None:
    with pytest.raises(Forbidden, match="writer"):
        authorise(user(Role.READER), Action.START_RUN, HERE)


@pytest.mark.parametrize("action", [*RULES, *INSTANCE_RULES])
def test_a_token_needs_the_scope_as_well_as_its_user_the_right(action: Action) -> None:
    admin = user(admin=True)
    _, scope = (RULES | INSTANCE_RULES)[action]
    authorise(token(admin, scope), action, HERE)
    authorise(token(admin, Scope.ADMIN), action, HERE)
    with pytest.raises(Forbidden, match="scope"):
        authorise(token(admin), action, HERE)


def test_a_scope_gives_nothing_that_the_user_has_not() -> None:
    with pytest.raises(NotFound):
        authorise(token(user(), Scope.ADMIN), Action.READ_REPOSITORY, HERE)
    with pytest.raises(Forbidden):
        authorise(token(user(), Scope.ADMIN), Action.MANAGE_PEOPLE)


def test_every_scope_reads() -> None:
    for scope in Scope:
        authorise(token(user(Role.READER), scope), Action.READ_REPOSITORY, HERE)


def test_a_bound_token_sees_its_repository_alone() -> None:
    bound = token(user(admin=True), Scope.ADMIN, repository_id=HERE)
    authorise(bound, Action.DELETE_REPOSITORY, HERE)
    with pytest.raises(NotFound):
        authorise(bound, Action.READ_REPOSITORY, THERE)
    for action in INSTANCE_RULES:
        with pytest.raises(Forbidden):
            authorise(bound, action)
    assert readable(bound) == [HERE]


def test_readable_names_what_may_be_seen() -> None:
    assert readable(user(admin=True)) is None
    assert readable(user(Role.READER)) == [HERE]
    assert readable(user()) == []
    assert readable(token(user(), Scope.READ, repository_id=HERE)) == []


# --- approvals ------------------------------------------------------------------------------------


def gate(**spec: Json) -> Approval:
    return Approval(
        run_id=RunId("run_1"),
        repository_id=HERE,
        key=StepKey(StepKind.APPROVAL, "deploy"),
        spec=spec,
        opened_ms=0,
        expires_ms=None,
        outcome=None,
        closed_ms=None,
        decisions=(),
    )


def run_of(actor_id: str | None) -> Run:
    return Run(
        id=RunId("run_1"),
        number=1,
        repository_id=HERE,
        pipeline="CI",
        ref="refs/heads/main",
        commit="0" * 40,
        resume=Resume.PINNED,
        trigger="push",
        payload={},
        event={},
        actor="x",
        actor_id=actor_id,
        trusted=True,
        created_ms=0,
        state=RunState.WAITING,
        reason=None,
        last_seq=1,
        fence=0,
        worker=None,
        lease_until_ms=None,
        ready_ms=None,
        waits=(),
        started_ms=None,
        ended_ms=None,
        output=None,
        error=None,
        pause_requested=False,
        cancel_requested=False,
        timeout_ms=None,
    )


OTHERS = run_of("usr_somebody")


@pytest.mark.parametrize(
    ("actor", "approvers", "eligible"),
    [
        (user(Role.WRITER), [], True),
        (user(Role.READER), [], False),
        (user(admin=True), [], True),
        (user(Role.READER), ["ada"], True),
        (user(Role.MAINTAINER), ["bob"], False),
        (user(admin=True), ["bob"], False),
        (user(Role.MAINTAINER), ["role:maintainer"], True),
        (user(Role.MAINTAINER), ["role:writer"], True),
        (user(Role.WRITER), ["role:maintainer"], False),
        (user(Role.WRITER), ["bob", "role:writer"], True),
        (user(Role.MAINTAINER), ["role:emperor"], False),
        (user(admin=True), ["role:admin"], True),
        (user(Role.MAINTAINER), ["role:admin"], False),
        (user(Role.MAINTAINER), ["group:ops"], False),
        (replace(user(Role.READER), groups=frozenset({"ops"})), ["group:ops"], True),
        (token(user(Role.READER), Scope.RUN), ["ada"], True),
        (NOBODYS, ["role:maintainer"], True),
        (NOBODYS, ["deploy"], False),
        (console("ada"), ["role:maintainer"], True),
        (console("ada"), ["ada"], False),
        (SYSTEM, ["role:maintainer"], False),
    ],
)
def test_a_gate_says_who_may_answer(actor: Actor, approvers: list[str], eligible: bool) -> None:
    assert may_decide(actor, gate(approvers=approvers), OTHERS) is eligible


def test_a_name_alone_does_not_make_a_repository_visible() -> None:
    assert not may_decide(user(), gate(approvers=["ada"]), OTHERS)


def test_whoever_caused_the_run_may_answer_only_where_the_gate_says_so() -> None:
    ada = user(Role.MAINTAINER)
    mine = run_of(ada.id)
    with pytest.raises(Forbidden, match="you caused"):
        check_decider(ada, gate(), mine)
    with pytest.raises(Forbidden):
        check_decider(token(ada, Scope.RUN), gate(allow_self=False), mine)
    check_decider(ada, gate(allow_self=True), mine)
    check_decider(user(Role.MAINTAINER, name="bob"), gate(), mine)


def test_a_token_needs_the_run_scope_to_answer() -> None:
    assert not may_decide(token(user(Role.MAINTAINER), Scope.READ), gate(), OTHERS)
