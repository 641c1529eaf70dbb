"""JSON over HTTP, under /api/v1: a thin layer over commands and queries.

`create_api` makes the app; app.py mounts it. Routes only translate: what may be done, and what it
does, is decided below.
"""

from __future__ import annotations

from fastapi import FastAPI

from ci_platform.api import (
    artifacts,
    debugging,
    git,
    people,
    problems,
    remotes,
    repositories,
    runs,
    streams,
)
from ci_platform.api.bodies import LimitBody
from ci_platform.api.desk import Desk
from ci_platform.api.document import describe_errors
from ci_platform.api.headers import AnswerHeaders
from ci_platform.commands import Commands
from ci_platform.identity import Identity
from ci_platform.live import Live
from ci_platform.model import Actor
from ci_platform.queries import Queries

PREFIX = "/api/v1"
BODY_BYTES = 25 << 20


def create_api(
    commands: Commands,
    queries: Queries,
    identity: Identity,
    live: Live,
    *,
    body_bytes: int = BODY_BYTES,
    acting_as: Actor | None = None,
    way: str = "api",
) -> FastAPI:
    """The API as an app whose paths begin with /api/v1.

    `acting_as` is given by the command line, which needs no token for the deployment's own files.
    """
    app = FastAPI(
        title="Sluice",
        version="1",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.desk = Desk(
        commands=commands,
        queries=queries,
        identity=identity,
        live=live,
        base_url=commands.runs.parts.base_url,
        acting_as=acting_as,
        way=way,
    )
    problems.install(app)
    for part in (repositories, artifacts, debugging, git, remotes, runs, people, streams):
        app.include_router(part.router, prefix=PREFIX)
    describe_errors(app)
    app.add_middleware(LimitBody, bytes_max=body_bytes)
    app.add_middleware(AnswerHeaders)
    return app
