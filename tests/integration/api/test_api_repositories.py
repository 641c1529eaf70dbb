"""Repositories over HTTP: the things themselves, their files, roles and webhooks."""

from __future__ import annotations

import base64

import pytest

from ci_platform.identity import Scope
from ci_platform.model import Json, Role
from tests.integration.api.front import BASE_URL, Front

pytestmark = pytest.mark.anyio
REPOS = "/api/v1/repos"
HERE = REPOS + "/acme/widget"


async def test_a_repository_is_created_read_listed_and_deleted(front: Front) -> None:
    async with front.client(front.token()) as client:
        answer = await client.post(REPOS, json={"owner": "acme", "name": "widget"})
        assert answer.status_code == 201
        made = answer.json()
        assert made["full_name"] == "acme/widget" and made["default_branch"] == "main"
        assert made["clone_url"] == f"{BASE_URL}/acme/widget.git"
        assert (await client.get(HERE)).json() == made
        assert (await client.get(REPOS)).json() == {"repositories": [made], "cursor": None}
        again = await client.post(REPOS, json={"owner": "acme", "name": "widget"})
        assert again.status_code == 409
        assert (await client.delete(HERE)).status_code == 204
        assert (await client.get(HERE)).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"owner": "acme"}, "name"),
        ({"owner": "", "name": "x"}, "owner"),
        ({"owner": "acme", "name": "../x"}, "name"),
        ({"owner": "acme", "name": "x" * 300}, "name"),
        ({"owner": "acme", "name": "a\x00b"}, "name"),
        ({"owner": "acme", "name": 7}, "name"),
        ({"owner": "acme", "name": "x", "private": True}, "private"),
        ({"owner": "acme", "name": "x", "description": "y" * 1001}, "description"),
        ({"owner": "acme", "name": "x", "default_branch": "a..b"}, "default_branch"),
    ],
)
async def test_a_bad_repository_is_refused_by_its_field(
    front: Front, body: Json, field: str
) -> None:
    async with front.client(front.token()) as client:
        answer = await client.post(REPOS, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["field"] == field
        assert (await client.get(REPOS)).json()["repositories"] == []


async def test_repositories_are_listed_in_pages(front: Front) -> None:
    for name in "abc":
        front.repository(name, pipeline=None)
    async with front.client(front.token()) as client:
        page = (await client.get(REPOS, params={"limit": 2})).json()
        assert [one["name"] for one in page["repositories"]] == ["a", "b"]
        rest = (await client.get(REPOS, params={"cursor": page["cursor"]})).json()
        assert [one["name"] for one in rest["repositories"]] == ["c"]


async def test_a_repository_with_a_live_run_is_not_deleted(front: Front) -> None:
    repository = front.repository()
    run = front.runs(repository)[0]
    async with front.client(front.token()) as client:
        assert (await client.delete(HERE)).status_code == 409
        front.finish(run.id)
        assert (await client.delete(HERE)).status_code == 204
        assert (await client.get(f"/api/v1/runs/{run.id}")).status_code == 404


async def test_the_webhooks_of_a_deleted_repository_are_gone(front: Front) -> None:
    hook = front.hook(front.repository(pipeline=None))
    async with front.client(front.token()) as client:
        assert (await client.delete(HERE)).status_code == 204
        assert (await client.post(f"/hooks/{hook.id}", json={})).status_code == 404


async def test_a_fork_shares_the_files(front: Front) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.post(HERE + "/fork", json={"owner": "ada", "name": "widget"})
        assert answer.status_code == 201
        file = await client.get(REPOS + "/ada/widget/files/.ci/pipeline.py")
        assert file.status_code == 200


async def test_files_are_written_and_read_without_a_git_client(front: Front) -> None:
    front.repository(pipeline=None)
    raw = base64.b64encode(b"\xff\x00").decode()
    changes = [
        {"path": "docs/a.txt", "content": "grüße\n"},
        {"path": "bin/run", "content": raw, "encoding": "base64", "executable": True},
    ]
    async with front.client(front.token()) as client:
        body = {"branch": "main", "message": "add", "changes": changes}
        answer = await client.post(HERE + "/commits", json=body)
        assert answer.status_code == 201
        first = answer.json()["commit"]
        text = (await client.get(HERE + "/files/docs/a.txt")).json()
        assert text == {
            "path": "docs/a.txt",
            "commit": first,
            "kind": "file",
            "encoding": "utf-8",
            "content": "grüße\n",
        }
        assert (await client.get(HERE + "/files/bin/run")).json()["content"] == raw
        root = (await client.get(HERE + "/files/")).json()
        assert [(one["name"], one["kind"]) for one in root["entries"]] == [
            ("bin", "dir"),
            ("docs", "dir"),
        ]
        body = {
            "branch": "main",
            "message": "remove",
            "changes": [{"path": "docs/a.txt", "content": None}],
            "expected_parent": first,
        }
        assert (await client.post(HERE + "/commits", json=body)).status_code == 201
        assert (await client.post(HERE + "/commits", json=body)).status_code == 409
        assert (await client.get(HERE + "/files/docs/a.txt")).status_code == 404
        old = await client.get(HERE + "/files/docs/a.txt", params={"ref": first})
        assert old.json()["content"] == "grüße\n"


@pytest.mark.parametrize("ref", ["nope", "refs/heads/nope", "\x00", "x" * 5000, "-", "main~1"])
async def test_a_file_at_a_ref_that_is_not_there_is_not_found(front: Front, ref: str) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.get(HERE + "/files/.ci/pipeline.py", params={"ref": ref})
    assert answer.status_code in (400, 404), answer.text


@pytest.mark.parametrize(
    "path", ["..%2f..%2fetc%2fpasswd", "%00", ".ci/pipeline.py/x", "a%2f%2fb", "%ff", ".git/config"]
)
async def test_a_path_that_is_not_there_is_not_found(front: Front, path: str) -> None:
    front.repository()
    async with front.client(front.token()) as client:
        answer = await client.get(f"{HERE}/files/{path}")
    assert answer.status_code in (400, 404), answer.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"path": "../x", "content": "a"}, None),
        ({"path": "/x", "content": "a"}, None),
        ({"path": "", "content": "a"}, None),
        ({"path": ".git/config", "content": "a"}, None),
        ({"path": "a\x00b", "content": "a"}, None),
        ({"path": "x", "content": "%%", "encoding": "base64"}, "changes.0.content"),
        ({"path": "x", "content": "a", "encoding": "latin-1"}, "changes.0.encoding"),
        ({"path": "x"}, "changes.0.content"),
        ({"path": "x", "content": "a", "mode": 7}, "changes.0.mode"),
        ({"path": "gone", "content": None}, None),
    ],
)
async def test_a_bad_change_is_refused(front: Front, change: Json, field: str | None) -> None:
    front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        body = {"branch": "main", "message": "x", "changes": [change]}
        answer = await client.post(HERE + "/commits", json=body)
    assert answer.status_code in (400, 404), answer.text
    if field is not None:
        assert answer.json()["field"] == field


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"branch": "a..b"}, "branch"),
        ({"branch": ""}, "branch"),
        ({"message": " "}, "message"),
        ({"message": "x" * 70_000}, "message"),
        ({"changes": []}, "changes"),
        ({"changes": [{"path": str(i), "content": ""} for i in range(1001)]}, "changes"),
        ({"expected_parent": "zz"}, None),
    ],
)
async def test_a_bad_commit_is_refused(front: Front, broken: Json, field: str | None) -> None:
    front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        change = {"path": "a", "content": "b"}
        body = {"branch": "main", "message": "x", "changes": [change], **broken}
        answer = await client.post(HERE + "/commits", json=body)
    assert answer.status_code in (400, 409), answer.text
    if field is not None:
        assert answer.json()["field"] == field


async def test_a_password_in_a_remote_s_address_is_not_shown(front: Front) -> None:
    front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        body = {"remote_url": "https://ci:hunter2@forge.test:8443/acme/widget.git"}
        made = await client.post(HERE + "/hooks", json=body)
        listed = await client.get(HERE + "/hooks")
    assert made.json()["remote_url"] == "https://***@forge.test:8443/acme/widget.git"
    assert "hunter2" not in made.text + listed.text


async def test_webhooks_are_made_listed_and_removed(front: Front) -> None:
    front.repository(pipeline=None)
    other = front.repository("other", pipeline=None)
    elsewhere = front.hook(other)
    async with front.client(front.token()) as client:
        body = {"remote_url": "https://forge.test/acme/widget.git"}
        answer = await client.post(HERE + "/hooks", json=body)
        assert answer.status_code == 201
        made = answer.json()
        assert made["url"] == f"{BASE_URL}/hooks/{made['id']}" and len(made["secret"]) > 30
        listed = (await client.get(HERE + "/hooks")).json()["hooks"]
        assert [one["id"] for one in listed] == [made["id"]] and "secret" not in listed[0]
        assert (await client.delete(f"{HERE}/hooks/{elsewhere.id}")).status_code == 404
        assert (await client.delete(f"{HERE}/hooks/{made['id']}")).status_code == 204
        assert (await client.delete(f"{HERE}/hooks/{made['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"provider": "sourceforge"}, "provider"),
        ({"secret": "short"}, "secret"),
        ({"remote_url": "file:///etc"}, "remote_url"),
        ({"remote_url": "https://"}, "remote_url"),
        ({"remote_url": "https://[::1"}, "remote_url"),
        ({"remote_url": "git@forge:x"}, "remote_url"),
    ],
)
async def test_a_bad_webhook_is_refused_by_its_field(front: Front, body: Json, field: str) -> None:
    front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        answer = await client.post(HERE + "/hooks", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


# --- who may --------------------------------------------------------------------------------------

DOORS: list[tuple[str, str, Json, Role]] = [
    ("GET", HERE, None, Role.READER),
    ("GET", HERE + "/runs", None, Role.READER),
    ("GET", HERE + "/files/.ci/pipeline.py", None, Role.READER),
    ("GET", "/api/v1/runs/{run}", None, Role.READER),
    ("GET", "/api/v1/runs/{run}/journal", None, Role.READER),
    ("GET", "/api/v1/runs/{run}/logs", None, Role.READER),
    ("GET", "/api/v1/runs/{run}/approvals", None, Role.READER),
    ("GET", "/api/v1/runs/{run}/events", None, Role.READER),
    ("GET", "/api/v1/runs/{run}/logs/follow", None, Role.READER),
    ("GET", HERE + "/network", None, Role.READER),
    ("POST", HERE + "/runs", {}, Role.WRITER),
    ("POST", HERE + "/runs/batch", {"runs": [{}]}, Role.WRITER),
    (
        "POST",
        HERE + "/commits",
        {"branch": "b", "message": "m", "changes": [{"path": "p", "content": "c"}]},
        Role.WRITER,
    ),
    ("POST", "/api/v1/runs/{run}/pause", None, Role.WRITER),
    ("POST", "/api/v1/runs/{run}/resume", None, Role.WRITER),
    ("POST", "/api/v1/runs/{run}/cancel", None, Role.WRITER),
    ("POST", "/api/v1/runs/{run}/restart", None, Role.WRITER),
    ("POST", "/api/v1/runs/{run}/events/go", 1, Role.WRITER),
    ("DELETE", "/api/v1/runs/{run}", None, Role.MAINTAINER),
    ("PUT", HERE + "/network", {"hosts": []}, Role.MAINTAINER),
    ("DELETE", HERE + "/network", None, Role.MAINTAINER),
    ("GET", HERE + "/hooks", None, Role.MAINTAINER),
    ("POST", HERE + "/hooks", {}, Role.MAINTAINER),
    ("DELETE", HERE + "/hooks/x", None, Role.MAINTAINER),
    ("POST", HERE + "/roles", {"user": "ada", "role": "reader"}, Role.MAINTAINER),
    ("DELETE", HERE, None, Role.MAINTAINER),
]


@pytest.mark.parametrize(("method", "path", "body", "needed"), DOORS)
async def test_each_door_asks_who_you_are(
    front: Front, method: str, path: str, body: Json, needed: Role
) -> None:
    repository = front.repository()
    path = path.format(run=front.runs(repository)[0].id)
    ada = front.user("ada")

    async def status(token: str | None, at: str = path) -> int:
        async with front.client(token) as client:
            return (await client.request(method, at, json=body)).status_code

    assert await status(None) == 401
    assert await status("slu_wrong") == 401
    secret = front.token(ada, *Scope)
    assert await status(secret) == 404
    missing = path.replace("acme/widget", "acme/nothing").replace("/run_", "/run_x")
    assert await status(None, missing) == 401
    assert await status(secret, missing) == 404
    below = {Role.WRITER: Role.READER, Role.MAINTAINER: Role.WRITER}.get(needed)
    if below is not None:
        front.role(ada, repository, below)
        assert await status(secret) == 403


async def test_not_there_and_not_yours_read_alike(front: Front) -> None:
    front.repository()
    run = front.runs(front.queries.repository_list(front.identity.of_token(front.token()))[0])[0]
    async with front.client(front.token(front.user("ada"))) as client:
        for there, gone in [(HERE, REPOS + "/acme/nothing"), (run.id, "run_nothing")]:
            there = there if there.startswith("/") else f"/api/v1/runs/{there}"
            gone = gone if gone.startswith("/") else f"/api/v1/runs/{gone}"
            assert (await client.get(there)).text == (await client.get(gone)).text
        assert (await client.get(REPOS)).json()["repositories"] == []


async def test_a_role_opens_a_repository_and_its_loss_closes_it(front: Front) -> None:
    front.repository()
    secret = front.token(front.user("ada"), Scope.READ)
    async with front.client(front.token()) as admin, front.client(secret) as ada:
        body: Json = {"user": "ada", "role": "reader"}
        assert (await admin.post(HERE + "/roles", json=body)).status_code == 204
        assert (await ada.get(HERE)).status_code == 200
        body = {"user": "ada", "role": None}
        assert (await admin.post(HERE + "/roles", json=body)).status_code == 204
        assert (await ada.get(HERE)).status_code == 404
        body = {"user": "ada", "role": "emperor"}
        assert (await admin.post(HERE + "/roles", json=body)).json()["field"] == "role"
        body = {"user": "nobody", "role": "reader"}
        assert (await admin.post(HERE + "/roles", json=body)).status_code == 404


async def test_a_token_bound_to_a_repository_opens_no_other(front: Front) -> None:
    here = front.repository()
    front.repository("other")
    async with front.client(front.token(None, *Scope, repository=here)) as client:
        assert (await client.get(HERE)).status_code == 200
        assert (await client.get(REPOS + "/acme/other")).status_code == 404
        names = [one["name"] for one in (await client.get(REPOS)).json()["repositories"]]
        assert names == ["widget"]
        assert (await client.post(REPOS, json={"owner": "a", "name": "b"})).status_code == 403
        assert (await client.get("/api/v1/tokens")).status_code == 403
        assert (await client.get("/api/v1/system")).status_code == 403
