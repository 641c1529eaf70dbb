"""Deliveries as each forge sends them: signatures, events, numbers, and the refs that moved."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from ci_platform.commands.forges import CHANGES_MAX, FORGES, News, pusher_of
from ci_platform.errors import InvalidRequest, NotSignedIn
from ci_platform.model import Json, RefUpdate

SECRET = b"a secret word"
BODY = b'{"a": 1}'
DIGEST = hmac.new(SECRET, BODY, hashlib.sha256).hexdigest()
A, B, GONE = "a" * 40, "b" * 40, "0" * 40
SIGNED = {
    "github": {"x-hub-signature-256": f"sha256={DIGEST}"},
    "gitlab": {"x-gitlab-token": SECRET.decode()},
    "gitea": {"x-gitea-signature": DIGEST},
    "bitbucket": {"x-hub-signature": f"sha256={DIGEST}"},
}


@pytest.mark.parametrize("name", FORGES)
def test_only_what_is_signed_in_the_way_of_the_forge_is_taken(name: str) -> None:
    forge, (header, value) = FORGES[name], *SIGNED[name].items()
    forge.check(SECRET, {header: value}, BODY)
    wrong = [{}, {header: ""}, {header: value[:-1]}, {header: value + "x"}, {header: "\udcff\xfc"}]
    wrong += [given for other, given in SIGNED.items() if other != name]
    for given in wrong:
        with pytest.raises(NotSignedIn):
            forge.check(SECRET, given, BODY)
    with pytest.raises(NotSignedIn):
        forge.check(b"another secret", {header: value}, BODY)
    if name != "gitlab":  # its token says nothing of the body
        with pytest.raises(NotSignedIn):
            forge.check(SECRET, {header: value}, BODY + b" ")


def test_forgejo_signs_as_gitea_does_under_its_own_name() -> None:
    forge = FORGES["gitea"]
    forge.check(SECRET, {"x-forgejo-signature": DIGEST}, BODY)
    headers = {"x-forgejo-event": "push", "x-forgejo-delivery": "7", "x-gitea-event": "push"}
    assert (forge.event(headers), forge.delivery(headers, BODY)) == ("push", "7")


@pytest.mark.parametrize(
    ("name", "event", "news"),
    [
        ("github", "ping", News.PING),
        ("github", "delete", News.MOVED),
        ("github", "issues", None),
        ("gitlab", "Push Hook", News.PUSH),
        ("gitlab", "Tag Push Hook", News.PUSH),
        ("gitlab", "Note Hook", None),
        ("gitea", "push", News.PUSH),
        ("bitbucket", "repo:push", News.PUSH),
        ("bitbucket", "repo:refs_changed", News.PUSH),
        ("bitbucket", "diagnostics:ping", News.PING),
    ],
)
def test_events_have_the_names_their_forges_give_them(
    name: str, event: str, news: News | None
) -> None:
    forge = FORGES[name]
    assert forge.event({forge.events[-1]: event}) == event
    assert forge.news.get(event) is news


@pytest.mark.parametrize("name", FORGES)
@pytest.mark.parametrize("event", ["", "a\nb", "x" * 101, "\xfc"])
def test_an_event_that_is_none_is_refused_by_its_header(name: str, event: str) -> None:
    with pytest.raises(InvalidRequest, match="missing or malformed"):
        FORGES[name].event({FORGES[name].events[0]: event})


def test_a_delivery_without_a_number_is_known_by_its_content() -> None:
    forge = FORGES["gitlab"]
    numbers = {"idempotency-key": "1", "x-gitlab-event-uuid": "2"}
    assert forge.delivery(numbers, BODY) == "1"
    assert forge.delivery({"x-gitlab-event-uuid": "2"}, BODY) == "2"
    assert forge.delivery({}, BODY) == forge.delivery({}, BODY) != forge.delivery({}, b"{}")


def test_a_push_of_gitlab_names_the_commit_of_a_tag_apart() -> None:
    push: dict[str, Json] = {"ref": "refs/tags/v1", "before": GONE, "after": A, "checkout_sha": B}
    assert FORGES["gitlab"].pushed(push) == [(RefUpdate("refs/tags/v1", None, A), B)]
    gone: dict[str, Json] = {
        "ref": "refs/heads/x",
        "before": A,
        "after": GONE,
        "checkout_sha": None,
    }
    ((update, _),) = FORGES["gitlab"].pushed(gone)
    assert update.after is None
    assert pusher_of({"user_name": "Ana B", "user_username": "ana"}) == "ana"


def test_a_push_of_bitbucket_moves_several_refs() -> None:
    branch = {"type": "branch", "name": "main", "target": {"hash": B}}
    old = {"type": "branch", "name": "main", "target": {"hash": A}}
    tag = {"type": "tag", "name": "v1", "target": {"hash": B}}
    cloud: Json = {
        "push": {"changes": [{"old": old, "new": branch}, {"old": tag, "new": None}]},
        "actor": {"display_name": "Ana"},
    }
    assert FORGES["bitbucket"].pushed(cloud) == [
        (RefUpdate("refs/heads/main", A, B), B),
        (RefUpdate("refs/tags/v1", B, None), GONE),
    ]
    assert pusher_of(cloud) == "Ana"
    change = {"ref": {"id": "refs/heads/x"}, "fromHash": GONE, "toHash": A, "type": "ADD"}
    found = FORGES["bitbucket"].pushed({"changes": [change]})
    assert found == [(RefUpdate("refs/heads/x", None, A), A)]


HOSTILE: list[tuple[str, Json]] = [
    ("github", {"ref": "main", "before": A, "after": B}),
    ("github", {"ref": "refs/heads/a\0", "before": A, "after": B}),
    ("gitlab", {"ref": "refs/heads/a", "before": "-x", "after": B}),
    ("gitea", {"ref": 7}),
    ("bitbucket", {}),
    ("bitbucket", {"push": {"changes": {}}}),
    ("bitbucket", {"changes": [7]}),
    ("bitbucket", {"changes": [{}] * (CHANGES_MAX + 1)}),
    ("bitbucket", {"changes": [{"new": {"type": "branch", "name": "x"}, "old": None}]}),
    ("bitbucket", {"changes": [{"new": {"name": "x", "target": {"hash": "--x"}}, "old": None}]}),
    ("bitbucket", {"changes": [{"new": None, "old": None}]}),
    ("bitbucket", {"changes": [{"ref": {"id": "x"}, "fromHash": A, "toHash": B}]}),
]


@pytest.mark.parametrize(("name", "payload"), HOSTILE)
def test_what_is_no_push_is_refused(name: str, payload: Json) -> None:
    with pytest.raises(InvalidRequest):
        FORGES[name].pushed(payload)


def test_a_name_is_text_however_it_is_sent() -> None:
    for strange in ({}, {"pusher": 7}, {"pusher": {"name": ""}}, {"user_name": ["x"]}):
        assert pusher_of(json.loads(json.dumps(strange))) == "webhook"
    assert pusher_of({"pusher": {"login": "a\x1b[2Jb" + "c" * 200}}).startswith("a[2Jbc")
