"""What a delivery of each forge looks like: how it is signed, what it tells of, which refs moved.

Pure functions over headers and JSON. hooks.py, the only caller, keeps deliveries and acts on them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ci_platform.commands.parts import check_text
from ci_platform.errors import InvalidRequest, NotSignedIn
from ci_platform.model import Json, RefUpdate

Headers = Mapping[str, str]  # names in lower case
Payload = Mapping[str, Json]
Moved = tuple[RefUpdate, str]  # and the commit it leads to: a tag's, not the tag

CHANGES_MAX = 100  # refs of one delivery
_SHA = re.compile(r"[0-9a-f]{40}")
_GONE = "0" * 40
_WORD = re.compile(r"[\x21-\x7e]{1,100}")  # a delivery id
_EVENT = re.compile(r"[\x20-\x7e]{1,100}")


class News(StrEnum):
    """What an event is to us."""

    PING = "ping"  # is the webhook there
    PUSH = "push"
    MOVED = "moved"  # refs moved, told in another way: a mirror looks
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Forge:
    check: Callable[[bytes, Headers, bytes], None]  # raises NotSignedIn
    events: Sequence[str]  # the header that names the event; of several, the first that is there
    ids: Sequence[str]  # the header that is the same when a delivery is sent again
    news: Mapping[str, News]
    pushed: Callable[[Payload], Sequence[Moved]]

    def event(self, headers: Headers) -> str:
        """Raises InvalidRequest."""
        return _header(headers, self.events, _EVENT)

    def delivery(self, headers: Headers, body: bytes) -> str:
        """What to know a delivery by; its content where the forge does not number them."""
        if any(name in headers for name in self.ids):
            return _header(headers, self.ids, _WORD)
        return hashlib.sha256(body).hexdigest()


def check_signature(secret: bytes, header: str, body: bytes) -> None:
    """GitHub's: HMAC-SHA256 of the raw body. Raises NotSignedIn unless it is there and right."""
    if not _same("sha256=" + _digest(secret, body), header):
        raise NotSignedIn(
            "X-Hub-Signature-256 is missing, or is not sha256= of this body under the hook's secret"
        )


def _check_github(secret: bytes, headers: Headers, body: bytes) -> None:
    check_signature(secret, headers.get("x-hub-signature-256", ""), body)


def _check_gitlab(secret: bytes, headers: Headers, body: bytes) -> None:
    if not _same(secret.decode(), headers.get("x-gitlab-token", "")):
        raise NotSignedIn("X-Gitlab-Token is missing, or is not the hook's secret")


def _check_gitea(secret: bytes, headers: Headers, body: bytes) -> None:
    given = headers.get("x-forgejo-signature") or headers.get("x-gitea-signature", "")
    if not _same(_digest(secret, body), given):
        raise NotSignedIn(
            "X-Gitea-Signature is missing, or is not of this body under the hook's secret"
        )


def _check_bitbucket(secret: bytes, headers: Headers, body: bytes) -> None:
    if not _same("sha256=" + _digest(secret, body), headers.get("x-hub-signature", "")):
        raise NotSignedIn(
            "X-Hub-Signature is missing, or is not sha256= of this body under the hook's secret"
        )


def _digest(secret: bytes, body: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def _same(wanted: str, given: str) -> bool:
    # Bytes, because compare_digest refuses text that is not ASCII.
    return hmac.compare_digest(wanted.encode(), given.encode("utf-8", "surrogateescape"))


def _pushed(payload: Payload) -> Sequence[Moved]:
    """GitHub's, which Gitea and Forgejo share, and GitLab's, which names the commit apart."""
    ref = _ref(payload.get("ref"))
    before, after = _sha(payload, "before"), _sha(payload, "after")
    head = payload.get("head_commit")
    commit = head.get("id") if isinstance(head, dict) else payload.get("checkout_sha")
    if not isinstance(commit, str) or not _SHA.fullmatch(commit):
        commit = after or _GONE
    return [(RefUpdate(ref, before, after), commit)]


def _pushed_to_bitbucket(payload: Payload) -> Sequence[Moved]:
    """Several refs at once; the cloud's are names and commits, a data center's full refs."""
    push = payload.get("push")
    changes = push.get("changes") if isinstance(push, dict) else payload.get("changes")
    if not isinstance(changes, list) or len(changes) > CHANGES_MAX:
        raise InvalidRequest(f"changes must be a list of at most {CHANGES_MAX}", field="changes")
    return [_change(one) for one in changes]


def _change(change: Json) -> Moved:
    if not isinstance(change, dict):
        raise InvalidRequest("changes must be a list of objects", field="changes")
    ref = change.get("ref")
    if isinstance(ref, dict):
        before, after = _sha(change, "fromHash"), _sha(change, "toHash")
        return RefUpdate(_ref(ref.get("id")), before, after), after or _GONE
    old, new = change.get("old"), change.get("new")
    named = new if isinstance(new, dict) else old
    if not isinstance(named, dict):
        raise InvalidRequest("a change must have an old or a new state", field="changes")
    kind = "tags" if named.get("type") == "tag" else "heads"
    after = _target(new)
    return RefUpdate(_ref(f"refs/{kind}/{named.get('name')}"), _target(old), after), after or _GONE


def _target(state: Json) -> str | None:
    if state is None:
        return None
    target = state.get("target") if isinstance(state, dict) else None
    if not isinstance(target, dict):
        raise InvalidRequest("target must be an object with a hash", field="target")
    return _sha(target, "hash")


def _ref(value: Json) -> str:
    if not isinstance(value, str) or not value.startswith("refs/"):
        raise InvalidRequest("ref must be a full ref name", field="ref")
    check_text(value, field="ref")
    return value


def _sha(payload: Payload, field: str) -> str | None:
    value = payload.get(field)
    if not isinstance(value, str) or not _SHA.fullmatch(value):
        raise InvalidRequest(f"{field} must be a commit id of 40 hex digits", field=field)
    return None if value == _GONE else value


def _header(headers: Headers, names: Sequence[str], shape: re.Pattern[str]) -> str:
    name = next((name for name in names if name in headers), names[0])
    value = headers.get(name, "")
    if not shape.fullmatch(value):
        raise InvalidRequest(f"the header {name} is missing or malformed", field=name)
    return value


def pusher_of(payload: Payload) -> str:
    """Whom a forge says pushed, as text for people."""
    for field, key in (("pusher", "name"), ("pusher", "login"), ("sender", "login")):
        if (said := _said(payload.get(field), key)) is not None:
            return said
    for field, key in (("actor", "display_name"), ("actor", "name")):
        if (said := _said(payload.get(field), key)) is not None:
            return said
    return _said(payload, "user_username") or _said(payload, "user_name") or "webhook"


def _said(values: Json, key: str) -> str | None:
    found = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(found, str):
        return None
    return "".join(char for char in found[:100] if char.isprintable()) or None


_GITHUB_NEWS = {
    "ping": News.PING,
    "push": News.PUSH,
    "create": News.MOVED,
    "delete": News.MOVED,
}
FORGES: Mapping[str, Forge] = {
    "github": Forge(
        _check_github, ["x-github-event"], ["x-github-delivery"], _GITHUB_NEWS, _pushed
    ),
    "gitlab": Forge(
        _check_gitlab,
        ["x-gitlab-event"],
        ["idempotency-key", "x-gitlab-event-uuid"],
        {"Push Hook": News.PUSH, "Tag Push Hook": News.PUSH},
        _pushed,
    ),
    "gitea": Forge(  # and Forgejo
        _check_gitea,
        ["x-forgejo-event", "x-gitea-event"],
        ["x-forgejo-delivery", "x-gitea-delivery"],
        _GITHUB_NEWS,
        _pushed,
    ),
    "bitbucket": Forge(  # the cloud, and data centers
        _check_bitbucket,
        ["x-event-key"],
        ["x-request-uuid", "x-request-id"],
        {
            "repo:push": News.PUSH,
            "repo:refs_changed": News.PUSH,
            "diagnostics:ping": News.PING,
        },
        _pushed_to_bitbucket,
    ),
}
