"""Outbound webhooks: who wants to hear of what, and telling them: signed, retried, written down.

What happened is in outboxes that nobody else empties. `spread_pending` turns each notice into one
sending for each subscription, `deliver_pending` sends them; both go on wherever a process died.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ci_platform.commands.parts import Parts, check_text
from ci_platform.commands.together import together
from ci_platform.engine.ids import new_id
from ci_platform.errors import (
    InternalError,
    InvalidRequest,
    NotFound,
    RepositoryNotFound,
    SluiceError,
)
from ci_platform.identity import Action, authorise
from ci_platform.model import Actor, Json, Push, Repository, RepositoryId
from ci_platform.ports.telling import Notice, NoticeKind, NoticeStore, Posted, Sending, Subscription

SUBSCRIPTIONS_MAX = 50  # of one repository, and of all together
SECRET_MIN = 8
URL_MAX = 2000
REFS_TOLD = 500  # of one push
SPREAD_MAX = 500  # notices in one transaction
AT_ONCE = 8  # sendings of one process
HELD_MS = 120_000  # longer than one may take: then its process has died
RETRY_MS = 10_000  # after the first failure; four times as long after each
TRIES_MAX = 8  # more than ten hours
LOG_MAX = 100
KEPT_MS = 30 * 24 * 3600 * 1000  # how long what was sent is shown
OUTCOME_CHARS = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewSubscription:
    subscription: Subscription
    secret: str  # shown once


@dataclass(frozen=True, slots=True)
class Telling:
    parts: Parts

    # --- subscriptions ----------------------------------------------------------------------------

    def subscribe(
        self,
        actor: Actor,
        of: tuple[str, str] | None,
        *,
        url: str,
        kinds: Sequence[str],
        secret: str | None = None,
    ) -> NewSubscription:
        """Have notices of a repository (owner and name), or of all, sent to an address."""
        repository_id = self._scope(actor, of)
        _check_url(url)
        if secret is not None and len(check_text(secret, field="secret")) < SECRET_MIN:
            raise InvalidRequest(f"secret must have {SECRET_MIN} characters", field="secret")
        store = self._store()
        if len(store.subscriptions(repository_id)) >= SUBSCRIPTIONS_MAX:
            raise InvalidRequest(f"there are {SUBSCRIPTIONS_MAX} subscriptions already")
        chosen = secret or secrets.token_urlsafe(32)
        now_ms = self.parts.clock.now_ms()
        made = Subscription(
            id=new_id("sub", now_ms),
            repository_id=repository_id,
            url=url,
            secret=chosen.encode(),
            kinds=_kinds(kinds),
            created_ms=now_ms,
        )
        store.subscribe(made)
        self.parts.audit(actor, "subscription created", made.id, url=url, kinds=list(made.kinds))
        return NewSubscription(made, chosen)

    def subscriptions(self, actor: Actor, of: tuple[str, str] | None) -> Sequence[Subscription]:
        return self._store().subscriptions(self._scope(actor, of))

    def unsubscribe(self, actor: Actor, of: tuple[str, str] | None, subscription_id: str) -> None:
        """Raises NotFound, also for one of another repository."""
        self._one(actor, of, subscription_id)
        self._store().unsubscribe(subscription_id)
        self.parts.audit(actor, "subscription removed", subscription_id)

    def sendings(
        self, actor: Actor, of: tuple[str, str] | None, subscription_id: str
    ) -> Sequence[Sending]:
        """What was sent to it lately, the newest first. Raises NotFound."""
        self._one(actor, of, subscription_id)
        return self._store().sendings(subscription_id, limit=LOG_MAX)

    def again(
        self, actor: Actor, of: tuple[str, str] | None, subscription_id: str, notice_id: str
    ) -> None:
        """Send one again. Raises NotFound."""
        self._one(actor, of, subscription_id)
        if not self._store().again(subscription_id, notice_id, self.parts.clock.now_ms()):
            raise NotFound("nothing with this id was sent to the subscription lately")
        self.parts.audit(actor, "sent again", subscription_id, notice=notice_id)

    # --- telling ----------------------------------------------------------------------------------

    def pushed(self, push: Push, repository: Repository) -> None:
        """Tell of a push. Safe to call twice: its sendings are known by its id."""
        if self.parts.notices is None:
            return
        refs: list[Json] = [
            {"ref": one.ref, "before": one.before, "after": one.after}
            for one in push.updates[:REFS_TOLD]
        ]
        detail: dict[str, Json] = {
            "pusher": push.actor,
            "refs": refs,
            "refs_total": len(push.updates),
            "options": list(push.options),
        }
        notice = Notice(push.id, NoticeKind.PUSHED, repository.id, push.at_ms, detail)
        self.parts.notices.spread([(notice, _body(notice, repository.full_name))])

    def spread_pending(self) -> int:
        """Turn notices of the outbox into sendings. Returns how many notices that were."""
        if self.parts.notices is None:
            return 0
        pending = self.parts.notices.pending(limit=SPREAD_MAX)
        if pending:
            self.parts.notices.spread([(one, _body(one, self._about(one))) for one in pending])
        return len(pending)

    def deliver_pending(self) -> int:
        """Send what is due. Returns how many that were."""
        store = self.parts.notices
        if store is None or self.parts.post is None:
            return 0
        now_ms = self.parts.clock.now_ms()
        taken = store.take(now_ms, until_ms=now_ms + HELD_MS, limit=AT_ONCE)
        together(self._deliver, taken, name="sending")
        return len(taken)

    def forget(self) -> int:
        """Drop what was sent long ago. Returns how many rows."""
        if self.parts.notices is None:
            return 0
        return self.parts.notices.forget(self.parts.clock.now_ms() - KEPT_MS)

    def _deliver(self, sending: Sending) -> None:
        store = self._store()
        subscription = store.subscription(sending.subscription_id)
        if subscription is None:
            return  # its sendings went with it
        status, due_ms = None, None
        try:
            answer = self._post(subscription, sending)
            status, outcome = answer.status, _told(answer)
            failed = not 200 <= answer.status < 300
        except SluiceError as error:
            outcome, failed = error.detail, True
        except Exception as error:
            # One address that fails in a way nobody thought of must not hold up the others.
            log.exception("sending to %s failed", sending.subscription_id)
            outcome, failed = type(error).__name__, True
        if failed and sending.tries < TRIES_MAX:
            due_ms = self.parts.clock.now_ms() + RETRY_MS * 4 ** (sending.tries - 1)
        elif failed:
            outcome = f"given up: {outcome}"
        store.tried(sending, due_ms=due_ms, status=status, outcome=outcome[:OUTCOME_CHARS])

    def _post(self, subscription: Subscription, sending: Sending) -> Posted:
        assert self.parts.post is not None  # deliver_pending has looked
        signature = hmac.new(subscription.secret, sending.body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "sluice",
            "X-Sluice-Event": str(sending.kind),
            "X-Sluice-Delivery": sending.notice_id,
            "X-Sluice-Attempt": str(sending.tries),
            "X-Sluice-Signature-256": f"sha256={signature}",
        }
        return self.parts.post(subscription.url, headers, sending.body)

    def _about(self, notice: Notice) -> Json:
        """The name of the repository it is about."""
        if notice.repository_id is None or "repository" in notice.detail:
            return notice.detail.get("repository")
        try:
            return self.parts.repositories.by_id(notice.repository_id).full_name
        except RepositoryNotFound:
            return None

    def _scope(self, actor: Actor, of: tuple[str, str] | None) -> RepositoryId | None:
        if of is None:
            authorise(actor, Action.MANAGE_PEOPLE)  # as an admin: it hears of everybody's
            return None
        return self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, *of).id

    def _one(self, actor: Actor, of: tuple[str, str] | None, subscription_id: str) -> Subscription:
        scope = self._scope(actor, of)
        found = self._store().subscription(subscription_id)
        if found is None or found.repository_id != scope:
            raise NotFound("there is no such subscription")
        return found

    def _store(self) -> NoticeStore:
        if self.parts.notices is None:
            raise InternalError("this deployment tells nobody")
        return self.parts.notices


def _body(notice: Notice, repository: Json) -> bytes:
    told = {
        "id": notice.id,
        "event": str(notice.kind),
        "at_ms": notice.at_ms,
        "repository_id": notice.repository_id,
        **notice.detail,
        "repository": repository,
    }
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


def _told(answer: Posted) -> str:
    text = " ".join(answer.text.split())
    return f"HTTP {answer.status}" + (f": {text}" if text else "")


def _kinds(kinds: Sequence[str]) -> tuple[NoticeKind, ...]:
    known = ", ".join(NoticeKind)
    try:
        found = tuple(dict.fromkeys(NoticeKind(kind) for kind in kinds))
    except ValueError:
        raise InvalidRequest(f"events must be of {known}", field="events") from None
    if not found:
        raise InvalidRequest(f"events must name at least one of {known}", field="events")
    return found


def _check_url(url: str) -> None:
    check_text(url, field="url", chars_max=URL_MAX)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or "@" in parts.netloc or not url.isascii() or " " in url:
        raise InvalidRequest(
            "url must be an http or https address, in ASCII and without a user", field="url"
        )
