"""The audit log: every change that a person or token made. Only ever added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Row, bindparam, select

from ci_platform.errors import InvalidRequest
from ci_platform.model import AuditNote, Json
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import AUDIT

LIST_MAX = 1000

_ADD = AUDIT.insert()
_ALIKE = ("at_ms", "actor", "action", "detail")
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


def together(rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The rows of one call, and one in place of those that differ in nothing but their subject: a
    row for each run of a batch was an eighth of what a run costs. `list` tells of each again."""
    groups: dict[tuple[object, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _ALIKE), []).append(row)
    return [_as_one(group) for group in groups.values()]


def _as_one(rows: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    if len(rows) == 1:
        return rows[0]
    subjects: list[Json] = [str(row["subject"]) for row in rows]
    return {**rows[0], "subject": "", "subjects": pack(subjects, "subject")}


def write(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows, in the transaction that does what they tell."""
    if rows:
        connection.execute(_ADD, [{"subjects": None, **row} for row in rows])


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
        lines: list[Mapping[str, Json]] = [
            {
                "at_ms": row.at_ms,
                "actor": row.actor,
                "action": row.action,
                "subject": subject,
                "detail": unpack(row.detail),
            }
            for row in rows
            for subject in _subjects(row)
        ]
        return lines[:limit]


def _subjects(row: Row[tuple[object, ...]]) -> list[Json]:
    """Newest first."""
    if row.subjects is None:
        return [row.subject]
    told: list[Json] = unpack(row.subjects)
    return told[::-1]
