"""Every page over invented values (sample.py): headings, links, empty states, escaping, headers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ci_platform.model import LogLine, RunState, StepState
from ci_platform.scheduling import Hold, Place
from tests.web.browser import Answer, Browser
from tests.web.html import Page
from tests.web.sample import HOSTILE, NOW_MS, sample_site
from web.logs import Part, folded, log_end
from web.pages import run_row
from web.patterns import REPOSITORY, sample_lines, sample_run, sample_step
from web.render import Frame, Renderer

pytestmark = pytest.mark.anyio

PAGES = {
    "/": "Home",
    "/ana/hello": "ana/hello",
    "/ana/empty": "ana/empty",
    "/runs/run_queued_20": "#20 Greet people by their first name",
    "/runs/run_running_19": "#19 Greet people by their first name",
    "/runs/run_waiting_18": "#18 Greet people by their first name",
    "/runs/run_paused_17": "#17 Greet people by their first name",
    "/runs/run_passed_16": "#16 Greet people by their first name",
    "/runs/run_failed_15": "#15 Greet people by their first name",
    "/runs/run_errored_14": "#14 Greet people by their first name",
    "/runs/run_cancelled_13": "#13 Greet people by their first name",
    "/runs/run_hostile": "alert(1)",
    "/runs/run_sleeping": "#11 Greet people by their first name",
    "/runs/run_failed_15/steps/sh:unit": "unit",
    "/runs/run_waiting_18/steps/approval:deploy%20to%20production": "deploy to production",
    "/runs/run_failed_15/journal": "Journal of #15",
    "/runs/run_hostile/journal": "Journal of #12",
    "/runs/run_failed_15/logs/sh:unit": "Log of unit",
    "/runs/run_failed_15/logs/$run": "Log of the run",
    "/system": "System",
    "/tokens": "Tokens",
    "/-/patterns": "Patterns",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    """Each page once: they are only looked at."""

    async def collect() -> dict[str, Answer]:
        async with Browser(sample_site()) as browser:
            signed = await browser.sign_in()
            assert signed.status == 303
            return {path: await browser.get(path) for path in PAGES}

    return asyncio.run(collect())


@pytest.fixture(scope="module")
def pages(answers: dict[str, Answer]) -> dict[str, Page]:
    return {path: answer.page for path, answer in answers.items()}


def hrefs(page: Page) -> Iterator[str]:
    for element in page.all():
        for name in ("href", "src", "action"):
            if element.get(name):
                yield element.get(name)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_one_heading_and_says_it(path: str, pages: dict[str, Page]) -> None:
    assert PAGES[path] in pages[path].heading
    assert pages[path].title.endswith("Sluice")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_leads_only_to_this_site(path: str, pages: dict[str, Page]) -> None:
    for href in hrefs(pages[path]):
        assert href.startswith(("/", "#", "?")) and not href.startswith("//"), href


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_nothing_inline(path: str, pages: dict[str, Page]) -> None:
    for element in pages[path].all():
        assert not element.get("style"), element
        assert not [name for name in element.attributes if name.startswith("on")], element
        assert element.tag != "style"
        assert element.tag != "script" or (element.get("src") and not element.text)


@pytest.mark.parametrize("path", PAGES)
def test_ids_are_unique_and_labels_lead_somewhere(path: str, pages: dict[str, Page]) -> None:
    page = pages[path]
    ids = [one.get("id") for one in page.all() if one.get("id")]
    assert len(ids) == len(set(ids)), sorted(one for one in ids if ids.count(one) > 1)
    assert not [one for one in ids if " " in one]
    for element in page.all():
        for name in ("for", "aria-labelledby"):
            if element.get(name):
                assert element.get(name) in ids, element.get(name)


@pytest.mark.parametrize("path", PAGES)
def test_every_field_has_a_label(path: str, pages: dict[str, Page]) -> None:
    page = pages[path]
    labelled = {one.get("for") for one in page.all("label")}
    wrapped = {id(inner) for label in page.all("label") for inner in label.walk()}
    for field in page.all("input") + page.all("select") + page.all("textarea"):
        if field.get("type") != "hidden" and not field.get("aria-label"):
            assert field.get("id") in labelled or id(field) in wrapped, field


@pytest.mark.parametrize("path", PAGES)
def test_every_form_that_changes_something_is_protected(path: str, pages: dict[str, Page]) -> None:
    for form in pages[path].all("form"):
        if form.get("method") == "post":
            assert form.one("input", name="csrf").get("value"), form.get("action")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_can_be_read_without_a_pointer_or_a_screen(
    path: str, pages: dict[str, Page]
) -> None:
    page = pages[path]
    assert page.one("html").get("lang") == "en"
    assert page.all("a")[0].get("href") == "#main"
    assert page.one("main").get("id") == "main"
    assert page.one(id="announcer").get("aria-live") == "polite"
    for table in page.all("table"):
        assert table.get("aria-label") and table.all("th", scope="col")
    for image in page.all("svg"):
        assert image.get("aria-hidden") == "true"
    levels = [int(one.tag[1]) for one in page.all() if re.fullmatch("h[1-6]", one.tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("path", PAGES)
def test_times_are_exact_to_machines(path: str, pages: dict[str, Page]) -> None:
    for time in pages[path].all("time"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time.get("datetime"))
        assert time.get("title").endswith("UTC")


@pytest.mark.parametrize("path", PAGES)
def test_answers_carry_the_security_headers(path: str, answers: dict[str, Answer]) -> None:
    headers = answers[path].response.headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/", "/ana/hello", "/runs/run_hostile", "/runs/run_hostile/journal"],
)
def test_hostile_text_stays_text(path: str, pages: dict[str, Page]) -> None:
    page = pages[path]
    assert "<script>alert(1)</script>" in page.text
    assert "<script>alert" not in page.html
    assert 'alert(1)"' not in page.html.replace('alert(1)&#34;"', "")
    assert len(page.all("script")) == 1


async def test_hostile_steps_have_their_own_pages() -> None:
    async with Browser(sample_site()) as browser:
        await browser.sign_in()
        run = (await browser.get("/runs/run_hostile")).page
        (link,) = [one for one in run.links if "/steps/" in one and "script" in one]
        step = await browser.get(link)
        assert step.status == 200
        assert "<script>alert(1)</script>" in step.page.heading
        log = await browser.get(link.replace("/steps/", "/logs/"))
        row = log.page.one("ol", class_="log").one("li")
        assert row.one("code").text.startswith("<script>alert(1)</script>")
        assert "U+202E" in row.text
        assert row.one("a").get("href") == f"#{row.get('id')}"
        raw = await browser.get(link.replace("/steps/", "/raw/"))
        assert raw.response.text == f"\x1b[31m{HOSTILE}\x1b[0m\n"
        assert raw.response.headers["content-type"] == "text/plain; charset=utf-8"
        disposition = raw.response.headers["content-disposition"]
        assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]+"', disposition)


# --- what single pages say ------------------------------------------------------------------------


def test_home_says_what_needs_the_reader_first(pages: dict[str, Page]) -> None:
    headings = [one.text for one in pages["/"].one("main").all("h2")]
    expected = ["Waiting for you", "Running", "Newly failing", "Last finished", "Repositories"]
    assert headings == expected
    assert pages["/"].form("/runs/run_waiting_18/approvals/deploy%20to%20production")
    assert "No worker takes runs" in pages["/"].one(class_="banner").text


def test_a_status_is_a_word_and_a_shape(pages: dict[str, Page]) -> None:
    page = pages["/-/patterns"]
    shapes = set()
    for state in RunState:
        found = page.all("span", class_="status", data_state=state.value)
        assert found, state
        word = "platform error" if state is RunState.ERRORED else state.value
        assert found[0].text == word
        shapes.add(found[0].one("use").get("href"))
    assert len(shapes) == len(RunState)
    assert {f"#{one.get('id')}" for one in page.all("symbol")} >= shapes


def test_patterns_show_every_component_in_every_state(pages: dict[str, Page]) -> None:
    page = pages["/-/patterns"]
    outcomes = {one.get("data-outcome") for one in page.all(class_="approval")}
    assert outcomes == {"open", "approved", "rejected", "expired", "cancelled"}
    steps = {
        row.one(class_="status").get("data-state") for row in page.one(class_="steps").all("tr")[1:]
    }
    assert steps == {"queued", "running", "waiting", "passed", "failed", "cancelled"}
    assert len(page.all(class_="log-box")) == 4
    assert page.all(class_="empty") and page.all(class_="error") and page.all(class_="problem")
    kinds = {one.get("type") for one in page.all("input")}
    assert {"text", "number", "checkbox"} <= kinds and page.all("select")


def test_a_run_shows_its_steps_and_the_log_worth_reading(pages: dict[str, Page]) -> None:
    page = pages["/runs/run_failed_15"]
    rows = page.one("table", class_="steps").all("tr")[1:]
    assert [row.all("a")[0].text for row in rows] == ["lint", "build", "unit"]
    assert rows[2].get("aria-current") == "true"
    assert "exit code 1" in rows[2].text and "attempt 2" in rows[2].text
    assert page.one(id="log-title").text == "Log of unit"
    assert page.one(class_="log-end").text == "failed, exit code 1, 42s"
    assert page.one(class_="error").text.startswith("CommandFailed: pytest -q ended")
    assert page.one(id="run").get("data-live") == ""
    assert "/runs/run_failed_15?step=%24run#log" in page.links
    assert page.one(id="log").get("data-tail") == ""
    assert "/runs/run_errored_14" in page.links and "/runs/run_passed_16" in page.links


def test_a_live_run_says_where_its_streams_are(pages: dict[str, Page]) -> None:
    page = pages["/runs/run_running_19"]
    assert page.one(id="run").get("data-live") == "/runs/run_running_19/live?after=17"
    assert page.one(id="log").get("data-tail") == "/runs/run_running_19/tail/sh:unit"
    assert page.one(id="log").get("data-after") == "7"
    assert page.one("link", rel="icon").get("href") == "/-/icon/running.svg"
    assert page.title.startswith("running · ana/hello #19")


def test_a_waiting_run_says_for_what_since_when_and_until_when(pages: dict[str, Page]) -> None:
    first, second = pages["/runs/run_sleeping"].one(class_="waits").all("li")
    assert first.text == (
        "waiting for an event of type dns-ready in “dns”, since 1 minute ago, until in 1 hour "
        "at the latest"
    )
    assert second.text.startswith("asleep in “cool down”, since 1 minute ago")


def test_an_approval_says_everything_before_it_is_given(pages: dict[str, Page]) -> None:
    panel = pages["/runs/run_waiting_18"].one("section", class_="approval")
    text = panel.text
    for wanted in (
        "Approval wanted: deploy to production",
        "CI goes on with the step after",
        "8f3ad0c2 on main",
        "ben (push)",
        "4 minutes ago",
        "in 7 days",
        "every maintainer; not the person who caused the run",
        "Comment (optional",
    ):
        assert wanted in text, wanted
    assert [one.text for one in panel.all("button")] == ["Approve deploy to production", "Reject"]


def test_afterwards_the_panel_is_the_record(pages: dict[str, Page]) -> None:
    panel = pages["/runs/run_passed_16"].one("section", class_="approval")
    assert "Approved: deploy to production" in panel.text
    assert "cleo approved 1 minute ago by page Checked the dashboards." in panel.text
    assert not panel.all("button")


def test_an_errored_run_says_whose_fault_it_is_and_leads_to_the_entry(
    pages: dict[str, Page],
) -> None:
    page = pages["/runs/run_errored_14"]
    assert "The platform failed to run this, not your code." in page.text
    assert "/runs/run_errored_14/journal#e17" in page.links


def test_cancel_and_abort_explain_their_difference(pages: dict[str, Page]) -> None:
    sheet = pages["/runs/run_running_19"].one("details", class_="menu")
    assert "starts no new steps" in sheet.text and "rollback handlers" in sheet.text
    assert [one.text for one in sheet.all("button")] == ["Cancel run #19", "Abort and roll back"]
    assert sheet.one("summary").get("aria-keyshortcuts") == "Shift+A"


def test_a_step_says_its_error_before_its_attempts_and_its_log(pages: dict[str, Page]) -> None:
    page = pages["/runs/run_failed_15/steps/sh:unit"]
    assert "sluice debug run_failed_15 unit" in page.text
    places = [page.text.index(one) for one in ("CommandFailed", "2 attempts", "Log of unit")]
    assert places == sorted(places)
    tabs = page.one("nav", aria_label="Attempts").all("a")
    assert [one.get("href") for one in tabs] == ["?attempt=1", "?attempt=2"]
    assert [one.get("aria-current") for one in tabs] == ["", "page"]


def test_the_journal_shows_every_entry_with_an_anchor(pages: dict[str, Page]) -> None:
    page = pages["/runs/run_failed_15/journal"]
    rows = page.one("table", class_="journal").all("tr")[1:]
    assert [row.get("id") for row in rows] == [f"e{n}" for n in range(1, 8)]
    assert "/runs/run_failed_15/journal.json" in page.links
    assert "/runs/run_failed_15/steps/sh:unit" in page.links


def test_log_lines_have_anchors_of_their_step(pages: dict[str, Page]) -> None:
    rows = pages["/runs/run_failed_15/logs/sh:unit"].one("ol", class_="log").all("li")
    assert [row.get("id") for row in rows[:2]] == ["Lsh:unit:1", "Lsh:unit:2"]
    assert rows[1].one("a").get("href") == "#Lsh:unit:2"
    assert rows[5].get("data-stream") == "stderr"


def test_an_empty_repository_says_exactly_what_to_type(pages: dict[str, Page]) -> None:
    empty = pages["/ana/empty"].one(class_="empty")
    assert "git remote add sluice http://ci.example/ana/empty.git" in empty.text
    assert "git push sluice main" in empty.text
    assert "from pipelines import Pipeline, on_push" in empty.text
    assert not pages["/ana/empty"].all("form", role="search")


def test_a_pipeline_with_inputs_has_a_start_form(pages: dict[str, Page]) -> None:
    form = pages["/ana/hello"].form("/ana/hello/runs")
    assert form.fields["pipeline"] == "Release"
    assert form.fields["ref"] == "main"
    assert form.fields["input.Release.target"] == "staging"
    assert form.fields["input.Release.version"] == ""


async def test_filters_are_in_the_address() -> None:
    async with Browser(sample_site()) as browser:
        await browser.sign_in()
        page = (await browser.get("/ana/hello?state=waiting&branch=main")).page
        rows = page.one("table", class_="runs").all("tr")[1:]
        assert [row.all("a")[0].text for row in rows] == ["#18", "#11"]
        assert page.one(id="filter-branch").get("value") == "main"
        assert "/ana/hello?state=waiting&branch=main&cursor=next+page" in page.links
        none = (await browser.get("/ana/hello?branch=nothing&cursor=x")).page
        assert "No run matches." in none.text and "/ana/hello" in none.links
        refused = await browser.get("/ana/hello?state=sleepy")
        assert refused.status == 400 and "No run is 'sleepy'; there are queued" in refused.page.text


async def test_a_fresh_instance_says_what_to_do_next() -> None:
    async with Browser(sample_site(empty=True)) as browser:
        door = (await browser.get("/sign-in")).page
        assert "Open the one-time link that the server printed" in door.text
        setup = (await browser.get("/setup/slu_secret")).page
        assert setup.heading == "Set up Sluice"


async def test_a_log_can_be_searched_without_its_colours() -> None:
    async with Browser(sample_site()) as browser:
        await browser.sign_in()
        path = "/runs/run_failed_15/logs/sh:unit"
        page = (await browser.get(f"{path}?q=1+FAILED,+213")).page
        assert [one.get("id") for one in page.one(class_="log").all("li")] == ["Lsh:unit:7"]
        assert "1 line found" in page.text and path in page.links
        none = (await browser.get(f"{path}?q=zebra")).page
        assert "No line has this." in none.text
        part = (await browser.get(f"{path}?before=4")).page
        assert len(part.one(class_="log").all("li")) == 3


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/nobody/here", 404, "No repository has this name, or it is not yours to see."),
        ("/runs/run_none", 404, "No run has this id; it may have been pruned."),
        ("/runs/run_failed_15/steps/sh:none", 404, "Run #15 has no step 'sh:none'."),
        ("/runs/run_failed_15/logs/sh:..%2F..%2Fx", 404, "Run #15 has no step 'sh:../../x'."),
        ("/runs/run_failed_15?step=sh:none", 404, "Run #15 has no step 'sh:none'."),
        ("/ana/hello/no/such", 404, "There is no such page, or it is not yours to see."),
        ("/runs/run_failed_15/journal?after=-1", 400, "After: Input should be greater"),
        ("/runs/run_failed_15/journal?after=x", 400, "After: Input should be a valid integer"),
        ("/-/icon/none.svg", 404, "There is no icon 'none'."),
        ("/static/none.css", 404, "There is no such page"),
    ],
)
async def test_a_problem_is_a_page_with_a_sentence_and_a_way_on(
    path: str, status: int, sentence: str
) -> None:
    async with Browser(sample_site()) as browser:
        await browser.sign_in()
        answer = await browser.get(path)
        assert answer.status == status
        assert sentence in answer.page.text
        assert "/" in answer.page.links
        assert "default-src 'none'" in answer.response.headers["content-security-policy"]


async def test_static_files_may_be_kept_for_good() -> None:
    async with Browser(sample_site()) as browser:
        page = (await browser.get("/sign-in")).page
        for href in (page.one("link", rel="stylesheet").get("href"), page.one("script").get("src")):
            answer = await browser.get(href)
            assert answer.status == 200
            assert answer.response.headers["cache-control"] == "public, max-age=31536000, immutable"
        icon = await browser.get("/-/icon/failed.svg")
        assert icon.response.headers["content-type"] == "image/svg+xml"
        assert "<svg" in icon.response.text and "symbol" not in icon.response.text


# --- colours --------------------------------------------------------------------------------------

CSS = (Path(__file__).parent.parent.parent / "web/static/app.css").read_text(encoding="utf-8")


def colours(theme: int) -> dict[str, str]:
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
    return {name: (light, dark)[theme] for name, light, dark in found}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast_in_both_themes(theme: int) -> None:
    palette = colours(theme)
    states = [state.value for state in RunState]
    pairs = [
        (text, ground)
        for text in ("text", "quiet", "accent", *states)
        for ground in ("page", "surface", "sunken")
    ]
    pairs += [(f"fg{n}", "log") for n in range(9)] + [("text", f"bg{n}") for n in range(8)]
    pairs += [("text", "mark"), ("quiet", "mark"), ("on-accent", "accent"), ("surface", "errored")]
    for text, ground in pairs:
        ratio = contrast(palette[text], palette[ground])
        assert ratio >= 4.5, f"{text} on {ground}: {ratio:.2f}"


def test_a_log_says_once_how_its_command_ended() -> None:
    step = replace(sample_step(NOW_MS, "unit", StepState.FAILED), ended_ms=NOW_MS)
    run = sample_run(NOW_MS, RunState.FAILED)
    lines = sample_lines(NOW_MS)[:1]
    assert log_end(run, step, lines).startswith("failed, exit code 1, ")
    note = replace(lines[0], stream="note", text="exited with code 1 after 3.1 s")
    assert log_end(run, step, [*lines, note]) == "failed"


def grouped(*texts: str) -> list[Part]:
    """Lines with `(` before a group's title and `)` for its end, folded."""
    streams = {"(": "group", ")": "endgroup"}
    return folded(
        [
            LogLine(number, NOW_MS, streams.get(text[:1], "stdout"), text.strip("()"))
            for number, text in enumerate(texts, 1)
        ]
    )


def told(parts: list[Part]) -> list[object]:
    return [
        part.number
        if isinstance(part, LogLine)
        else (part.head.number, *[line.number for line in part.lines], part.done)
        for part in parts
    ]


def test_lines_of_a_group_fold_and_none_is_lost() -> None:
    assert told(grouped("a", "(one", "b", "c", ")", "d")) == [1, (2, 3, 4, 5, True), 6]
    assert told(grouped("(one", "(two", "b", ")", ")", "c")) == [(1, True), (2, 3, 4, True), 5, 6]
    assert told(grouped("b", ")", "(one", "c")) == [1, 2, (3, 4, False)]
    assert told([]) == []


def test_a_group_is_closed_once_its_end_is_known_and_each_of_its_lines_has_an_address() -> None:
    render = Renderer().part
    frame = Frame(None, "", NOW_MS)
    page = Page(render("rows", frame, "sh:a", grouped("(one", "b", ")", "(two", "c")))
    first, second = page.all("details")
    assert ["open" in one.attributes for one in (first, second)] == [False, True]
    assert [one.get("id") for one in page.all("summary")] == ["Lsh:a:1", "Lsh:a:4"]
    assert [one.get("id") for one in page.all("li") if one.get("id")] == [
        "Lsh:a:2",
        "Lsh:a:3",
        "Lsh:a:5",
    ]


def test_a_queued_run_in_a_list_says_whom_it_waits_for() -> None:
    run = sample_run(NOW_MS, RunState.QUEUED)
    grouped = replace(run, hold=Hold.GROUP, place=Place("deploy"))
    assert run_row(grouped, REPOSITORY).note == "waits for group deploy"
    limited = replace(run, hold=Hold.LIMIT)
    assert run_row(limited, REPOSITORY).note == "waits for the limit of its repository"
    assert run_row(run, REPOSITORY).note == ""
