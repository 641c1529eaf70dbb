"""Mirrors: repositories that follow a remote, by the clock, when a forge pings, or when told to.

What moves goes the way of a push and starts what a push starts. Nobody else may push to a mirror,
since the next synchronisation would take it away. Workers call `sync_due`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from ci_platform.commands.parts import Parts
from ci_platform.commands.repositories import Repositories, check_remote
from ci_platform.commands.together import together
from ci_platform.commands.triggers import SKIP_OPTION
from ci_platform.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    NotFound,
    RepositoryNotFound,
    SluiceError,
    TooMany,
)
from ci_platform.identity import Action
from ci_platform.model import Actor, Repository, RepositoryId
from ci_platform.ports.mirroring import Mirror, MirrorStore
from ci_platform.ports.repositories import Imported

SECONDS_MIN = 60
SECONDS_MAX = 30 * 24 * 3600
AT_ONCE = 4  # synchronisations of one worker; the git store takes no more imports than that
HELD_MS = 10 * 60 * 1000  # longer than any fetch may take: then its worker has died
RETRY_MS = 60_000  # after the first failure; doubles with each
PUSHER = "mirror of "  # whom pushes of mirrors are by
RETRY_MAX_MS = 24 * 3600 * 1000
BUSY_MS = 15_000  # until another look where this process imports enough already
OUTCOME_CHARS = 1000
REFUSED_SHOWN = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mirrors:
    parts: Parts
    repositories: Repositories

    def put(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        url: str,
        credentials: tuple[str, str] | None = None,
        every_seconds: int | None = 3600,
        overwrite: bool = False,
    ) -> Mirror:
        """Make a repository (a new one, if there is none) follow a remote, from now on.

        `every_seconds` None: only when it is pinged. One with branches has to be told that it may
        `overwrite` them: a mirror keeps only what the remote has.
        """
        check_remote(url, credentials)
        if every_seconds is not None and not SECONDS_MIN <= every_seconds <= SECONDS_MAX:
            raise InvalidRequest(
                f"every_seconds must be {SECONDS_MIN} to {SECONDS_MAX:,}, or null",
                field="every_seconds",
            )
        store = self._store()
        repository = self._repository(actor, owner, name)
        known = store.get(repository.id)
        if known is None and not overwrite and self.parts.repositories.branches(repository.id):
            raise Conflict(
                f"{repository.full_name} has branches; with `overwrite` it becomes a copy of the"
                " remote, without what only it has"
            )
        if credentials is None and known is not None and known.url == url:
            credentials = _credentials(known)  # a new interval needs no password
        username, password = credentials or (None, None)
        mirror = Mirror(
            repository_id=repository.id,
            url=url,
            username=username,
            password=password,
            every_ms=None if every_seconds is None else every_seconds * 1000,
            next_ms=self.parts.clock.now_ms(),
        )
        store.put(mirror)
        self.parts.audit(actor, "mirror set", repository.full_name, url=url, every=every_seconds)
        return mirror

    def get(self, actor: Actor, owner: str, name: str) -> Mirror:
        """Raises NotFound if the repository is no mirror."""
        repository = self.parts.repository(actor, Action.READ_REPOSITORY, owner, name)
        found = self._store().get(repository.id)
        if found is None:
            raise NotFound(f"{repository.full_name} is no mirror")
        return found

    def remove(self, actor: Actor, owner: str, name: str) -> None:
        """It follows no more; what it has stays, and may be pushed to. Raises NotFound."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        if not self._store().remove(repository.id):
            raise NotFound(f"{repository.full_name} is no mirror")
        self.parts.audit(actor, "mirror removed", repository.full_name)

    def sync(self, actor: Actor, owner: str, name: str) -> Mirror:
        """Have a worker look at the remote as soon as one can. Raises NotFound."""
        repository = self.parts.repository(actor, Action.WRITE_REPOSITORY, owner, name)
        if not self.hasten(repository.id):
            raise NotFound(f"{repository.full_name} is no mirror")
        return self.get(actor, owner, name)

    def hasten(self, repository_id: RepositoryId) -> bool:
        """The same for a ping that was verified. False if it is no mirror."""
        store = self.parts.mirrors
        return store is not None and store.hasten(repository_id, self.parts.clock.now_ms())

    def refusal(self, repository_id: RepositoryId) -> str | None:
        """Why a repository takes no push of anyone's; None if it does."""
        found = None if self.parts.mirrors is None else self.parts.mirrors.get(repository_id)
        if found is None:
            return None
        return f"this repository is a mirror of {found.url}: push there, or make it none first"

    def sync_due(self) -> int:
        """Synchronise what is due, a few at once. Returns how many that were."""
        store = self.parts.mirrors
        if store is None:
            return 0
        now_ms = self.parts.clock.now_ms()
        taken = store.take(now_ms, until_ms=now_ms + HELD_MS, limit=AT_ONCE)
        together(self._sync, taken, name="mirror")
        return len(taken)

    def _sync(self, mirror: Mirror) -> None:
        """Bring one up to date. Whatever happens, it is let go of and due again in time."""
        tell, worked = "", False
        wait_ms: int | None = min(RETRY_MS << min(mirror.tries, 20), RETRY_MAX_MS)
        try:
            tell, worked = _outcome(self._fetch(mirror)), True
            wait_ms = mirror.every_ms
        except RepositoryNotFound:
            self._store().remove(mirror.repository_id)
            return
        except TooMany:
            tell, wait_ms = "other imports come first", BUSY_MS
        except SluiceError as error:
            tell = error.detail
        except Exception as error:
            # One that fails in a way nobody thought of must not be taken again at once for ever.
            log.exception("the mirror %s failed", mirror.repository_id)
            tell = type(error).__name__
        now_ms = self.parts.clock.now_ms()
        next_ms = None if wait_ms is None else now_ms + wait_ms
        self._store().done(
            mirror, now_ms, next_ms=next_ms, outcome=tell[:OUTCOME_CHARS], worked=worked
        )

    def _fetch(self, mirror: Mirror) -> Imported:
        here = self.parts.repositories
        fresh = not here.branches(mirror.repository_id)
        return here.import_remote(
            mirror.repository_id,
            mirror.url,
            credentials=_credentials(mirror),
            prune=True,
            # Its whole past is no news.
            options=[SKIP_OPTION] if fresh else [],
            pusher_id=None,
            pusher=PUSHER + (urlsplit(mirror.url).hostname or "a file"),
        )

    def _repository(self, actor: Actor, owner: str, name: str) -> Repository:
        try:
            return self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        except NotFound:
            return self.repositories.create(actor, owner, name)

    def _store(self) -> MirrorStore:
        if self.parts.mirrors is None:
            raise InternalError("this deployment keeps no mirrors")
        return self.parts.mirrors


def _credentials(mirror: Mirror) -> tuple[str, str] | None:
    return None if mirror.password is None else (mirror.username or "git", mirror.password)


def _outcome(done: Imported) -> str:
    what = "branch or tag" if done.refs == 1 else "branches and tags"
    moved = f"{done.refs} {what} moved" if done.refs else "nothing new"
    refused = [f"{ref}: {why}" for ref, why in list(done.refused.items())[:REFUSED_SHOWN]]
    return f"{moved}; not taken over: {'; '.join(refused)}" if refused else moved
