"""The audit log: every change that a person or token made. Only ever added to."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import bindparam, select

from ci_platform.errors import InvalidRequest
from ci_platform.model import Json
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import AUDIT

LIST_MAX = 1000

_LIST = select(AUDIT).order_by(AUDIT.c.n.desc()).limit(bindparam("count"))


def check_limit(limit: int) -> None:
    """Raises InvalidRequest."""
    if not 1 <= limit <= LIST_MAX:
        raise InvalidRequest(f"limit is {limit}: expected 1 to {LIST_MAX}", field="limit")


class SqlAuditStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, at_ms: int, actor: str, action: str, subject: str, detail: Mapping[str, Json]
    ) -> None:
        columns = {
            "at_ms": at_ms,
            "actor": plain(actor, "actor"),
            "action": plain(action, "action"),
            "subject": plain(subject, "subject"),
            "detail": pack(detail, "detail"),
        }
        self._database.write(lambda connection: connection.execute(AUDIT.insert(), columns))

    def list(self, *, limit: int = 100) -> list[Mapping[str, Json]]:
        """Newest first: at_ms, actor, action, subject, detail."""
        check_limit(limit)
        rows = self._database.read(
            lambda connection: connection.execute(_LIST, {"count": limit}).all()
        )
        return [
            {
                "at_ms": row.at_ms,
                "actor": row.actor,
                "action": row.action,
                "subject": row.subject,
                "detail": unpack(row.detail),
            }
            for row in rows
        ]
