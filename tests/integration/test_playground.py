"""The playground: people, forms and the real sandbox behind them."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from ci_platform.app import create_asgi
from ci_platform.commands import StartRun
from ci_platform.commands.playground import RUNS_MAX, repository_name
from ci_platform.commands.quota import LIVE_MAX, STARTS_PER_MINUTE
from ci_platform.errors import Forbidden, InvalidRequest, NotSignedIn, TooLarge, TooMany
from ci_platform.identity import ANONYMOUS
from ci_platform.model import SYSTEM, Actor, RunId
from ci_platform.ports import RunFilter
from tests.deployment import OWNER, Deployment, deployed
from tests.web.browser import PASSWORD, Answer, Browser
from web.playground import EXAMPLE

WAITING = """
from pipelines import Pipeline, on_push


class Other(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
        await step.do("before", lambda: event.params)
        event = await step.wait_for_event("a color", type="color")
        await step.approval("paint it", allow_self=True)
        return event.payload


class Unused(Pipeline):
    async def run(self, event, step):
        return 1
"""
PASSING = """
from pipelines import Pipeline


class P(Pipeline):
    async def run(self, event, step):
        return "fine"
"""

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def deployment(tmp_path: Path, guest_cache: Path) -> Iterator[Deployment]:
    with deployed(tmp_path / "data", cache=guest_cache) as made:
        for name in ("ana", "ben"):
            made.platform.commands.people.create_user(SYSTEM, name, PASSWORD)
        yield made


def actor(deployment: Deployment, name: str) -> Actor:
    found = deployment.platform.store.identity.user_by_name(name)
    assert found is not None
    return deployment.platform.identity.of_user(found[0])


def run_id_of(answer: Answer) -> RunId:
    assert answer.status == 303, answer.page.text
    assert answer.location.startswith("/playground?run=run_")
    return RunId(answer.location.partition("=")[2].removesuffix("#run"))


async def test_code_runs_waits_for_an_event_and_an_approval_and_ends(
    deployment: Deployment,
) -> None:
    async with Browser(create_asgi(deployment.platform)) as browser:
        assert (await browser.get("/playground")).location.startswith("/sign-in")
        await browser.sign_in("ana")
        shown = await browser.get("/playground")
        assert EXAMPLE in unescape(shown.response.text)
        form = shown.page.form("/playground")
        answer = await browser.send(form, code=WAITING.replace("\n", "\r\n"), params='{"a": 1}')
        run_id = run_id_of(answer)
        deployment.work()
        shown = await browser.get(answer.location)
        page = shown.page
        assert WAITING in unescape(shown.response.text)
        assert page.one("textarea", id="params").text.strip() == '{"a": 1}'
        browser.client.headers["Referer"] = f"http://ci.example{answer.location}"
        form = page.form(f"/runs/{run_id}/events")
        bad = await browser.send(form, payload="red")
        assert (bad.status, "ayload is not JSON" in bad.page.text) == (400, True)
        assert (await browser.send(form, payload='"red"')).location == answer.location
        deployment.work()
        page = (await browser.get(answer.location)).page
        form = page.form(f"/runs/{run_id}/approvals/paint%20it")
        assert (await browser.send(form, "Approve paint it")).location == answer.location
        deployment.work()
        run = deployment.run(run_id)
        assert (run.state, run.output, run.pipeline) == ("passed", "red", "Other")
        assert "passed" in (await browser.get(answer.location)).page.title
        assert run.number == 1  # no trigger of the code started another
        listed = deployment.platform.store.runs.list(RunFilter())
        assert [one.id for one in listed.runs] == [run_id]


async def test_what_is_wrong_is_said_beside_the_code(deployment: Deployment) -> None:
    async with Browser(create_asgi(deployment.platform)) as browser:
        await browser.sign_in("ana")
        form = (await browser.get("/playground")).page.form("/playground")
        for code, params, said in (
            ("class", "", "line 1: SyntaxError"),
            ("", "", "write a pipeline first"),
            (PASSING, "{", "params is not JSON"),
            ("x = 1", "", "declares no pipeline"),
        ):
            answer = await browser.send(form, code=code, params=params)
            assert answer.status == 400
            assert said in answer.page.one("p", role="alert").text
            assert code in unescape(answer.response.text)


async def test_another_user_sees_nothing_of_it(deployment: Deployment) -> None:
    run = deployment.platform.commands.playground.run(actor(deployment, "ana"), PASSING, {})
    async with Browser(create_asgi(deployment.platform)) as browser:
        await browser.sign_in("ben")
        assert (await browser.get(f"/playground?run={run.id}")).status == 404
    deployment.push({".ci/pipeline.py": PASSING})
    other = deployment.start()
    async with Browser(create_asgi(deployment.platform)) as browser:
        await browser.sign_in("ana")
        assert (await browser.get(f"/playground?run={other}")).status == 404


def test_only_people_may_use_it(deployment: Deployment) -> None:
    playground = deployment.platform.commands.playground
    with pytest.raises(NotSignedIn):
        playground.run(ANONYMOUS, PASSING, {})
    with pytest.raises(Forbidden):
        playground.run(OWNER, PASSING, {})
    ana = actor(deployment, "ana")
    with pytest.raises(TooLarge):
        playground.run(ana, PASSING + "#" * 70_000, {})
    with pytest.raises(TooLarge):
        playground.run(ana, PASSING, ["x" * 70_000])
    with pytest.raises(InvalidRequest, match="word of the server's own"):
        deployment.platform.commands.repositories.create(OWNER, "Playground", "mine")


def test_the_quota_bounds_live_runs_and_starts_a_minute(deployment: Deployment) -> None:
    playground, ana = deployment.platform.commands.playground, actor(deployment, "ana")
    runs = [playground.run(ana, WAITING, {}) for _ in range(LIVE_MAX)]
    with pytest.raises(TooMany, match="cancel one"):
        playground.run(ana, WAITING, {})
    for run in runs:
        deployment.platform.commands.runs.cancel(OWNER, run.id)
    for _ in range(STARTS_PER_MINUTE - LIVE_MAX):
        playground.run(ana, PASSING, {})
        deployment.work()
    with pytest.raises(TooMany, match="a minute"):
        playground.run(ana, PASSING, {})
    ana, others = actor(deployment, "ana"), deployment.platform.commands.runs
    here = ("playground", repository_name(ana))
    with pytest.raises(TooMany, match="a minute"):
        others.restart(ana, runs[0].id)
    with pytest.raises(TooMany, match="a minute"):
        others.start(ana, *here, StartRun())
    with pytest.raises(TooMany, match="have not ended"):
        others.start_many(ana, *here, [StartRun()] * (LIVE_MAX + 1))
    deployment.advance(61)
    assert playground.run(ana, PASSING, {}).number == STARTS_PER_MINUTE + 1


def test_a_used_up_repository_is_thrown_away_with_what_it_stored(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    playground, ana = deployment.platform.commands.playground, actor(deployment, "ana")
    assert RUNS_MAX > 2
    monkeypatch.setattr("ci_platform.commands.playground.RUNS_MAX", 2)
    first = playground.run(ana, PASSING, {})
    second = playground.run(ana, PASSING, {})
    deployment.work()
    third = playground.run(ana, PASSING, {})
    assert first.repository_id == second.repository_id != third.repository_id
    deployment.work()
    assert deployment.run(third.id).state == "passed"


MULTIPLYING = """
from pipelines import CapabilityError, NotGranted, Pipeline


class P(Pipeline):
    async def run(self, event, step):
        async def multiply():
            try:
                await self.env.runs.create()
            except NotGranted as error:
                return str(error)

        return await step.do("multiply", multiply)
"""


SPREADING = """
from pipelines import Pipeline, StepFailed


class P(Pipeline):
    async def run(self, event, step):
        for n in range(5):
            try:
                await step.start(f"child {n}", "Waits", wait=False)
            except StepFailed as error:
                return [n, str(error)]


class Waits(Pipeline):
    async def run(self, event, step):
        await step.sleep("long", "1 day")
"""


def test_runs_that_a_run_starts_count_for_the_quota(deployment: Deployment) -> None:
    run = deployment.platform.commands.playground.run(actor(deployment, "ana"), SPREADING, {})
    deployment.work()
    count, said = deployment.run(run.id).output
    assert (count, "cancel one first" in said) == (LIVE_MAX - 1, True)


def test_code_in_the_playground_starts_no_runs_by_itself(deployment: Deployment) -> None:
    run = deployment.platform.commands.playground.run(actor(deployment, "ana"), MULTIPLYING, {})
    deployment.work()
    found = deployment.run(run.id)
    assert (found.state, "by its button alone" in str(found.output)) == ("passed", True)
