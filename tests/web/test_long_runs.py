"""The page of a run that has very much of everything stays one that a browser can show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ci_platform.model import StepKey, StepKind
from ci_platform.shell import Artifact
from tests.web.browser import Browser
from tests.web.sample import NOW_MS
from tests.web.stage import Stage, approval
from web.patterns import READER, sample_approval, sample_run, sample_step, sample_view
from web.run_pages import ARTIFACTS_SHOWN_MAX, GATES_SHOWN_MAX, STEPS_SHOWN_MAX, run_context

MORE = 7


def test_a_page_shows_so_many_steps_files_and_approvals_and_says_how_many_more_there_are() -> None:
    run = sample_run(NOW_MS)
    steps = [sample_step(NOW_MS, f"s{n}") for n in range(STEPS_SHOWN_MAX + MORE)]
    closed = [sample_approval(run, NOW_MS, "approved") for _ in range(GATES_SHOWN_MAX + MORE - 1)]
    view = replace(
        sample_view(NOW_MS, run, steps, approvals=[*closed, sample_approval(run, NOW_MS)]),
        artifacts=[
            Artifact(StepKey(StepKind.SH, "s0"), f"f{n}", 1, "0" * 64, False)
            for n in range(ARTIFACTS_SHOWN_MAX + MORE)
        ],
    )
    page = run_context(view, READER, log=None, now_ms=NOW_MS)
    assert (len(page.steps), page.steps_hidden) == (STEPS_SHOWN_MAX, MORE)
    assert page.steps[-1].step == steps[-1], "the last ones"
    assert (len(page.artifacts), page.artifacts_hidden) == (ARTIFACTS_SHOWN_MAX, MORE)
    assert (len(page.approvals), page.approvals_hidden) == (GATES_SHOWN_MAX, MORE)
    assert page.approvals[0].approval.outcome is None, "those that ask for something come first"


@pytest.mark.anyio
async def test_a_run_with_many_gates_says_that_there_are_more(stage: Stage) -> None:
    gates = [approval(f"gate {n}") for n in range(GATES_SHOWN_MAX + 1)]
    run = stage.work(stage.run(), *gates)
    async with Browser(stage.app) as browser:
        await browser.sign_in("ana")
        page = (await browser.get(f"/runs/{run.id}")).page
    hint = page.one(id="run-approvals").one("p", class_="hint").text
    assert hint == "1 approval more: each has a page as a step."
