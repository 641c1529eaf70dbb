"""Inbound webhooks: create, verify and keep a delivery, and finish its work later.

`receive` does only what the sender must wait for; a kept delivery is finished by `finish_pending`,
in this process or, after a crash, in any other. Both ends meet the same command as a push.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ci_platform.commands.forges import FORGES, News, pusher_of
from ci_platform.commands.mirrors import Mirrors
from ci_platform.commands.parts import Parts, check_text
from ci_platform.commands.pushes import Pushes
from ci_platform.engine.ids import new_id
from ci_platform.errors import (
    HookNotFound,
    InvalidRequest,
    NotFound,
    SluiceError,
    TooLarge,
)
from ci_platform.identity import Action
from ci_platform.model import SYSTEM, Actor, Json, Push, RefUpdate, RepositoryId
from ci_platform.ports.hooks import Delivery, Hook

HOOKS_MAX = 50  # of one repository
SECRET_MIN = 8
BATCH = 10  # deliveries taken into memory at once; each may have body_bytes
URL_MAX = 2000
RETRY_MS = 5_000  # before the second try of a delivery's work; doubles each time

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewHook:
    hook: Hook
    secret: str  # shown once
    url: str  # where the forge sends to


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a delivery was answered with: ping, accepted, repeated or ignored, and why."""

    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Hooks:
    parts: Parts
    pushes: Pushes
    mirrors: Mirrors

    def create(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        remote_url: str | None = None,
        secret: str | None = None,
        provider: str = "github",
    ) -> NewHook:
        """Make a webhook; commits are fetched from `remote_url`, never from what a payload says."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        if provider not in FORGES:
            raise InvalidRequest(f"provider must be one of {', '.join(FORGES)}", field="provider")
        if remote_url is not None:
            check_remote_url(remote_url)
        if secret is not None and len(check_text(secret, field="secret")) < SECRET_MIN:
            raise InvalidRequest(f"secret must have {SECRET_MIN} characters", field="secret")
        if len(self.parts.store.hooks.of_repository(repository.id)) >= HOOKS_MAX:
            raise InvalidRequest(f"{repository.full_name} has {HOOKS_MAX} webhooks already")
        chosen = secret or secrets.token_urlsafe(32)
        now_ms = self.parts.clock.now_ms()
        hook = Hook(
            id=new_id("hook", now_ms),
            repository_id=repository.id,
            provider=provider,
            secret=chosen.encode(),
            remote_url=remote_url,
            created_ms=now_ms,
        )
        self.parts.store.hooks.add(hook)
        self.parts.audit(actor, "webhook created", hook.id, repository=repository.full_name)
        return NewHook(hook, chosen, f"{self.parts.base_url}/hooks/{hook.id}")

    def remove(self, actor: Actor, owner: str, name: str, hook_id: str) -> None:
        """Raises HookNotFound, also for a hook of another repository."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        if self.parts.store.hooks.get(hook_id).repository_id != repository.id:
            raise HookNotFound()
        self.parts.store.hooks.remove(hook_id)
        self.parts.audit(actor, "webhook removed", hook_id, repository=repository.full_name)

    def receive(self, hook_id: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        """Verify a delivery and keep it. Header names in lower case. Does no other work."""
        hook = self.parts.store.hooks.get(hook_id)
        if len(body) > self.parts.limits.body_bytes:
            raise TooLarge(
                f"the body has {len(body):,} bytes; the limit is {self.parts.limits.body_bytes:,}"
            )
        forge = FORGES[hook.provider]
        forge.check(hook.secret, headers, body)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise InvalidRequest(
                "set the webhook's content type to application/json", field="content-type"
            )
        event = forge.event(headers)
        delivery_id = forge.delivery(headers, body)
        payload = parse_payload(body)
        news = forge.news.get(event, News.OTHER)
        if news is News.PING:
            return Receipt("ping", "the webhook works")
        if news is not News.OTHER and self.mirrors.hasten(hook.repository_id):
            return Receipt("accepted", "the mirror is brought up to date")
        if news is not News.PUSH:
            return Receipt("ignored", f"{event} events start nothing here")
        updates = [update for update, _ in forge.pushed(payload)]
        kept = [f"{one.ref} at {one.after[:8]}" for one in updates if one.after is not None]
        if not kept:
            gone = ", ".join(one.ref for one in updates)
            return Receipt("ignored", f"{gone or 'nothing'} was deleted")
        delivery = Delivery(hook_id, delivery_id, "push", body, self.parts.clock.now_ms())
        if not self.parts.store.hooks.enqueue(delivery):
            return Receipt("repeated", "this delivery is known; it starts nothing again")
        return Receipt("accepted", ", ".join(kept))

    def finish_pending(self) -> int:
        """Do the work of kept deliveries that are due. Returns how many ended."""
        finished = 0
        now_ms = self.parts.clock.now_ms()
        for delivery in self.parts.store.hooks.pending(now_ms, limit=BATCH):
            outcome = self._attempt(delivery)
            if outcome is not None:
                self.parts.store.hooks.finish(delivery.hook_id, delivery.id, outcome)
                finished += 1
        return finished

    def _attempt(self, delivery: Delivery) -> str | None:
        """How it ended, in a sentence; None if it is put off."""
        try:
            return self._finish(delivery)
        except HookNotFound:
            return "the webhook was removed"
        except SluiceError as error:
            detail = error.detail
        except Exception as error:
            # One delivery that cannot be finished must not hold up those behind it.
            log.exception("delivery %s of %s failed", delivery.id, delivery.hook_id)
            detail = f"{type(error).__name__}: {error}"
        if delivery.tries + 1 >= self.parts.limits.hook_tries:
            subject = f"{delivery.hook_id}:{delivery.id}"
            self.parts.audit(SYSTEM, "webhook delivery given up", subject, reason=detail)
            return f"given up: {detail}"
        until_ms = self.parts.clock.now_ms() + (RETRY_MS << delivery.tries)
        self.parts.store.hooks.defer(delivery.hook_id, delivery.id, until_ms)
        return None

    def _finish(self, delivery: Delivery) -> str:
        hook = self.parts.store.hooks.get(delivery.hook_id)
        payload = parse_payload(delivery.body)
        updates = []
        for update, commit in FORGES[hook.provider].pushed(payload):
            if update.after is not None:
                self._bring(hook, commit, update.ref)
                updates.append(RefUpdate(update.ref, update.before, commit))
        push = Push(
            id=f"{hook.id}:{delivery.id}",
            repository_id=hook.repository_id,
            at_ms=delivery.received_ms,
            actor=pusher_of(payload),
            actor_id=None,
            updates=updates,
            payload=payload,
        )
        return "; ".join(self.pushes.received(push))

    def _bring(self, hook: Hook, commit: str, ref: str) -> None:
        """See that the commit is in the store."""
        if hook.remote_url is not None:
            self.parts.source.fetch(hook.repository_id, hook.remote_url, commit, ref)
        elif not self._has(hook.repository_id, commit):
            raise InvalidRequest(
                f"the webhook has no remote_url, and {commit[:8]} is not in the repository"
            )

    def _has(self, repository_id: RepositoryId, commit: str) -> bool:
        try:
            self.parts.source.commit(repository_id, commit)
        except NotFound:
            return False
        return True


def parse_payload(body: bytes) -> Mapping[str, Json]:
    try:
        payload = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise InvalidRequest("the body must be a JSON object")
    return payload


def check_remote_url(url: str) -> str:
    check_text(url, field="remote_url", chars_max=URL_MAX)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise InvalidRequest(
            "remote_url must be the http or https address of a git repository", field="remote_url"
        )
    return url
