"""Routes of people, tokens and the instance itself."""

from __future__ import annotations

from fastapi import APIRouter

from ci_platform.api import answers, requests
from ci_platform.api.desk import From
from ci_platform.errors import NotSignedIn

router = APIRouter()


@router.get("/whoami", tags=["people"])
def whoami(caller: From) -> answers.Whoami:
    actor = caller.actor()
    if actor.kind == "anonymous":
        raise NotSignedIn()
    return answers.Whoami.of(actor)


@router.get("/tokens", tags=["people"])
def list_tokens(caller: From) -> answers.TokenList:
    found = caller.desk.queries.tokens(caller.actor())
    return answers.TokenList(tokens=[answers.TokenAnswer.of(token) for token in found])


@router.post("/tokens", status_code=201, tags=["people"])
def create_token(caller: From, body: requests.NewToken) -> answers.NewTokenAnswer:
    """Make a token; its secret is in this answer and nowhere else."""
    made = caller.desk.commands.people.create_token(
        caller.actor(),
        body.name,
        body.scopes,
        repository=body.repository,
        days=body.days,
        user=body.user,
    )
    shown = answers.TokenAnswer.of(made.token)
    return answers.NewTokenAnswer(**dict(shown), secret=made.secret)


@router.delete("/tokens/{token_id}", status_code=204, tags=["people"])
def revoke_token(caller: From, token_id: str) -> None:
    caller.desk.commands.people.revoke_token(caller.actor(), token_id)


@router.get("/users", tags=["people"])
def list_users(caller: From) -> answers.UserList:
    found = caller.desk.queries.users(caller.actor())
    return answers.UserList(users=[answers.UserAnswer.of(user) for user in found])


@router.post("/users", status_code=201, tags=["people"])
def create_user(caller: From, body: requests.NewUser) -> answers.UserAnswer:
    created = caller.desk.commands.people.create_user(
        caller.actor(), body.name, body.password, admin=body.admin
    )
    return answers.UserAnswer.of(created)


@router.put("/users/{name}/password", status_code=204, tags=["people"])
def set_password(caller: From, name: str, body: requests.NewPassword) -> None:
    caller.desk.commands.people.set_password(caller.actor(), name, body.password)


@router.get("/system", tags=["system"])
def get_system(caller: From) -> answers.SystemAnswer:
    return answers.SystemAnswer.of(caller.desk.queries.system(caller.actor()))


@router.post("/system/workers/{name}/drain", tags=["system"], status_code=202)
def drain_worker(caller: From, name: str) -> answers.DrainingAnswer:
    """Let a worker take nothing new, end or hand back what it does, and end."""
    worker = caller.desk.commands.workers.drain(caller.actor(), name)
    return answers.DrainingAnswer(worker=worker)


@router.get("/audit", tags=["system"])
def get_audit(caller: From) -> answers.AuditList:
    """The last changes that people and tokens made, newest first."""
    found = caller.desk.queries.audit(caller.actor())
    return answers.AuditList(entries=[dict(entry) for entry in found])
