"""Routes of what other servers are asked and told: mirrors, and subscriptions to what happens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from ci_platform.api.answers import Answer, iso
from ci_platform.api.desk import Caller, From
from ci_platform.api.git import credentials_of
from ci_platform.api.requests import Body
from ci_platform.ports.mirroring import Mirror
from ci_platform.ports.telling import Sending, Subscription

router = APIRouter(tags=["repositories"])
_REPO = "/repos/{owner}/{name}"


class NewMirror(Body):
    """Credentials come apart from the url, and are shown nowhere."""

    url: str
    username: str | None = None
    password: str | None = None
    every_seconds: int | None = 3600  # null: only when it is pinged
    overwrite: bool = False


class NewSubscriptionBody(Body):
    url: str
    events: Annotated[list[str], Field(max_length=100)]
    secret: str | None = None


class MirrorAnswer(Answer):
    url: str
    username: str | None
    has_password: bool
    every_seconds: int | None
    next_at: str | None  # when it is looked at next
    failures: int  # since it last worked
    checked_at: str | None
    synced_at: str | None  # when it last worked
    outcome: str | None  # of the last look

    @classmethod
    def of(cls, mirror: Mirror) -> MirrorAnswer:
        return cls(
            url=mirror.url,
            username=mirror.username,
            has_password=mirror.password is not None,
            every_seconds=None if mirror.every_ms is None else mirror.every_ms // 1000,
            next_at=_iso(mirror.next_ms),
            failures=mirror.tries,
            checked_at=_iso(mirror.checked_ms),
            synced_at=_iso(mirror.synced_ms),
            outcome=mirror.outcome,
        )


class SubscriptionAnswer(Answer):
    id: str
    url: str
    events: list[str]
    created_at: str

    @classmethod
    def of(cls, subscription: Subscription) -> SubscriptionAnswer:
        return cls(
            id=subscription.id,
            url=subscription.url,
            events=[str(kind) for kind in subscription.kinds],
            created_at=iso(subscription.created_ms),
        )


class NewSubscriptionAnswer(SubscriptionAnswer):
    secret: str  # shown this once


class SubscriptionList(Answer):
    subscriptions: list[SubscriptionAnswer]


class SendingAnswer(Answer):
    id: str
    event: str
    state: str  # waiting, delivered, failed
    tries: int
    status: int | None
    outcome: str | None
    created_at: str
    next_at: str | None

    @classmethod
    def of(cls, sending: Sending) -> SendingAnswer:
        good = sending.status is not None and 200 <= sending.status < 300
        ended = "delivered" if good else "failed"
        return cls(
            id=sending.notice_id,
            event=str(sending.kind),
            state="waiting" if sending.due_ms is not None else ended,
            tries=sending.tries,
            status=sending.status,
            outcome=sending.outcome,
            created_at=iso(sending.created_ms),
            next_at=_iso(sending.due_ms),
        )


class SendingList(Answer):
    deliveries: list[SendingAnswer]


# --- mirrors --------------------------------------------------------------------------------------


@router.post(_REPO + "/mirror", status_code=201)
def put_mirror(caller: From, owner: str, name: str, body: NewMirror) -> MirrorAnswer:
    """Make a repository follow a remote; one that is not there is made."""
    made = caller.desk.commands.mirrors.put(
        caller.actor(),
        owner,
        name,
        url=body.url,
        credentials=credentials_of(body.username, body.password),
        every_seconds=body.every_seconds,
        overwrite=body.overwrite,
    )
    return MirrorAnswer.of(made)


@router.get(_REPO + "/mirror")
def get_mirror(caller: From, owner: str, name: str) -> MirrorAnswer:
    return MirrorAnswer.of(caller.desk.commands.mirrors.get(caller.actor(), owner, name))


@router.delete(_REPO + "/mirror", status_code=204)
def remove_mirror(caller: From, owner: str, name: str) -> None:
    """It follows no more, and may be pushed to."""
    caller.desk.commands.mirrors.remove(caller.actor(), owner, name)


@router.post(_REPO + "/mirror/sync", status_code=202)
def sync_mirror(caller: From, owner: str, name: str) -> MirrorAnswer:
    """Look at the remote now, not when it is due: for whoever knows that it has changed."""
    return MirrorAnswer.of(caller.desk.commands.mirrors.sync(caller.actor(), owner, name))


# --- subscriptions --------------------------------------------------------------------------------


@router.post(_REPO + "/subscriptions", status_code=201)
def subscribe(
    caller: From, owner: str, name: str, body: NewSubscriptionBody
) -> NewSubscriptionAnswer:
    """Have what happens to a repository sent to an address, signed with the secret."""
    return _subscribed(caller, (owner, name), body)


@router.get(_REPO + "/subscriptions")
def list_subscriptions(caller: From, owner: str, name: str) -> SubscriptionList:
    return _listed(caller, (owner, name))


@router.delete(_REPO + "/subscriptions/{subscription_id}", status_code=204)
def unsubscribe(caller: From, owner: str, name: str, subscription_id: str) -> None:
    caller.desk.commands.telling.unsubscribe(caller.actor(), (owner, name), subscription_id)


@router.get(_REPO + "/subscriptions/{subscription_id}/deliveries")
def list_deliveries(caller: From, owner: str, name: str, subscription_id: str) -> SendingList:
    """What was sent to it lately, the newest first."""
    return _sent(caller, (owner, name), subscription_id)


@router.post(
    _REPO + "/subscriptions/{subscription_id}/deliveries/{delivery_id}/again", status_code=202
)
def send_again(
    caller: From, owner: str, name: str, subscription_id: str, delivery_id: str
) -> SendingList:
    of = (owner, name)
    caller.desk.commands.telling.again(caller.actor(), of, subscription_id, delivery_id)
    return _sent(caller, of, subscription_id)


@router.post("/subscriptions", status_code=201)
def subscribe_to_all(caller: From, body: NewSubscriptionBody) -> NewSubscriptionAnswer:
    """The same for all repositories, their creation, and tokens for more than one: for admins."""
    return _subscribed(caller, None, body)


@router.get("/subscriptions")
def list_subscriptions_to_all(caller: From) -> SubscriptionList:
    return _listed(caller, None)


@router.delete("/subscriptions/{subscription_id}", status_code=204)
def unsubscribe_from_all(caller: From, subscription_id: str) -> None:
    caller.desk.commands.telling.unsubscribe(caller.actor(), None, subscription_id)


@router.get("/subscriptions/{subscription_id}/deliveries")
def list_deliveries_of_all(caller: From, subscription_id: str) -> SendingList:
    return _sent(caller, None, subscription_id)


@router.post("/subscriptions/{subscription_id}/deliveries/{delivery_id}/again", status_code=202)
def send_again_of_all(caller: From, subscription_id: str, delivery_id: str) -> SendingList:
    caller.desk.commands.telling.again(caller.actor(), None, subscription_id, delivery_id)
    return _sent(caller, None, subscription_id)


def _subscribed(
    caller: Caller, of: tuple[str, str] | None, body: NewSubscriptionBody
) -> NewSubscriptionAnswer:
    made = caller.desk.commands.telling.subscribe(
        caller.actor(), of, url=body.url, kinds=body.events, secret=body.secret
    )
    shown = SubscriptionAnswer.of(made.subscription)
    return NewSubscriptionAnswer(**dict(shown), secret=made.secret)


def _listed(caller: Caller, of: tuple[str, str] | None) -> SubscriptionList:
    found = caller.desk.commands.telling.subscriptions(caller.actor(), of)
    return SubscriptionList(subscriptions=[SubscriptionAnswer.of(one) for one in found])


def _sent(caller: Caller, of: tuple[str, str] | None, subscription_id: str) -> SendingList:
    found = caller.desk.commands.telling.sendings(caller.actor(), of, subscription_id)
    return SendingList(deliveries=[SendingAnswer.of(one) for one in found])


def _iso(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)
