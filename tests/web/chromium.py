"""A person with a browser: real chromium, and whatever its console complains about is a failure.

SLUICE_SCREENSHOTS names a directory to keep pictures in.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.integration.test_serve import Serving

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
WAIT_MS = 60_000


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    path = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    assert path is not None, "no chromium here: `make test` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def first_admin(browser: Browser, server: Serving) -> Iterator[Page]:
    """The page of Ana, who has come by the one-time link of a new server."""
    link = re.search(r"http\S+/setup/\S+", server.errors())
    assert link is not None
    page = browser.new_page(color_scheme="light", viewport={"width": 1200, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.extend([said.text] * (said.type == "error")))
    page.set_default_timeout(WAIT_MS)
    page.goto(link.group())
    page.get_by_label("Name").fill("ana")
    page.get_by_label("Password", exact=True).first.fill("correct horse battery")
    page.get_by_role("button", name="Create admin").click()
    page.get_by_role("heading", level=1).wait_for()
    yield page
    assert problems == []
    page.close()


def picture(page: Page, name: str) -> None:
    directory = os.environ.get("SLUICE_SCREENSHOTS")
    if directory:
        page.screenshot(path=str(Path(directory) / f"{name}.png"), full_page=True)
