"""A person with a browser: signs in by the one-time link, watches a run live, approves it.

Real chromium, real server, real git client. The page is never reloaded.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.test_serve import Serving, serve
from tests.web.chromium import WAIT_MS, first_admin, picture

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

PIPELINE = """
from pipelines import Pipeline, on_push

class Deploy(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
        await step.sh("test", "for n in 1 2 3 4 5 6; do echo line $n; sleep 0.5; done")
        await step.approval("deploy to production", allow_self=True, timeout="7 days")
        await step.sh("deploy", "echo deployed")
"""
FOLDING = """
from pipelines import Pipeline, on_push

class Grouped(Pipeline):
    triggers = [on_push()]

    async def run(self, event, step):
        await step.sh(
            "test",
            "echo ::group::Install; for n in 1 2 3 4; do echo part $n; sleep 0.7; done;"
            " echo ::endgroup::; echo then; sleep 2; echo ::group::Check; echo wrong; exit 1",
        )
"""


def push(server: Serving, tree: Path, pipeline: str = PIPELINE) -> str:
    """Push a new repository with git. Returns the address that git is told of."""
    server.sluice("repo", "create", "acme/shop")
    token = server.sluice("token", "create", "--name", "git", "--scope", "admin")
    (tree / ".ci").mkdir(parents=True)
    (tree / ".ci" / "pipeline.py").write_text(pipeline)
    git = ["git", "-C", str(tree), "-c", "user.name=Ana", "-c", "user.email=ana@localhost"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    remote = server.url.replace("://", f"://ana:{token}@") + "/acme/shop.git"
    said = subprocess.run(
        [*git, "push", remote, "main"], check=True, capture_output=True, text=True
    ).stderr
    found = re.search(r"run #1 started, (http\S+)", said)
    assert found is not None, said
    return found.group(1)


def test_a_person_watches_a_run_and_approves_it_without_reloading(
    tmp_path: Path, chromium: Browser, guest_cache: Path
) -> None:
    with serve(tmp_path / "data") as server, first_admin(chromium, server) as page:
        page.goto(push(server, tmp_path / "tree"))
        page.evaluate("window.neverReloaded = true")
        head = page.locator("#run-head")
        expect(head).to_have_attribute("data-state", re.compile("queued|running"))
        expect(page.get_by_text("line 2", exact=True)).to_be_visible(timeout=WAIT_MS)
        assert page.get_by_text("line 6", exact=True).count() == 0, "the log came all at once"
        picture(page, "run-running")
        expect(page.get_by_text("line 6", exact=True)).to_be_visible(timeout=WAIT_MS)
        expect(head).to_have_attribute("data-state", "waiting", timeout=WAIT_MS)
        gate = page.get_by_role("region", name="Approval wanted: deploy to production")
        expect(gate).to_be_visible()
        assert page.evaluate("window.neverReloaded"), "the page was loaded again"
        picture(page, "run-waiting")

        gate.get_by_label("Comment").fill("looks good")
        gate.get_by_role("button", name="Approve deploy to production").click()
        page.wait_for_load_state("domcontentloaded")
        page.evaluate("window.neverReloaded = true")
        expect(head).to_have_attribute("data-state", "passed", timeout=WAIT_MS)
        assert page.evaluate("window.neverReloaded"), "the page was loaded again"
        expect(page.get_by_role("region", name="Approved: deploy to production")).to_contain_text(
            "looks good"
        )
        picture(page, "run-passed")
        page.goto(server.url)
        expect(page.get_by_role("link", name=re.compile("#1")).first).to_be_visible()
        picture(page, "home")


def test_groups_fold_when_they_have_ended_and_open_for_who_looks_for_a_line(
    tmp_path: Path, chromium: Browser, guest_cache: Path
) -> None:
    with serve(tmp_path / "data") as server, first_admin(chromium, server) as page:
        address = push(server, tmp_path / "tree", FOLDING)
        page.goto(address)
        part, title = page.get_by_text("part 1", exact=True), page.get_by_text("Install")
        expect(part).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text("then", exact=True)).to_be_visible(timeout=WAIT_MS)
        expect(title).to_be_visible()
        expect(part).to_be_hidden()
        title.click()
        expect(part).to_be_visible()
        expect(page.locator("#run-head")).to_have_attribute("data-state", "failed", timeout=WAIT_MS)
        expect(page.get_by_text("wrong", exact=True)).to_be_visible()

        page.goto(f"{address}/logs/sh:test")
        expect(part).to_be_hidden()
        expect(page.get_by_text("wrong", exact=True)).to_be_visible()
        picture(page, "log-groups")
        page.goto(f"{address}/logs/sh:test#Lsh:test:3")
        expect(page.get_by_text("part 2", exact=True)).to_be_visible()
        page.goto(f"{address}/logs/sh:test?q=part")
        expect(page.get_by_text("part 4", exact=True)).to_be_visible()
