"""People, tokens, links, webhooks, descriptions, the audit log: the same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ci_platform.errors import Conflict, HookNotFound, InvalidRequest
from ci_platform.model import (
    Description,
    ErrorInfo,
    PipelineDescription,
    RepositoryId,
    Resume,
    Role,
    Trigger,
    UserId,
)
from ci_platform.ports import Store
from ci_platform.ports.hooks import Delivery, Hook
from ci_platform.ports.identity import Token
from tests.contract.store_values import REPO, FakeClock

HOOK = Hook("hook_1", REPO, "github", b"\x00secret\xff", "https://example.org/x.git", 5)


def token(name: str = "ci", user_id: UserId | None = None) -> Token:
    scopes = frozenset({"run", "repo:read"})
    return Token(f"tok_{name}", name, user_id, scopes, REPO, 5, 99, None)


def test_a_user_is_found_by_id_and_by_name(store: Store, clock: FakeClock) -> None:
    ann = store.identity.create_user("ann", "hash", admin=True)
    bob = store.identity.create_user("bob", None, admin=False)
    assert ann.id.startswith("usr_") and ann.created_ms == clock.now_ms()
    assert store.identity.user(ann.id) == ann
    assert store.identity.user_by_name("ann") == (ann, "hash")
    assert store.identity.user_by_name("bob") == (bob, None)
    assert store.identity.user_by_name("Ann") is None
    assert store.identity.user(UserId("usr_none")) is None
    assert {user.name for user in store.identity.users()} == {"ann", "bob"}


def test_a_taken_name_is_refused(store: Store) -> None:
    store.identity.create_user("ann", None, admin=False)
    with pytest.raises(Conflict, match="'ann'"):
        store.identity.create_user("ann", None, admin=True)


def test_of_many_who_take_a_name_one_gets_it(store: Store) -> None:
    def create(_: int) -> bool:
        try:
            store.identity.create_user("ann", None, admin=False)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(create, range(6))) == 1


def test_a_password_is_replaced(store: Store) -> None:
    ann = store.identity.create_user("ann", "old", admin=False)
    store.identity.set_password(ann.id, "new")
    assert store.identity.user_by_name("ann") == (ann, "new")


def test_roles_are_set_changed_and_removed(store: Store) -> None:
    ann = store.identity.create_user("ann", None, admin=False)
    other = RepositoryId("repo_b")
    store.identity.set_role(ann.id, REPO, Role.READER)
    store.identity.set_role(ann.id, REPO, Role.MAINTAINER)
    store.identity.set_role(ann.id, other, Role.WRITER)
    assert store.identity.roles(ann.id) == {REPO: Role.MAINTAINER, other: Role.WRITER}
    store.identity.set_role(ann.id, REPO, None)
    store.identity.set_role(ann.id, REPO, None)
    assert store.identity.roles(ann.id) == {other: Role.WRITER}
    with pytest.raises(Conflict):
        store.identity.set_role(UserId("usr_none"), REPO, Role.READER)


def test_a_token_is_found_by_its_digest_until_it_is_revoked(store: Store) -> None:
    ann = store.identity.create_user("ann", None, admin=False)
    store.identity.add_token(token("ci", ann.id), "d1")
    store.identity.add_token(token("robot"), "d2")
    assert store.identity.token("d1") == token("ci", ann.id)
    assert store.identity.token("d3") is None
    assert [one.name for one in store.identity.tokens()] == ["ci", "robot"]
    assert [one.name for one in store.identity.tokens(ann.id)] == ["ci"]
    with pytest.raises(Conflict):
        store.identity.add_token(token("other"), "d1")
    store.identity.revoke_token("tok_ci")
    store.identity.revoke_token("tok_ci")
    assert store.identity.token("d1") is None


def test_the_last_use_of_a_token_is_kept_to_the_minute(store: Store) -> None:
    store.identity.add_token(token(), "d1")
    used = []
    for at_ms in (1_000_000, 1_030_000, 1_060_000):
        store.identity.touch_token("tok_ci", at_ms)
        found = store.identity.token("d1")
        assert found is not None
        used.append(found.last_used_ms)
    assert used == [1_000_000, 1_000_000, 1_060_000]
    store.identity.touch_token("tok_none", 5)


def test_a_link_works_once_and_until_it_expires(store: Store) -> None:
    store.identity.put_link("d1", "create-admin", 100)
    assert store.identity.take_link("d0", 50) is None
    assert store.identity.take_link("d1", 50) == "create-admin"
    assert store.identity.take_link("d1", 50) is None
    store.identity.put_link("d2", "create-admin", 100)
    assert store.identity.take_link("d2", 100) is None


def test_a_new_link_replaces_the_old_one_of_its_purpose(store: Store) -> None:
    store.identity.put_link("d1", "create-admin", 100)
    store.identity.put_link("d2", "create-admin", 100)
    store.identity.put_link("d3", "reset:bob", 100)
    assert store.identity.take_link("d1", 5) is None
    assert store.identity.take_link("d2", 5) == "create-admin"
    assert store.identity.take_link("d3", 5) == "reset:bob"


def test_of_many_who_take_a_link_one_gets_it(store: Store) -> None:
    store.identity.put_link("d1", "create-admin", 100)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: store.identity.take_link("d1", 5), range(6)))
    assert sorted(found, key=str) == [None] * 5 + ["create-admin"]


# --- webhooks -------------------------------------------------------------------------------------


def delivery(name: str = "d1", *, received_ms: int = 10) -> Delivery:
    return Delivery(HOOK.id, name, "push", b'{"ref": "\xff"}', received_ms)


def test_a_hook_reads_back_with_its_secret(store: Store) -> None:
    store.hooks.add(HOOK)
    assert store.hooks.get(HOOK.id) == HOOK
    assert store.hooks.of_repository(REPO) == [HOOK]
    assert store.hooks.of_repository(RepositoryId("repo_b")) == []
    with pytest.raises(Conflict):
        store.hooks.add(HOOK)


def test_a_removed_hook_is_gone_with_its_deliveries(store: Store) -> None:
    store.hooks.add(HOOK)
    store.hooks.enqueue(delivery())
    store.hooks.remove(HOOK.id)
    store.hooks.remove(HOOK.id)
    with pytest.raises(HookNotFound, match="hook_1"):
        store.hooks.get(HOOK.id)
    with pytest.raises(HookNotFound):
        store.hooks.enqueue(delivery())
    assert store.hooks.pending(1000) == []


def test_a_delivery_is_first_once(store: Store) -> None:
    store.hooks.add(HOOK)
    assert store.hooks.first_delivery(HOOK.id, "d1", 5)
    assert not store.hooks.first_delivery(HOOK.id, "d1", 6)
    assert not store.hooks.enqueue(delivery("d1"))
    assert store.hooks.pending(1000) == []


def test_of_many_who_bring_a_delivery_one_is_first(store: Store) -> None:
    store.hooks.add(HOOK)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: store.hooks.enqueue(delivery()), range(6)))
    assert sorted(found) == [False] * 5 + [True]


def test_a_delivery_is_kept_until_its_work_is_done(store: Store) -> None:
    store.hooks.add(HOOK)
    store.hooks.enqueue(delivery("late", received_ms=20))
    store.hooks.enqueue(delivery("early", received_ms=10))
    assert store.hooks.pending(1000) == [
        delivery("early", received_ms=10),
        delivery("late", received_ms=20),
    ]
    assert [one.id for one in store.hooks.pending(1000, limit=1)] == ["early"]
    assert [one.id for one in store.hooks.pending(15)] == ["early"]
    store.hooks.finish(HOOK.id, "early", "started run_1")
    store.hooks.finish(HOOK.id, "early", "again")
    assert [one.id for one in store.hooks.pending(1000)] == ["late"]
    assert not store.hooks.enqueue(delivery("early"))


def test_a_delivery_put_off_comes_back_with_a_try_more(store: Store) -> None:
    store.hooks.add(HOOK)
    store.hooks.enqueue(delivery())
    store.hooks.defer(HOOK.id, "d1", 500)
    assert store.hooks.pending(499) == []
    (again,) = store.hooks.pending(500)
    assert (again.tries, again.body) == (1, delivery().body)
    store.hooks.finish(HOOK.id, "d1", "done")
    store.hooks.defer(HOOK.id, "d1", 600)
    assert store.hooks.pending(1000) == []


@pytest.mark.parametrize("name", ["", "x" * 257, "nul\0"])
def test_a_strange_delivery_id_is_named(store: Store, name: str) -> None:
    store.hooks.add(HOOK)
    with pytest.raises(InvalidRequest) as caught:
        store.hooks.enqueue(delivery(name))
    assert caught.value.field == "delivery_id"


# --- descriptions, audit --------------------------------------------------------------------------


def test_a_description_reads_back(store: Store) -> None:
    trigger = Trigger("push", branches=("main",), paths=("src/**",), inputs={"a": [1]})
    pipeline = PipelineDescription(
        "CI", (trigger, Trigger("manual")), Resume.LATEST, "hold", {"limit": 1}, 5
    )
    whole = Description((pipeline,))
    broken = Description(error=ErrorInfo("SyntaxError", "bad", "line 1", {"line": 1}))
    store.descriptions.put("a", whole)
    store.descriptions.put("b", whole)
    store.descriptions.put("b", broken)
    assert store.descriptions.get("a") == whole
    assert store.descriptions.get("b") == broken
    assert store.descriptions.get("c") is None


def test_the_audit_log_is_newest_first(store: Store) -> None:
    for number in range(3):
        store.audit.record(number, "ann", "run.start", f"run_{number}", {"n": number})
    first, *_ = store.audit.list()
    assert first == {
        "at_ms": 2,
        "actor": "ann",
        "action": "run.start",
        "subject": "run_2",
        "detail": {"n": 2},
    }
    assert [record["at_ms"] for record in store.audit.list(limit=2)] == [2, 1]
    with pytest.raises(InvalidRequest, match="limit"):
        store.audit.list(limit=0)
    with pytest.raises(InvalidRequest, match="actor"):
        store.audit.record(1, "nul\0", "a", "s", {})
