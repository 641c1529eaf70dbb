"""What happens is told to those who subscribed: signed, once each, again until they answer."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ci_platform.identity import Scope
from ci_platform.model import SYSTEM, Role
from tests.integration.api.front import PUSHED, Front

pytestmark = pytest.mark.anyio
HERE = "/api/v1/repos/acme/widget"
SECRET = "It's a Secret to Everybody"


class Ear(ThreadingHTTPServer):
    """A server that hears what it is told, and answers what a test wants."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?x=1"

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.heard]


class _Handler(BaseHTTPRequestHandler):
    server: Ear

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("location", self.server.url)
        self.end_headers()
        self.wfile.write(b"thanks \xff\n" * 1000)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def ear() -> Iterator[Ear]:
    server = Ear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    made = Front(tmp_path, private_remotes=True)
    yield made
    made.close()


def subscribe(front: Front, ear: Ear, *kinds: str, to_all: bool = False) -> str:
    of = None if to_all else ("acme", "widget")
    made = front.commands.telling.subscribe(SYSTEM, of, url=ear.url, kinds=kinds, secret=SECRET)
    return made.subscription.id


def test_a_push_is_told_signed_and_once(front: Front, ear: Ear) -> None:
    repository = front.repository()
    subscribe(front, ear, "pushed", "pushed")
    front.clock.advance(1)
    commit = front.push(repository, {"a": "1"})
    assert front.errands.tell_once() > 0
    ((headers, body),) = ear.heard
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert headers["x-sluice-signature-256"] == f"sha256={signature}"
    assert headers["x-sluice-event"] == "pushed" and headers["x-sluice-attempt"] == "1"
    told = json.loads(body)
    assert told["id"] == headers["x-sluice-delivery"] and told["repository"] == "acme/widget"
    (moved,) = told["refs"]
    assert (moved["ref"], moved["after"]) == ("refs/heads/main", commit)
    # The same push told again, as after a crash between its runs and its mark, says nothing new.
    front.git.pushes._marks.flush()
    with front.store.engine.begin() as connection:
        last = "(SELECT max(id) FROM git_push_events)"
        connection.exec_driver_sql(
            f"UPDATE git_push_events SET handled_ms = NULL WHERE id = {last}"
        )
    assert front.commands.pushes.dispatch_pending() > 0
    front.errands.tell_once()
    assert len(ear.heard) == 1


def test_each_kind_of_event_reaches_whom_it_concerns(front: Front, ear: Ear) -> None:
    front.repository()
    subscribe(front, ear, "forked", "imported", "deleted", "token_created", "token_revoked")
    repositories = front.commands.repositories
    repositories.fork(SYSTEM, "acme", "widget", into_owner="acme", into_name="copy")
    bound = front.commands.people.create_token(
        SYSTEM, "ci", ["repo:read"], repository="acme/widget"
    )
    front.commands.people.create_token(SYSTEM, "other", ["repo:read"])
    front.commands.people.revoke_token(SYSTEM, bound.token.id)
    for run in front.runs(front.parts.repositories.get("acme", "widget")):
        front.commands.runs.cancel(SYSTEM, run.id)
    front.errands.tell_once()
    repositories.delete(SYSTEM, "acme", "widget")
    while front.errands.tell_once():
        pass
    told = ear.events()
    assert sorted(one["event"] for one in told) == [
        "deleted",
        "forked",
        "token_created",
        "token_revoked",
    ]
    assert {one["repository"] for one in told} == {"acme/widget"}, told
    (forked,) = [one for one in told if one["event"] == "forked"]
    assert forked["fork"]["full_name"] == "acme/copy"
    assert bound.secret not in json.dumps(told)


def test_an_admin_hears_of_all_repositories(front: Front, ear: Ear, tmp_path: Path) -> None:
    subscribe(front, ear, "created", "pushed", "token_created", to_all=True)
    front.repository()
    front.token()
    while front.errands.tell_once():
        pass
    told = {one["event"]: one for one in ear.events()}
    assert told.keys() == {"created", "pushed", "token_created"}
    assert told["created"]["repository"] == "acme/widget"
    assert told["token_created"]["repository"] is None


async def test_one_that_fails_is_tried_again_then_given_up_and_may_be_sent_again(
    front: Front, ear: Ear
) -> None:
    repository = front.repository()
    subscription = subscribe(front, ear, "pushed")
    front.push(repository, {"a": "1"})
    ear.status = 500
    front.errands.tell_once()
    front.errands.tell_once()
    assert len(ear.heard) == 1, "not before its time"
    waits = []
    for _ in range(20):
        (sent,) = front.commands.telling.sendings(SYSTEM, ("acme", "widget"), subscription)
        if sent.due_ms is None:
            break
        waits.append(sent.due_ms - front.clock.at_ms)
        front.clock.at_ms = sent.due_ms
        front.errands.tell_once()
    assert len(ear.heard) == 8 and waits == [10_000 * 4**n for n in range(7)]
    async with front.client(front.token()) as client:
        log = f"{HERE}/subscriptions/{subscription}/deliveries"
        (shown,) = (await client.get(log)).json()["deliveries"]
        assert (shown["state"], shown["tries"], shown["status"]) == ("failed", 8, 500)
        assert shown["outcome"].startswith("given up: HTTP 500: thanks")
        ear.status = 204
        again = await client.post(f"{log}/{shown['id']}/again")
        assert again.status_code == 202 and again.json()["deliveries"][0]["state"] == "waiting"
        front.errands.tell_once()
        (shown,) = (await client.get(log)).json()["deliveries"]
        assert (shown["state"], shown["status"]) == ("delivered", 204)
        assert (await client.post(f"{log}/push_x/again")).status_code == 404
    assert len(ear.heard) == 9


def test_a_redirect_is_not_followed(front: Front, ear: Ear) -> None:
    repository = front.repository()
    subscription = subscribe(front, ear, "pushed")
    front.push(repository, {"a": "1"})
    ear.status = 302
    front.errands.tell_once()
    (sent,) = front.commands.telling.sendings(SYSTEM, ("acme", "widget"), subscription)
    assert len(ear.heard) == 1 and sent.due_ms is not None and sent.status == 302


def test_an_address_of_this_machine_is_told_nothing_unless_allowed(
    tmp_path: Path, ear: Ear
) -> None:
    (tmp_path / "here").mkdir()
    front = Front(tmp_path / "here", private_remotes=False)
    repository = front.repository()
    subscription = subscribe(front, ear, "pushed")
    front.push(repository, {"a": "1"})
    front.errands.tell_once()
    (sent,) = front.commands.telling.sendings(SYSTEM, ("acme", "widget"), subscription)
    assert "not a public address" in (sent.outcome or "") and ear.heard == []
    front.close()


def test_one_server_that_hangs_up_holds_up_no_other(front: Front, ear: Ear) -> None:
    repository = front.repository()
    dead = front.commands.telling.subscribe(
        SYSTEM, ("acme", "widget"), url="http://127.0.0.1:1/x", kinds=["pushed"]
    )
    subscribe(front, ear, "pushed")
    front.push(repository, {"a": "1"})
    front.errands.tell_once()
    assert len(ear.heard) == 1
    of = ("acme", "widget")
    (sent,) = front.commands.telling.sendings(SYSTEM, of, dead.subscription.id)
    assert sent.due_ms is not None and "cannot be reached" in (sent.outcome or "")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "ftp://example.org", "events": ["pushed"]}, "url"),
        ({"url": "http://u:p@example.org", "events": ["pushed"]}, "url"),
        ({"url": "https://example.org/" + "x" * 2000, "events": ["pushed"]}, "url"),
        ({"url": "https://example.org/ü", "events": ["pushed"]}, "url"),
        ({"url": "https://example.org", "events": []}, "events"),
        ({"url": "https://example.org", "events": ["nonsense"]}, "events"),
        ({"url": "https://example.org", "events": ["pushed"], "secret": "short"}, "secret"),
    ],
)
async def test_a_bad_subscription_is_refused_by_its_field(
    front: Front, body: dict[str, Any], field: str
) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(f"{HERE}/subscriptions", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, field) or (
            answer.status_code == 400 and answer.json()["field"] == field
        ), answer.text


async def test_only_who_configures_a_repository_sees_its_subscriptions(
    front: Front, ear: Ear
) -> None:
    repository = front.repository()
    subscription = subscribe(front, ear, "pushed")
    everywhere = subscribe(front, ear, "pushed", to_all=True)
    writer = front.user("wendy")
    front.role(writer, repository, Role.WRITER)
    async with front.client(front.token(writer, Scope.ADMIN)) as client:
        body = {"url": "https://example.org", "events": ["pushed"]}
        assert (await client.post(f"{HERE}/subscriptions", json=body)).status_code == 403
        assert (await client.get(f"{HERE}/subscriptions")).status_code == 403
        assert (await client.get("/api/v1/subscriptions")).status_code == 403
    async with front.client(front.token()) as client:
        (shown,) = (await client.get(f"{HERE}/subscriptions")).json()["subscriptions"]
        assert shown["id"] == subscription and "secret" not in shown
        wrong = f"{HERE}/subscriptions/{everywhere}"
        assert (await client.delete(wrong)).status_code == 404, "it is not this repository's"
        assert (await client.delete(f"{HERE}/subscriptions/{subscription}")).status_code == 204
        assert (await client.get(f"{HERE}/subscriptions")).json()["subscriptions"] == []


def test_an_event_told_to_nobody_leaves_the_outbox(front: Front) -> None:
    front.repository(pipeline=PUSHED)
    assert len(front.store.notices.pending()) == 1
    front.errands.tell_once()
    assert front.store.notices.pending() == []
