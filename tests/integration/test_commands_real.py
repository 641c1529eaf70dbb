"""Commands in a whole deployment: real sandboxes, real layers, a clock that the test drives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ci_platform.app import create_asgi
from ci_platform.config import read_config
from ci_platform.errors import InvalidRequest
from ci_platform.identity import COOKIE
from ci_platform.model import RunId, UserId
from ci_platform.runner.stored_layers import StoredLayers
from ci_platform.store import SqlStore
from tests.deployment import OWNER, Deployment, deployed

HEAD = """
import asyncio
from pipelines import *

class CI(Pipeline):
    triggers = [on_manual()]

    async def run(self, event, step):
"""


def pipeline(body: str) -> dict[str, str]:
    lines = body.strip().splitlines()
    return {".ci/pipeline.py": HEAD + "".join(f"        {line}\n" for line in lines)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Deployment]:
    with deployed(tmp_path / "data", cache=read_config().cache) as made:
        yield made


def run(world: Deployment, **what: str) -> RunId:
    run_id = world.start(**what)
    world.work()
    return run_id


def test_parallel_steps_that_change_the_same_file_are_told_apart(world: Deployment) -> None:
    world.push(
        pipeline(
            """
await asyncio.gather(step.sh("one", "echo 1 > one; echo 1 > both"),
                     step.sh("two", "echo 2 > two; echo 2 > both"))
"""
        )
    )
    done = world.run(run(world))
    assert (done.state, done.error.type if done.error else "") == ("failed", "CommandFailed")
    assert done.error is not None
    assert "'two' and 'one' ran at the same time, and both changed both" in done.error.message


def test_a_log_says_once_why_its_command_was_refused_or_ended(world: Deployment) -> None:
    world.push(
        pipeline(
            """
for name, how in (("refused", {"image": "python"}), ("ended", {"timeout": "1 s"})):
    try:
        await step.sh(name, "exec sleep 60", **how)
    except CommandFailed:
        pass
"""
        )
    )
    run_id = run(world)
    (refused,) = world.log(run_id, "sh:refused")
    assert refused.startswith("The command asks for image python, but")
    why, last = world.log(run_id, "sh:ended")
    assert why == "The command ran longer than its timeout of 1 s (timeout= of step.sh)."
    assert last.startswith("ended after 1.")


def test_the_layers_of_parallel_steps_join(world: Deployment) -> None:
    world.push(
        pipeline(
            """
await asyncio.gather(step.sh("one", "echo 1 > one"), step.sh("two", "echo 2 > two"))
return (await step.sh("both", "cat one two")).output_tail
"""
        )
    )
    assert world.run(run(world)).output == "1\n2\n"


@pytest.mark.anyio
async def test_artifacts_are_listed_and_downloaded_by_api_and_page(world: Deployment) -> None:
    world.push(
        pipeline(
            """
await step.sh("build", "mkdir dist; echo '<b>wheel</b>' > 'dist/ä 1.html'", artifacts=["dist"])
await step.sh("test", "echo 1 > junit.xml; exit 1", reports=["*.xml"])
"""
        )
    )
    run_id = run(world)
    front = create_asgi(world.platform, acting_as=OWNER)
    _, cookie = world.platform.identity.sessions.issue(UserId(world.person("ada").id))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(front), base_url="http://localhost", cookies={COOKIE: cookie}
    ) as client:
        listed = (await client.get(f"/api/v1/runs/{run_id}/artifacts")).json()["artifacts"]
        assert [(one["step"], one["path"], one["size"], one["report"]) for one in listed] == [
            ("sh:build", "dist/ä 1.html", 13, False),
            ("sh:test", "junit.xml", 2, True),
        ]
        page = await client.get(f"/runs/{run_id}")
        for address in (listed[0]["url"], f"/runs/{run_id}/artifacts/{listed[0]['sha256']}"):
            assert address.removeprefix("http://localhost/api/v1") in page.text
            found = await client.get(address)
            assert found.text == "<b>wheel</b>\n"
            assert found.headers["content-type"] == "application/octet-stream"
            assert "filename*=UTF-8''%C3%A4%201.html" in found.headers["content-disposition"]
        other = run(world)
        gone = await client.get(f"/api/v1/runs/{other}/artifacts/{'0' * 64}")
        assert gone.status_code == 404


@pytest.mark.anyio
async def test_the_log_of_a_command_that_ended_is_one_object_and_downloads_the_same(
    world: Deployment,
) -> None:
    world.push(pipeline('await step.sh("count", "seq 1 50000; exit 1", retries=Retry(1, "1 s"))'))
    run_id = run(world)
    world.advance(2)
    assert world.run(run_id).state == "failed"
    assert isinstance(world.platform.store, SqlStore)
    with world.platform.store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM log_chunks").scalar() == 0
    front = create_asgi(world.platform, acting_as=OWNER)
    _, cookie = world.platform.identity.sessions.issue(UserId(world.person("ada").id))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(front), base_url="http://localhost", cookies={COOKIE: cookie}
    ) as client:
        raw = (await client.get(f"/runs/{run_id}/raw/sh:count")).text.split("\n")
        found = (await client.get(f"/runs/{run_id}/logs/sh:count?q=49999")).text
    counted = [str(number) for number in range(1, 50_001)]
    assert raw[:50_000] == counted
    assert raw[50_001] == "attempt 2"
    assert raw[50_002:100_002] == counted
    assert "49999" in found


@pytest.mark.parametrize(
    "setting", [{"command_hosts": "http://x"}, {"command_private_networks": "10.0.0.1/8"}]
)
def test_a_setting_of_the_network_that_cannot_be_read_is_named(
    setting: dict[str, str], tmp_path: Path
) -> None:
    with (
        pytest.raises(InvalidRequest, match="SLUICE_COMMAND_HOSTS, SLUICE_COMMAND_PRIVATE"),
        deployed(tmp_path, cache=read_config().cache, command_network=True, **setting),
    ):
        pass


MEMOISED = """
made = await step.sh("build", "echo building; cat src >> log; echo n=1 >> $CI_OUTPUT", cache=CACHE)
seen = await step.sh("look", "cat log")
return [made.from_run, made.outputs, seen.output_tail]
"""


def memoised(cache: str = "True", **files: str) -> dict[str, str]:
    return {**pipeline(MEMOISED.replace("CACHE", cache)), "src": "s\n", **files}


def test_unchanged_work_is_not_done_twice(world: Deployment) -> None:
    world.push(memoised())
    first, second = run(world), run(world)
    assert world.run(first).output == [None, {"n": "1"}, "s\n"]
    assert world.run(second).output == [1, {"n": "1"}, "s\n"]
    said = world.log(second, "sh:build")
    assert said[0] == "from run #1: nothing that this command depends on has changed"
    assert said[1:] == ["building"]


def test_any_change_of_the_files_counts_unless_inputs_are_named(world: Deployment) -> None:
    world.push(memoised())
    run(world)
    world.push({"other": "new"})
    assert world.run(run(world)).output[0] is None
    world.push(memoised('Cache(inputs=["src"])'))
    run(world)
    world.push({"other": "newer"})
    assert world.run(run(world)).output[0] == 3
    world.push({"src": "changed\n"})
    assert world.run(run(world)).output == [None, {"n": "1"}, "changed\n"]


def test_a_branch_reads_its_own_results_and_those_of_the_default_branch(world: Deployment) -> None:
    world.push(memoised())
    run(world)
    world.push(
        {"src": "of the branch\n", **pipeline(MEMOISED.replace("CACHE", "True"))}, branch="b"
    )
    own = world.run(run(world, ref="b"))
    assert own.output[0] is None
    assert world.run(run(world, ref="b")).output[0] == own.number
    world.push({"src": "of the branch\n"})
    assert world.run(run(world)).output[0] is None, "main takes nothing from a branch"


def test_a_cache_directory_is_filled_by_earlier_runs_and_no_sweep_takes_it(
    world: Deployment,
) -> None:
    script = "touch ~/.cache/tool/n; cat ~/.cache/tool/n; echo x >> ~/.cache/tool/n"
    body = f"""
return (await step.sh("use", "{script}", cache_dirs={{"tool": "~/.cache/tool"}})).output_tail
"""
    world.push(pipeline(body))
    assert [world.run(run(world)).output for _ in range(3)] == ["", "x\n", "x\nx\n"]
    world.push({**pipeline(body), "more": "1"}, branch="b")
    assert world.run(run(world, ref="b")).output == "x\nx\nx\n", "as the default branch left it"
    assert world.run(run(world)).output == "x\nx\nx\n", "a branch changes its own"
    layers = StoredLayers(world.platform.objects)
    stored = {digest for page in layers.stored(before_ms=1 << 62) for digest in page}
    used = world.platform.store.runs.layers_used(sorted(stored))
    assert used, "what the two refs have by now; it is one, if their files are of one second"
    assert len(stored - used) == 3, "the others may go"
    layers.remove(sorted(stored - used), before_ms=1 << 62)
    assert world.run(run(world, ref="b")).output == "x\nx\nx\nx\n"
