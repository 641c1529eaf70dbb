"""A person with a browser in the playground: writes, runs, answers, and never reloads the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.integration.test_serve import serve
from tests.web.chromium import WAIT_MS, first_admin, picture

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


def test_a_person_tries_the_example_from_start_to_end(
    tmp_path: Path, chromium: Browser, guest_cache: Path
) -> None:
    with serve(tmp_path / "data") as server, first_admin(chromium, server) as page:
        page.get_by_role("link", name="Playground").click()
        expect(page.get_by_label("Pipeline", exact=True)).to_be_visible()
        picture(page, "playground")

        page.get_by_label("Params, as JSON").fill('{"name": "ana"}')
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page).to_have_url(re.compile(r"/playground\?run=run_"))
        page.evaluate("window.neverReloaded = true")
        head = page.locator("#run-head")
        event = page.get_by_role("region", name="Waits for an event: color")
        expect(event).to_be_visible(timeout=WAIT_MS)
        assert page.evaluate("window.neverReloaded"), "the page was loaded again"
        picture(page, "playground-event")
        event.get_by_label("Payload").fill('"green"')
        event.get_by_role("button", name="Send color").click()

        expect(page).to_have_url(re.compile(r"/playground\?run=run_"))
        gate = page.get_by_role("region", name="Approval wanted: paint it")
        expect(gate).to_be_visible(timeout=WAIT_MS)
        picture(page, "playground-approval")
        gate.get_by_role("button", name="Approve paint it").click()
        expect(page).to_have_url(re.compile(r"/playground\?run=run_"))
        expect(head).to_have_attribute("data-state", "passed", timeout=WAIT_MS)
        expect(page.get_by_text("painting it green", exact=True)).to_be_visible()
        picture(page, "playground-passed")
