"""What pipeline files said of themselves, by code digest, so that none is asked twice."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import Description, ErrorInfo, Json, PipelineDescription, Resume, Trigger
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import DESCRIPTIONS

DESCRIPTIONS_KEPT = 20_000  # the newest ones; an older one is asked of the sandbox again

_GET = select(DESCRIPTIONS.c.description).where(DESCRIPTIONS.c.digest == bindparam("digest"))
_NEWEST = select(func.max(DESCRIPTIONS.c.n)).scalar_subquery()
_FORGET = DESCRIPTIONS.delete().where(DESCRIPTIONS.c.n <= _NEWEST - DESCRIPTIONS_KEPT)


class SqlDescriptionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, digest: str) -> Description | None:
        found = self._database.read(
            lambda connection: connection.execute(_GET, {"digest": digest}).scalar_one_or_none()
        )
        return None if found is None else description_of(unpack(found))

    def put(self, digest: str, description: Description) -> None:
        columns = {
            "digest": plain(digest, "digest"),
            "description": pack(asdict(description), "description"),
        }

        def work(connection: Connection) -> None:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            statement = insert(DESCRIPTIONS).on_conflict_do_update(
                index_elements=["digest"], set_={"description": columns["description"]}
            )
            connection.execute(statement, columns)
            connection.execute(_FORGET)

        self._database.write(work)


def description_of(data: Json) -> Description:
    error = data["error"]
    return Description(
        pipelines=tuple(_pipeline_of(one) for one in data["pipelines"]),
        error=None if error is None else ErrorInfo(**error),
        fetch=data.get("fetch"),
    )


def _pipeline_of(data: Json) -> PipelineDescription:
    fields = {**data, "resume": Resume(data["resume"])}
    fields["triggers"] = tuple(_trigger_of(one) for one in data["triggers"])
    return PipelineDescription(**fields)


def _trigger_of(data: Json) -> Trigger:
    lists = {name: tuple(data[name]) for name in ("branches", "tags", "paths")}
    return Trigger(**{**data, **lists})
