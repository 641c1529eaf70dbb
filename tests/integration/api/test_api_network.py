"""A repository's list of hosts over HTTP: who sees it, who sets it, what it refuses."""

from __future__ import annotations

import pytest

from ci_platform.hosts import HOST_CHARS_MAX, HOSTS_MAX
from ci_platform.identity import Scope
from ci_platform.model import Json, Role
from tests.integration.api.front import Front

pytestmark = pytest.mark.anyio
REPO = "/api/v1/repos/acme/widget"
HERE = REPO + "/network"
LIST: Json = {"hosts": ["pypi.org", "*.pythonhosted.org", "pypi.org"]}


async def test_maintainers_set_what_readers_see_and_nobody_else(front: Front) -> None:
    repository = front.repository(pipeline=None)
    ada = front.user("ada")
    async with front.client(front.token(ada, *Scope)) as client:
        assert (await client.get(HERE)).status_code == 404
        front.role(ada, repository, Role.READER)
        assert (await client.get(HERE)).json() == {"hosts": None}
        front.role(ada, repository, Role.WRITER)
        assert (await client.put(HERE, json=LIST)).status_code == 403
        assert (await client.delete(HERE)).status_code == 403
        front.role(ada, repository, Role.MAINTAINER)
        made = await client.put(HERE, json=LIST)
        allowed = {"hosts": ["pypi.org", "*.pythonhosted.org"]}
        assert (made.status_code, made.json()) == (200, allowed)
        front.role(ada, repository, Role.READER)
        assert (await client.get(HERE)).json() == allowed
    async with front.client(front.token(ada, Scope.WRITE)) as client:
        front.role(ada, repository, Role.MAINTAINER)
        assert (await client.put(HERE, json=LIST)).status_code == 403, "a token for pushes"


async def test_what_changes_is_audited(front: Front) -> None:
    front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        await client.put(HERE, json={"hosts": []})
        assert (await client.get(HERE)).json() == {"hosts": []}
        for _ in range(2):
            assert (await client.delete(HERE)).status_code == 204
        assert (await client.get(HERE)).json() == {"hosts": None}
    noted = [
        (one["action"], one["subject"], one["detail"].get("hosts"))
        for one in front.store.audit.list()
        if one["action"].startswith("network")
    ]
    assert sorted(noted) == [
        ("network cleared", "acme/widget", None),
        ("network set", "acme/widget", []),
    ]


async def test_the_list_goes_with_its_repository(front: Front) -> None:
    repository = front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        await client.put(HERE, json=LIST)
        assert (await client.delete(REPO)).status_code == 204
    assert front.store.networks.get(repository.id) is None


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (["http://pypi.org/"], "'http://pypi.org/' is not a host"),
        (["pypi.org", ""], "'' is not a host"),
        (["pypi.org:99999"], "99999 is not a port"),
        (["a\0b"], "is not a host"),
        (["x" * (HOST_CHARS_MAX + 1)], f"the limit is {HOST_CHARS_MAX}"),
        (["pypi.org"] * (HOSTS_MAX + 1), f"the limit is {HOSTS_MAX}"),
        ("pypi.org", ""),
        (None, ""),
        ([1], ""),
    ],
)
async def test_a_bad_list_is_refused_by_its_field(front: Front, hosts: Json, said: str) -> None:
    repository = front.repository(pipeline=None)
    async with front.client(front.token()) as client:
        answer = await client.put(HERE, json={"hosts": hosts})
    assert answer.status_code == 400
    assert answer.json()["field"].startswith("hosts")
    assert said in answer.text
    assert front.store.networks.get(repository.id) is None
