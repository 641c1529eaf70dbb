"""The audit log: every change that a person or token made. Only ever added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, select

from ci_platform.errors import InvalidRequest
from ci_platform.model import AuditNote, Json
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import AUDIT

LIST_MAX = 1000

_ADD = AUDIT.insert()
_LIST = select(AUDIT).order_by(AUDIT.c.n.desc()).limit(bindparam("count"))


def check_limit(limit: int) -> None:
    """Raises InvalidRequest."""
    if not 1 <= limit <= LIST_MAX:
        raise InvalidRequest(f"limit is {limit}: expected 1 to {LIST_MAX}", field="limit")


def columns(note: AuditNote) -> dict[str, object]:
    """A row. Raises InvalidRequest."""
    return {
        "at_ms": note.at_ms,
        "actor": plain(note.actor, "actor"),
        "action": plain(note.action, "action"),
        "subject": plain(note.subject, "subject"),
        "detail": pack(note.detail, "detail"),
    }


def write(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows, in the transaction that does what they tell."""
    if rows:
        connection.execute(_ADD, rows)


class SqlAuditStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, at_ms: int, actor: str, action: str, subject: str, detail: Mapping[str, Json]
    ) -> None:
        row = columns(AuditNote(at_ms, actor, action, subject, detail))
        self._database.write(lambda connection: write(connection, [row]))

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
