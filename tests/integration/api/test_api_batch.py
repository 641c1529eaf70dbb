"""Many repositories in one request, and how two refs differ, over HTTP."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ci_platform.commands.repositories import BATCH_MAX
from ci_platform.identity import Scope
from tests.integration.api.front import Front

pytestmark = pytest.mark.anyio
BATCH = "/api/v1/repos/batch"
HERE = "/api/v1/repos/acme/widget"


def wanted(*names: str) -> list[dict[str, Any]]:
    return [{"owner": "acme", "name": name} for name in names]


async def test_many_repositories_share_what_the_template_holds(front: Front) -> None:
    template = front.repository()
    head = front.push(template, {"a.txt": "hello"})
    names = [f"r{number}" for number in range(BATCH_MAX)]
    async with front.client(front.token()) as client:
        body = {"repositories": wanted(*names), "template": "acme/widget"}
        answer = await client.post(BATCH, json=body)
        assert answer.status_code == 201, answer.text
        assert answer.json()["created"] == BATCH_MAX
        last = answer.json()["repositories"][-1]["repository"]
        assert last["full_name"] == "acme/r99" and last["clone_url"].endswith("acme/r99.git")
        found = (await client.get("/api/v1/repos/acme/r99/files/a.txt")).json()
        assert (found["content"], found["commit"]) == ("hello", head)
    copy = front.parts.repositories.get("acme", "r50")
    assert front.runs(copy) == [], "a template starts nothing"
    front.push(copy, {"a.txt": "changed"})
    assert front.parts.source.resolve(template.id, "main") == head


async def test_each_position_says_what_became_of_it(front: Front) -> None:
    front.repository()
    bad = {"owner": "api", "name": "x"}
    long = {"owner": "acme", "name": "long", "description": "x" * 1001}
    body = {"repositories": [*wanted("new", "widget", "new", "a..b"), bad, long]}
    async with front.client(front.token()) as client:
        answer = await client.post(BATCH, json=body)
    made = answer.json()["repositories"]
    assert answer.json()["created"] == 1 and made[0]["repository"]["full_name"] == "acme/new"
    fields = [one["field"] for one in made]
    assert fields == [None, "name", "name", "name", "owner", "description"]
    assert "exists" in made[1]["problem"] and "exists" in made[2]["problem"]
    assert all(one["repository"] is None for one in made[1:])


async def test_a_batch_is_bounded_and_asks_who_you_are(front: Front) -> None:
    front.repository()
    writer = front.user("wendy")
    async with front.client(front.token()) as client:
        for count in (0, BATCH_MAX + 1):
            answer = await client.post(BATCH, json={"repositories": wanted(*["x"] * count)})
            assert answer.status_code in (400, 422) and answer.json()["field"] == "repositories"
        gone = {"repositories": wanted("x"), "template": "acme/nothing"}
        assert (await client.post(BATCH, json=gone)).status_code == 404
    async with front.client(front.token(writer, Scope.ADMIN)) as client:
        answer = await client.post(BATCH, json={"repositories": wanted("x")})
        assert answer.status_code == 403
    async with front.client() as client:
        assert (await client.post(BATCH, json={"repositories": wanted("x")})).status_code == 401


async def test_a_difference_is_told_file_by_file_and_applies(front: Front, tmp_path: Path) -> None:
    repository = front.repository()
    before = front.push(repository, {"a.txt": "1\n2\n3\n", "old.txt": "same\n" * 9, "gone": "x"})
    changes = {"a.txt": "1\ntwo\n3\n", "old.txt": None, "new.txt": "same\n" * 9, "gone": None}
    after = front.push(repository, changes)
    async with front.client(front.token()) as client:
        answer = await client.get(f"{HERE}/diff", params={"base": before, "head": "main"})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["base"], found["head"], found["more"]) == (before, after, False)
        files = {one["path"]: one for one in found["files"]}
        assert {path: one["status"] for path, one in files.items()} == {
            "a.txt": "modified",
            "gone": "deleted",
            "new.txt": "renamed",
        }
        assert (files["a.txt"]["additions"], files["a.txt"]["deletions"]) == (1, 1)
        assert files["new.txt"]["old_path"] == "old.txt"
        assert "@@ -1,3 +1,3 @@\n 1\n-2\n+two\n 3\n" in files["a.txt"]["text"]
        patch = await client.get(f"{HERE}/diff.patch", params={"base": before, "head": after})
        assert patch.headers["content-type"].startswith("text/x-diff")
        for path, content in (("a.txt", "1\n2\n3\n"), ("old.txt", "same\n" * 9), ("gone", "x")):
            (tmp_path / path).write_text(content)
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch.content, check=True)
        assert (tmp_path / "a.txt").read_text() == "1\ntwo\n3\n"
        assert not (tmp_path / "gone").exists() and (tmp_path / "new.txt").exists()
        everything = (await client.get(f"{HERE}/diff")).json()
        assert everything["base"] is None
        assert {one["status"] for one in everything["files"]} == {"added"}
        for params in ({"base": "nothing"}, {"head": "nothing"}):
            assert (await client.get(f"{HERE}/diff", params=params)).status_code == 404


async def test_a_log_is_read_in_pages_that_a_push_does_not_shift(front: Front) -> None:
    repository = front.repository()
    commits = [front.push(repository, {"n": str(number)}) for number in range(6)]
    async with front.client(front.token()) as client:
        first = (await client.get(f"{HERE}/commits", params={"limit": 3})).json()
        front.push(repository, {"n": "later"})
        assert [one["sha"] for one in first["commits"]] == commits[:2:-1]
        page = (
            await client.get(f"{HERE}/commits", params={"limit": 3, "cursor": first["cursor"]})
        ).json()
        assert [one["sha"] for one in page["commits"]] == commits[2::-1]
        params = {"limit": 3, "cursor": page["cursor"]}
        last = (await client.get(f"{HERE}/commits", params=params)).json()
        assert len(last["commits"]) == 1 and last["cursor"] is None
        for cursor in ("x", "0" * 40, f"{commits[0]}:99999999999"):
            answer = await client.get(f"{HERE}/commits", params={"cursor": cursor})
            assert answer.status_code in (400, 422) and answer.json()["field"] == "cursor"
        far = await client.get(f"{HERE}/commits", params={"cursor": f"{commits[0]}:999999999"})
        assert "log_skip" in far.json()["detail"]
