"""The playground: an editor, and the run that its code became. Complete without JavaScript.

The page and its form; what may run, and where, is the command's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from ci_platform.commands.playground import repository_name
from ci_platform.commands.repositories import PLAYGROUND
from ci_platform.errors import NotFound, RequestError
from ci_platform.model import Actor, Json, RunId
from ci_platform.queries import Queries
from web.inputs import read_json
from web.run_pages import RunPage, run_page
from web.visit import PLAYGROUND as PLAYGROUND_PATH
from web.visit import Person, Posted, to

router = APIRouter()
PATH = PLAYGROUND_PATH
PIPELINE_FILE = ".ci/pipeline.py"
ROWS_MIN, ROWS_MAX = 16, 40  # of the editor

EXAMPLE = """\
import random

from pipelines import Pipeline, Retry, WaitTimeout


class Playground(Pipeline):
    async def run(self, event, step):
        name = event.params.get("name", "world")

        def flaky():
            if random.random() < 0.5:
                raise RuntimeError("no luck this time")
            return f"hello {name}"

        greeting = await step.do("greet", flaky, retries=Retry(limit=8, delay="1 s"))
        await step.sleep("think about it", "3 seconds")

        try:
            color = await step.wait_for_event("ask for a color", type="color", timeout="1 hour")
        except WaitTimeout:
            return greeting

        await step.approval("paint it", allow_self=True, timeout="1 hour")
        script = 'echo "painting it $COLOR"'  # from the environment: a payload is a stranger's
        await step.sh("paint", script, env={"COLOR": str(color.payload)})
        return {"greeting": greeting, "color": color.payload}
"""
EXAMPLE_PARAMS = '{"name": "world"}'


@dataclass(frozen=True, slots=True)
class PlaygroundPage:
    code: str
    params: str
    rows: int
    problem: str = ""
    repository: str = ""  # its full name, once there is one
    run: RunPage | None = None


@router.get(PATH)
def playground(
    visit: Person,
    run: Annotated[str, Query(max_length=200)] = "",
    step: Annotated[str, Query(max_length=1000)] = "",
) -> Response:
    queries = visit.site.queries
    found = None
    code, params = EXAMPLE, EXAMPLE_PARAMS
    if run:
        now_ms = queries.clock.now_ms()
        found = run_page(queries, visit.actor, RunId(run), step=step, now_ms=now_ms)
        if found.repository.owner != PLAYGROUND:
            raise NotFound("this run is not of the playground")
        repository = found.repository
        file = queries.file(
            visit.actor, repository.owner, repository.name, PIPELINE_FILE, found.run.commit
        )
        code = file.content.decode("utf-8", "replace")
        params = json.dumps(found.params, ensure_ascii=False)
    return visit.html("playground.html", _page(queries, visit.actor, code, params, run=found))


@router.post(PATH)
def start(visit: Person, form: Posted) -> Response:
    """Run the code, and lead to the page that shows it; what is wrong is said beside the code."""
    code, params = form.text("code"), form.text("params")
    try:
        run = visit.site.commands.playground.run(visit.actor, code, _params(params))
    except RequestError as refusal:
        page = _page(
            visit.site.queries, visit.actor, code, params, problem=refusal.detail, run=None
        )
        return visit.html("playground.html", page, status=refusal.status)
    return to(f"{PATH}?run={run.id}#run")


def _params(text: str) -> Json:
    return read_json(text, "params") if text.strip() else {}


def _page(
    queries: Queries,
    actor: Actor,
    code: str,
    params: str,
    *,
    problem: str = "",
    run: RunPage | None,
) -> PlaygroundPage:
    try:
        repository = queries.repository(actor, PLAYGROUND, repository_name(actor)).full_name
    except NotFound:
        repository = ""
    code = code.replace("\r\n", "\n")
    return PlaygroundPage(
        code=code,
        params=params,
        rows=max(ROWS_MIN, min(ROWS_MAX, code.count("\n") + 2)),
        problem=problem,
        repository=repository,
        run=run,
    )
