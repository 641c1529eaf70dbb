"""How soon a log line that a command writes is seen in a browser: real chromium, real page."""

from __future__ import annotations

import re
import shutil

from playwright.sync_api import Page, sync_playwright

from bench.measure import Result, latency, missing
from bench.server import Server, serving

LINES = 60
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PIPELINE = f"""
from pipelines import Pipeline, on_manual

class Bench(Pipeline):
    triggers = [on_manual()]
    async def run(self, event, step):
        await step.sleep("until the page is open", 2)
        await step.sh("clock", "for n in $(seq {LINES}); do date +%s%N; sleep 0.1; done")
"""
WATCH = """
window.seen = [];
new MutationObserver((changes) => {
  const now = Date.now();
  for (const change of changes)
    for (const node of change.addedNodes)
      for (const found of (node.textContent || "").matchAll(/(\\d{19})\\s*$/gm))
        window.seen.push([found[1], now]);
}).observe(document.body, {childList: true, subtree: true});
"""


def log_latency() -> list[Result]:
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        return [missing("log line written to shown in the browser", "there is no chromium")]
    with serving() as server, sync_playwright() as playwright:
        server.create_repository("log", PIPELINE)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page()
        _sign_in(page, server)
        run_id = server.start("log")
        page.goto(f"{server.url}/runs/{run_id}")
        page.evaluate(WATCH)
        server.wait(run_id, seconds=60)
        page.wait_for_timeout(500)
        seen: dict[str, int] = {}
        for text, at_ms in page.evaluate("window.seen"):
            seen.setdefault(text, at_ms)
        browser.close()
    delays = [max(0.0, at_ms - int(text) / 1e6) / 1e3 for text, at_ms in seen.items()]
    what = f"log line written to shown in the browser, {len(delays)} of {LINES} lines"
    return [latency(what, delays, bar_ms=500, p99_ms=500)] if delays else []


def _sign_in(page: Page, server: Server) -> None:
    """Make the first admin by the link that the server printed."""
    said = (server.data.parent / "serve.log").read_text()
    link = re.search(r"http\S+/setup/\S+", said)
    assert link is not None, said
    page.goto(link.group())
    page.get_by_label("Name").fill("bench")
    page.get_by_label("Password", exact=True).first.fill("correct horse battery")
    page.get_by_role("button", name="Create admin").click()
