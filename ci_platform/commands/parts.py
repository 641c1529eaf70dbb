"""What all commands work with: the ports, the limits, and the few words they share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ci_platform.errors import InvalidRequest, NotFound, NotSignedIn, RunNotFound, TooLarge
from ci_platform.identity import Action, authorise
from ci_platform.model import (
    Actor,
    AuditNote,
    Description,
    Json,
    Repository,
    RepositoryId,
    Run,
    RunId,
    SourceFiles,
)
from ci_platform.ports import Clock, Store
from ci_platform.ports.mirroring import MirrorStore
from ci_platform.ports.repositories import Pushes, Repositories, Source
from ci_platform.ports.telling import NoticeStore, Post

MIB = 1 << 20
NAME_MAX = 256
RUN_ID_MAX = 100
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Limits:
    """Design 11, as far as commands meet them."""

    value_bytes: int = MIB  # params, an event's payload
    batch_runs: int = 100
    body_bytes: int = 25 * MIB  # of a webhook
    comment_chars: int = 4000
    refs_per_push: int = 50  # a push of a thousand branches starts no thousand runs
    append_tries: int = 50  # a run that changes faster than that is told to come back later
    hook_tries: int = 12  # of the work of one delivery: nearly three hours


def _nothing_stored(repository_id: RepositoryId) -> None:
    """No repository has storage here."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The ports every command is made over."""

    store: Store
    source: Source
    repositories: Repositories
    outbox: Pushes
    describe: Callable[[SourceFiles], Description]  # Sandbox.describe
    clock: Clock
    base_url: str
    forget_storage: Callable[[RepositoryId], None] = _nothing_stored  # of a deleted repository
    # Those who follow remotes and are told of what happens; None: nobody, in tools and tests.
    mirrors: MirrorStore | None = None
    notices: NoticeStore | None = None
    post: Post | None = None
    limits: Limits = field(default_factory=Limits)

    def run_url(self, run_id: RunId) -> str:
        return f"{self.base_url}/runs/{run_id}"

    def repository(self, actor: Actor, action: Action, owner: str, name: str) -> Repository:
        """A repository, if the actor may do this to it. Names it may not see are not there."""
        if actor.kind == "anonymous":
            raise NotSignedIn()  # before looking: 401 for all names alike
        found = self.repositories.get(owner, name)
        authorise(actor, action, found.id)
        return found

    def run(self, actor: Actor, action: Action, run_id: RunId) -> Run:
        """A run, if the actor may do this to it. Raises RunNotFound."""
        if actor.kind == "anonymous":
            raise NotSignedIn()
        try:
            found = self.store.runs.get(run_id)
            authorise(actor, action, found.repository_id)
        except NotFound:
            raise RunNotFound() from None
        return found

    def audit(self, actor: Actor, action: str, subject: str, **detail: Json) -> None:
        """Write down what a person, a token or the platform changed."""
        note = self.note(actor, action, subject, **detail)
        self.store.audit.record(note.at_ms, note.actor, note.action, note.subject, note.detail)

    def note(self, actor: Actor, action: str, subject: str, **detail: Json) -> AuditNote:
        """What is to be written down together with the change."""
        if actor.token_id is not None:
            detail["token"] = actor.token_id
        return AuditNote(self.clock.now_ms(), actor.name, action, subject, detail)


def check_json(value: Json, *, field: str, bytes_max: int) -> Json:
    """Check that a value is plain JSON both databases can keep, and within its size."""
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}", field=field) from error
    if size > bytes_max:
        raise TooLarge(
            f"{field} has {size:,} bytes as JSON; the limit is {bytes_max:,}", field=field
        )
    return value


def check_text(value: str, *, field: str, chars_max: int = NAME_MAX, empty: bool = False) -> str:
    """Check a name or word: not empty, within its length, no control characters."""
    if not value and not empty:
        raise InvalidRequest(f"{field} must not be empty", field=field)
    if len(value) > chars_max:
        raise InvalidRequest(
            f"{field} has {len(value):,} characters; the limit is {chars_max}", field=field
        )
    if _CONTROL.search(value):
        raise InvalidRequest(f"{field} must not hold control characters", field=field)
    return value


def check_run_id(value: str) -> RunId:
    if len(value) > RUN_ID_MAX or not _RUN_ID.fullmatch(value):
        raise InvalidRequest(
            f"an id has 1 to {RUN_ID_MAX} characters of A-Z, a-z, 0-9, _ and - "
            "and does not begin with -",
            field="id",
        )
    return RunId(value)
