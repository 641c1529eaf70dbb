"""People, tokens and the instance over HTTP; and the first admin's link."""

from __future__ import annotations

import pytest

from ci_platform.errors import NotFound, NotSignedIn, TooMany
from ci_platform.identity import Scope
from ci_platform.model import SYSTEM, Json, WorkerId
from ci_platform.ports.housekeeping import WorkerRecord
from tests.integration.api.front import PASSWORD, Front

pytestmark = pytest.mark.anyio
TOKENS = "/api/v1/tokens"
USERS = "/api/v1/users"
WORKERS = "/api/v1/system/workers"


async def test_a_token_is_shown_once_and_works_until_it_is_revoked(front: Front) -> None:
    ada = front.user("ada")
    async with front.client(front.token(ada)) as client:
        answer = await client.post(TOKENS, json={"name": "laptop", "scopes": ["repo:read"]})
        assert answer.status_code == 201
        made = answer.json()
        assert made["secret"].startswith("slu_")
        listed = (await client.get(TOKENS)).json()["tokens"]
        assert made["id"] in {one["id"] for one in listed}
        assert not any("secret" in one for one in listed)
        async with front.client(made["secret"]) as laptop:
            whoami = (await laptop.get("/api/v1/whoami")).json()
            assert (whoami["name"], whoami["scopes"]) == ("ada", ["repo:read"])
            assert (await laptop.post(TOKENS, json={"name": "x", "scopes": ["run"]})).is_error
            assert (await client.delete(f"{TOKENS}/{made['id']}")).status_code == 204
            assert (await laptop.get("/api/v1/whoami")).status_code == 401
        assert (await client.delete(f"{TOKENS}/{made['id']}")).status_code == 404


async def test_a_token_expires(front: Front) -> None:
    ada = front.user("ada")
    async with front.client(front.token(ada)) as client:
        body = {"name": "x", "scopes": ["run"], "days": 1}
        secret = (await client.post(TOKENS, json=body)).json()["secret"]
    front.clock.advance(24 * 3600 - 1)
    assert front.identity.of_token(secret).name == "ada"
    front.clock.advance(1)
    with pytest.raises(NotSignedIn):
        front.identity.of_token(secret)


async def test_nobody_revokes_the_token_of_somebody_else(front: Front) -> None:
    secret = front.token(front.user("ada"))
    ada = front.identity.of_token(secret)
    async with front.client(front.token(front.user("bob"))) as bob:
        assert (await bob.delete(f"{TOKENS}/{ada.token_id}")).status_code == 404
    assert front.identity.of_token(secret).name == "ada"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "", "scopes": ["run"]}, "name"),
        ({"name": "x" * 101, "scopes": ["run"]}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": "run"}, "scopes"),
        ({"name": "x", "scopes": ["run"], "days": 0}, "days"),
        ({"name": "x", "scopes": ["run"], "days": 4000}, "days"),
        ({"name": "x", "scopes": ["run"], "days": 1.5}, "days"),
        ({"name": "x", "scopes": ["run"], "repository": "acme"}, "repository"),
        ({"name": "x", "scopes": ["run"], "ttl": 1}, "ttl"),
    ],
)
async def test_a_bad_token_is_refused_by_its_field(front: Front, body: Json, field: str) -> None:
    async with front.client(front.token(front.user("ada"))) as client:
        answer = await client.post(TOKENS, json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text


async def test_a_token_is_made_for_oneself_only(front: Front) -> None:
    front.user("bob")
    async with front.client(front.token(front.user("ada", admin=True))) as client:
        body = {"name": "x", "scopes": ["run"], "user": "bob"}
        assert (await client.post(TOKENS, json=body)).status_code == 403
    async with front.client(front.token()) as nobody:
        assert (await nobody.post(TOKENS, json={"name": "x", "scopes": ["run"]})).is_error
    async with front.client(acting_as=SYSTEM) as console:
        assert (await console.post(TOKENS, json=body)).json()["user_id"] is not None
        body = {"name": "x", "scopes": ["run"]}
        assert (await console.post(TOKENS, json=body)).json()["user_id"] is None


async def test_users_are_made_by_admins(front: Front) -> None:
    async with front.client(front.token(front.user("root", admin=True))) as client:
        body = {"name": "ada", "password": PASSWORD}
        assert (await client.post(USERS, json=body)).status_code == 201
        assert (await client.post(USERS, json=body)).status_code == 409
        names = {one["name"] for one in (await client.get(USERS)).json()["users"]}
        assert names == {"root", "ada"}
        new = {"password": "another horse"}
        assert (await client.put(USERS + "/ada/password", json=new)).status_code == 204
        assert (await client.put(USERS + "/bob/password", json=new)).status_code == 404
    assert front.identity.sign_in("ada", "another horse")
    async with front.client(front.token(front.user("eve"))) as eve:
        assert (await eve.post(USERS, json={"name": "x"})).status_code == 403
        assert (await eve.get(USERS)).status_code == 403
        assert (await eve.put(USERS + "/ada/password", json=new)).status_code == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "a", "password": "short"}, "password"),
        ({"name": "a", "password": "x" * 257}, "password"),
        ({"name": "a", "admin": "yes"}, "admin"),
    ],
)
async def test_a_bad_user_is_refused_by_its_field(front: Front, body: Json, field: str) -> None:
    async with front.client(front.token()) as client:
        answer = await client.post(USERS, json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text


async def test_the_system_says_how_many_runs_wait(front: Front) -> None:
    run = front.runs(front.repository())[0]
    async with front.client(front.token()) as client:
        assert (await client.get("/api/v1/system")).json()["due"] == 1
        front.approval(run.id)
        system = (await client.get("/api/v1/system")).json()
        assert system["runs"]["waiting"] == 1
        assert (system["due"], system["approvals_open"]) == (0, 1)


async def test_everything_a_token_changes_is_audited(front: Front) -> None:
    front.repository()
    ada = front.user("ada", admin=True)
    async with front.client(front.token(ada)) as client:
        run = (await client.post("/api/v1/repos/acme/widget/runs")).json()
        await client.post(f"/api/v1/runs/{run['id']}/pause")
        await client.post(f"/api/v1/runs/{run['id']}/pause")
        await client.post(f"/api/v1/runs/{run['id']}/cancel")
        entries = (await client.get("/api/v1/audit")).json()["entries"]
    mine = [entry["action"] for entry in entries if entry["actor"] == "ada"]
    assert mine == ["run cancelled", "run paused", "run started"]
    assert entries[0]["detail"]["token"].startswith("tok_")


# --- signing in -----------------------------------------------------------------------------------


def test_the_link_makes_the_first_admin_once(front: Front) -> None:
    secret = front.identity.setup_link()
    assert secret is not None
    people = front.commands.people
    with pytest.raises(NotFound):
        people.set_up("slu_other", "ada", PASSWORD)
    user = people.set_up(secret, "ada", PASSWORD)
    assert user.admin
    with pytest.raises(NotFound):
        people.set_up(secret, "bob", PASSWORD)
    assert front.identity.setup_link() is None


def test_a_bad_name_does_not_use_the_link_up(front: Front) -> None:
    secret = front.identity.setup_link() or ""
    with pytest.raises(Exception, match="user name"):
        front.commands.people.set_up(secret, "a b", PASSWORD)
    assert front.commands.people.set_up(secret, "ada", PASSWORD).admin


def test_the_link_is_over_after_a_day(front: Front) -> None:
    secret = front.identity.setup_link() or ""
    front.clock.advance(25 * 3600)
    with pytest.raises(NotFound):
        front.commands.people.set_up(secret, "ada", PASSWORD)


def test_a_password_opens_a_session_of_its_user(front: Front) -> None:
    front.commands.people.create_user(SYSTEM, "ada", PASSWORD)
    session, cookie = front.identity.sign_in("ada", PASSWORD)
    actor = front.identity.of_cookie(cookie)
    assert (actor.kind, actor.name, actor.id) == ("user", "ada", session.user_id)
    for name, password in [("ada", "wrong horse"), ("bob", PASSWORD), ("ada", "x" * 300)]:
        with pytest.raises(NotSignedIn):
            front.identity.sign_in(name, password)


def test_password_tries_are_limited_per_name_and_come_back(front: Front) -> None:
    front.commands.people.create_user(SYSTEM, "ada", PASSWORD)
    front.commands.people.create_user(SYSTEM, "bob", PASSWORD)
    for _ in range(10):
        with pytest.raises(NotSignedIn):
            front.identity.sign_in("ada", "wrong horse")
    with pytest.raises(TooMany, match="try again in 900 s"):
        front.identity.sign_in("ada", PASSWORD)
    assert front.identity.sign_in("bob", PASSWORD)
    front.clock.advance(15 * 60)
    assert front.identity.sign_in("ada", PASSWORD)


def test_a_user_without_a_password_cannot_sign_in_with_one(front: Front) -> None:
    front.user("ada")
    with pytest.raises(NotSignedIn):
        front.identity.sign_in("ada", "")


def test_git_takes_a_token_as_password(front: Front) -> None:
    secret = front.token(front.user("ada"), Scope.WRITE)
    assert front.identity.of_git("anything", secret).name == "ada"
    with pytest.raises(NotSignedIn):
        front.identity.of_git("ada", PASSWORD)


async def test_an_admin_lets_a_worker_drain_by_its_name_or_the_end_of_it(front: Front) -> None:
    now_ms = front.clock.now_ms()
    for worker in ("a:1:w1", "b:2:w1", "b:2:w2"):
        record = WorkerRecord(WorkerId(worker), worker[0], 1, now_ms, now_ms, 10_000, capacity=2)
        front.store.workers.beat(record)
    async with front.client(front.token(front.user("ada"))) as client:
        assert (await client.post(f"{WORKERS}/w2/drain")).status_code == 403
    async with front.client(front.token(front.user("root", admin=True))) as client:
        answer = await client.post(f"{WORKERS}/w2/drain")
        assert (answer.status_code, answer.json()) == (202, {"worker": "b:2:w2"})
        assert (await client.post(f"{WORKERS}/a:1:w1/drain")).status_code == 202
        both = await client.post(f"{WORKERS}/w1/drain")
        assert both.status_code == 400 and "a:1:w1, b:2:w1" in both.json()["detail"]
        assert (await client.post(f"{WORKERS}/w/drain")).status_code == 404
        shown = (await client.get("/api/v1/system")).json()["workers"]
        assert [one["draining"] for one in shown] == [True, False, True]
        assert shown[0]["capacity"] == 2
    drained = [
        one["subject"] for one in front.store.audit.list() if one["action"] == "worker drained"
    ]
    assert sorted(drained) == ["a:1:w1", "b:2:w2"]
