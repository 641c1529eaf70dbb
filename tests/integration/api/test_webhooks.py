"""Inbound webhooks in GitHub's format: verified, kept, answered, finished; each once."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from contextlib import closing

import httpx
import pytest

import git_store
from ci_platform.commands import Limits
from ci_platform.commands.forges import check_signature
from ci_platform.errors import NotSignedIn
from ci_platform.model import Json, Repository
from ci_platform.ports.hooks import Hook
from tests.integration.api.front import PUSHED, Front

pytestmark = pytest.mark.anyio
SECRET = "It's a Secret to Everybody"


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def headers(body: bytes, **more: str) -> dict[str, str]:
    found = {
        "content-type": "application/json",
        "x-github-event": "push",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "x-hub-signature-256": sign(body),
    }
    return found | {name.replace("_", "-"): value for name, value in more.items()}


def payload(commit: str, **more: Json) -> bytes:
    found = {
        "ref": "refs/heads/main",
        "before": "0" * 40,
        "after": commit,
        "head_commit": {"id": commit},
        "pusher": {"name": "octocat"},
    }
    return json.dumps(found | more).encode()


def prepared(front: Front) -> tuple[Repository, Hook, str]:
    """A repository with a commit that started nothing here, as a fetched one does not."""
    repository = front.repository(pipeline=None)
    front.git.listen(Deaf())
    commit = front.push(repository, {".ci/pipeline.py": PUSHED})
    return repository, front.hook(repository), commit


class Deaf:
    """A listener to whom pushes are nothing."""

    def before(self, push: git_store.Push) -> None:
        pass

    def after(self, event: git_store.PushEvent, say: Callable[[str], None]) -> None:
        pass


async def deliver(
    front: Front, hook_id: str, body: bytes, sent: Mapping[str, str] | None = None
) -> httpx.Response:
    async with front.client() as client:
        return await client.post(f"/hooks/{hook_id}", content=body, headers=sent or headers(body))


def test_the_signature_is_github_s_to_the_letter() -> None:
    wanted = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    check_signature(SECRET.encode(), wanted, b"Hello, World!")
    for wrong in ("", "sha256=", wanted[:-1], wanted.upper(), "sha1=" + wanted[7:], "ü" * 71):
        with pytest.raises(NotSignedIn):
            check_signature(SECRET.encode(), wrong, b"Hello, World!")


async def test_a_push_is_answered_then_fetched_then_run(front: Front) -> None:
    repository, hook, commit = prepared(front)
    answer = await deliver(front, hook.id, payload(commit))
    assert answer.status_code == 202
    assert answer.json()["status"] == "accepted"
    assert front.remotes.fetched == [] and not front.runs(repository)
    assert front.commands.hooks.finish_pending() == 1
    assert front.remotes.fetched == [
        ("https://forge.test/acme/widget.git", commit, "refs/heads/main")
    ]
    (run,) = front.runs(repository)
    assert (run.commit, run.trigger, run.actor, run.actor_id) == (commit, "push", "octocat", None)
    assert run.event["payload"]["pusher"] == {"name": "octocat"}
    assert front.commands.hooks.finish_pending() == 0


async def test_a_delivery_that_comes_twice_starts_nothing_twice(front: Front) -> None:
    repository, hook, commit = prepared(front)
    await deliver(front, hook.id, payload(commit))
    early = await deliver(front, hook.id, payload(commit))
    front.commands.hooks.finish_pending()
    late = await deliver(front, hook.id, payload(commit))
    front.commands.hooks.finish_pending()
    for answer in (early, late):
        assert (answer.status_code, answer.json()["status"]) == (200, "repeated")
    assert len(front.runs(repository)) == 1


async def test_work_that_was_interrupted_is_finished_and_starts_nothing_twice(
    front: Front,
) -> None:
    repository, hook, commit = prepared(front)
    await deliver(front, hook.id, payload(commit))
    delivery = front.store.hooks.pending(front.clock.now_ms())[0]
    assert front.commands.hooks._finish(delivery)  # and the process dies before it says so
    assert front.commands.hooks.finish_pending() == 1
    assert len(front.runs(repository)) == 1


async def test_a_remote_that_is_away_is_tried_again_and_then_given_up(front: Front) -> None:
    repository, hook, commit = prepared(front)
    await deliver(front, hook.id, payload(commit))
    front.remotes.broken = "the remote does not answer"
    for tries in range(Limits().hook_tries - 1):
        assert front.commands.hooks.finish_pending() == 0
        assert front.store.hooks.pending(front.clock.now_ms()) == []
        front.clock.advance(5 * 2**tries)
    assert front.commands.hooks.finish_pending() == 1
    assert front.store.audit.list(limit=1)[0]["action"] == "webhook delivery given up"
    assert not front.runs(repository)


async def test_a_remote_that_comes_back_starts_the_run(front: Front) -> None:
    repository, hook, commit = prepared(front)
    await deliver(front, hook.id, payload(commit))
    front.remotes.broken = "the remote does not answer"
    assert front.commands.hooks.finish_pending() == 0
    front.remotes.broken = None
    front.clock.advance(5)
    assert front.errands.run_once() >= 1
    assert len(front.runs(repository)) == 1


async def test_ping_is_answered(front: Front) -> None:
    _, hook, _ = prepared(front)
    body = b'{"zen": "Keep it logically awesome."}'
    answer = await deliver(front, hook.id, body, headers(body, x_github_event="ping"))
    assert (answer.status_code, answer.json()["status"]) == (200, "ping")


async def test_a_deletion_and_other_events_start_nothing(front: Front) -> None:
    _, hook, _ = prepared(front)
    gone = payload("0" * 40, before="1" * 40, head_commit=None, deleted=True)
    assert (await deliver(front, hook.id, gone)).json()["status"] == "ignored"
    body = b"{}"
    answer = await deliver(front, hook.id, body, headers(body, x_github_event="issues"))
    assert (answer.status_code, answer.json()["status"]) == (200, "ignored")
    assert front.store.hooks.pending(front.clock.now_ms()) == []


async def test_a_tag_object_is_run_at_its_commit(front: Front) -> None:
    repository, hook, commit = prepared(front)
    body = payload("a" * 40, ref="refs/tags/v1", head_commit={"id": commit})
    await deliver(front, hook.id, body)
    front.commands.hooks.finish_pending()
    assert front.remotes.fetched[0][1:] == (commit, "refs/tags/v1")
    assert not front.runs(repository)  # its pipeline does not ask for tags


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"x_hub_signature_256": ""}, 401),
        ({"x_hub_signature_256": "sha256="}, 401),
        ({"x_hub_signature_256": "sha256=" + "0" * 64}, 401),
        ({"x_hub_signature_256": "sha1=" + "0" * 40}, 401),
        ({"content_type": "application/x-www-form-urlencoded"}, 400),
        ({"content_type": ""}, 400),
        ({"x_github_event": ""}, 400),
        ({"x_github_delivery": ""}, 400),
        ({"x_github_delivery": "x" * 101}, 400),
        ({"x_github_delivery": "a b"}, 400),
    ],
)
async def test_headers_that_are_no_good_are_refused(
    front: Front, change: dict[str, str], status: int
) -> None:
    _, hook, commit = prepared(front)
    body = payload(commit)
    answer = await deliver(front, hook.id, body, headers(body, **change))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert front.store.hooks.pending(front.clock.now_ms()) == []


async def test_the_old_signature_alone_is_not_enough(front: Front) -> None:
    _, hook, commit = prepared(front)
    body = payload(commit)
    sent = headers(body)
    del sent["x-hub-signature-256"]
    sent["x-hub-signature"] = "sha1=" + hmac.new(SECRET.encode(), body, "sha1").hexdigest()
    assert (await deliver(front, hook.id, body, sent)).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        b'{"ref": 1}',
        b'{"ref": "main", "before": "x"}',
        payload("1" * 40, ref="refs/heads/a\nb"),
        payload("1" * 39),
        payload("1" * 40, before=None),
        payload("1" * 40, ref="refs/heads/" + "x" * 300),
    ],
)
async def test_a_signed_body_that_is_no_good_is_refused(front: Front, body: bytes) -> None:
    _, hook, _ = prepared(front)
    answer = await deliver(front, hook.id, body)
    assert answer.status_code == 400, answer.text
    assert front.store.hooks.pending(front.clock.now_ms()) == []


async def test_a_hook_that_is_not_there_is_not_found(front: Front) -> None:
    assert (await deliver(front, "hook_x", b"{}")).status_code == 404


async def test_a_body_over_the_limit_is_refused(front: Front) -> None:
    _, hook, commit = prepared(front)
    body = payload(commit, padding="x" * (25 << 20))
    assert (await deliver(front, hook.id, body)).status_code == 413


async def test_a_large_payload_starts_a_run_that_holds_only_what_moved(front: Front) -> None:
    repository, hook, commit = prepared(front)
    await deliver(front, hook.id, payload(commit, padding="x" * (2 << 20)))
    front.commands.hooks.finish_pending()
    (run,) = front.runs(repository)
    assert set(run.event["payload"]) == {"ref", "before", "after", "pusher", "options"}


async def test_a_removed_hook_leaves_its_deliveries_without_work(front: Front) -> None:
    repository, hook, commit = prepared(front)
    await deliver(front, hook.id, payload(commit))
    front.store.hooks.remove(hook.id)
    front.commands.hooks.finish_pending()
    assert not front.runs(repository)
    assert front.store.hooks.pending(front.clock.now_ms()) == []


async def test_the_errands_thread_finishes_what_is_rung_for(front: Front) -> None:
    repository, hook, commit = prepared(front)
    with closing(front.store.bell()) as bell:
        front.errands.start()
        try:
            await deliver(front, hook.id, payload(commit))
            while not front.runs(repository):
                assert bell.wait(10)
        finally:
            front.errands.close()
