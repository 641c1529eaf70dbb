"""Git over HTTP as the platform sees it: who may read or push, and what a push starts.

Two adapters for git_store's protocols; the decisions are identity's and the pushes command's.
Built by app.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

import git_store
from ci_platform.commands import Commands
from ci_platform.commands.mirrors import PUSHER as MIRROR
from ci_platform.engine.ids import new_id
from ci_platform.errors import Forbidden, NotFound, NotSignedIn, RepositoryNotFound, SluiceError
from ci_platform.identity import ANONYMOUS, Action, Identity, authorise
from ci_platform.model import Actor, Json, RepositoryId
from ci_platform.ports.telling import Notice, NoticeKind
from ci_platform.source import push_of
from ci_platform.store.notices import write_notices

_STRANGER = "sign in"


@dataclass(frozen=True, slots=True)
class GitAccess:
    """git_store.Authenticate: a token, as a bearer's or as the password of basic authentication."""

    identity: Identity

    def __call__(
        self,
        authorization: str | None,
        owner: str,
        name: str,
        *,
        repository: git_store.Repository | None,
        write: bool,
    ) -> git_store.Access:
        try:
            actor = self._actor(authorization)
            if repository is None:
                raise RepositoryNotFound()
            action = Action.WRITE_REPOSITORY if write else Action.READ_REPOSITORY
            authorise(actor, action, RepositoryId(repository.id))
        except NotSignedIn as error:
            return _ask(error)
        except Forbidden as error:
            return git_store.Access.forbid(error.detail)
        except NotFound:
            return git_store.Access.not_there(
                f"there is no repository {owner}/{name}, or it is not yours to see; "
                f"an admin makes it: sluice repo create {owner}/{name}"
            )
        return git_store.Access.allow(actor.id, actor.name)

    def _actor(self, authorization: str | None) -> Actor:
        """Raises NotSignedIn, also when nothing was sent: names cannot be probed without."""
        actor = ANONYMOUS
        if (authorization or "").partition(" ")[0].lower() == "bearer":
            actor = self.identity.of_authorization(authorization)
        elif (credentials := basic_credentials(authorization)) is not None:
            actor = self.identity.of_git(*credentials)
        if actor.kind == ANONYMOUS.kind:
            raise NotSignedIn(_STRANGER)
        return actor


def _ask(error: NotSignedIn) -> git_store.Access:
    return git_store.Access.ask(f"{error.detail} (use a token as the password)")


def git_door(store: git_store.GitStore, identity: Identity) -> git_store.GitHttp:
    """Git over HTTP. Nobody reads or writes without credentials: git sends none at first."""
    strangers = _ask(NotSignedIn(_STRANGER))
    return git_store.GitHttp(store, authenticate=GitAccess(identity), strangers=strangers)


def basic_credentials(authorization: str | None) -> tuple[str, str] | None:
    """User and password of an `Authorization: Basic` header; None if it holds none."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, colon, password = text.partition(":")
    return (user, password) if colon else None


@dataclass(frozen=True, slots=True)
class PushListener:
    """git_store.PushListener: every push ends in the one command for pushes."""

    commands: Commands

    def before(self, push: git_store.Push) -> None:
        """Only pushes to mirrors are refused: a pipeline that does not load is a failed run."""
        if push.pusher.id is None and push.pusher.name.startswith(MIRROR):
            return
        refusal = self.commands.mirrors.refusal(RepositoryId(push.repository.id))
        if refusal is not None:
            raise git_store.PushRejected(refusal)

    def after(self, event: git_store.PushEvent, say: Callable[[str], None]) -> None:
        try:
            lines = self.commands.pushes.received(push_of(event))
        except SluiceError as error:
            say(f"sluice: {error.detail}; the push is kept and will be looked at again")
            raise
        for line in lines:
            say(line)


def record(connection: Connection, events: Sequence[git_store.RepositoryEvent]) -> None:
    """git_store.Record: what happens to repositories becomes notices, in its transaction."""
    write_notices(connection, [_notice(event) for event in events])


def _notice(event: git_store.RepositoryEvent) -> Notice:
    repository, source = event.repository, event.source
    detail: dict[str, Json] = {"repository": repository.full_name}
    told = repository.id
    if source is not None:
        told = source.id
        detail = {
            "repository": source.full_name,
            "fork": {"id": repository.id, "full_name": repository.full_name},
        }
    return Notice(
        id=new_id("evt", event.at_ms),
        kind=NoticeKind(event.kind.value),
        repository_id=RepositoryId(told),
        at_ms=event.at_ms,
        detail=detail,
    )
