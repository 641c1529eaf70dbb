"""The tables of what other servers are told and asked: mirrors, notices, subscriptions, sendings.

Part of the same schema as tables.py, whose rules hold here too.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, text
from sqlmodel import Field

from ci_platform.store.tables import METADATA, Id, StoreTable

_CLUSTERED = {"sqlite_with_rowid": False}


class MirrorRow(StoreTable, table=True):
    __tablename__ = "mirrors"
    __table_args__ = (
        Index(
            "mirrors_due",
            "next_ms",
            sqlite_where=text("next_ms IS NOT NULL"),
            postgresql_where=text("next_ms IS NOT NULL"),
        ),
    )

    repository_id: str = Field(sa_column=Column(Id, primary_key=True))
    url: str
    username: str | None
    password: bytes | None = Field(sa_type=LargeBinary)  # sealed, see cipher.py
    every_ms: int | None = Field(sa_type=BigInteger)
    next_ms: int | None = Field(sa_type=BigInteger)
    held_ms: int = Field(sa_type=BigInteger)
    tries: int
    checked_ms: int | None = Field(sa_type=BigInteger)
    synced_ms: int | None = Field(sa_type=BigInteger)
    outcome: str | None


class NoticeRow(StoreTable, table=True):
    """The outbox: gone once it is spread."""

    __tablename__ = "notices"

    id: str = Field(sa_column=Column(Id, primary_key=True))
    kind: str
    repository_id: str | None = Field(sa_column=Column(Id))
    at_ms: int = Field(sa_type=BigInteger)
    detail: bytes = Field(sa_type=LargeBinary)  # packed


class SubscriptionRow(StoreTable, table=True):
    __tablename__ = "subscriptions"

    id: str = Field(sa_column=Column(Id, primary_key=True))
    repository_id: str | None = Field(sa_column=Column(Id, index=True))
    url: str
    secret: bytes = Field(sa_type=LargeBinary)  # sealed
    kinds: bytes = Field(sa_type=LargeBinary)  # packed
    created_ms: int = Field(sa_type=BigInteger)
    ended_ms: int | None = Field(sa_type=BigInteger)  # when its repository was deleted


class SendingRow(StoreTable, table=True):
    __tablename__ = "sendings"
    __table_args__ = (
        Index(
            "sendings_due",
            "due_ms",
            sqlite_where=text("due_ms IS NOT NULL"),
            postgresql_where=text("due_ms IS NOT NULL"),
        ),
        Index("sendings_created", "created_ms"),
        _CLUSTERED,
    )

    subscription_id: str = Field(
        sa_column=Column(Id, ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True)
    )
    notice_id: str = Field(sa_column=Column(Id, primary_key=True))
    kind: str
    body: bytes = Field(sa_type=LargeBinary)
    created_ms: int = Field(sa_type=BigInteger)
    due_ms: int | None = Field(sa_type=BigInteger)
    tries: int
    status: int | None
    outcome: str | None


MIRRORS = METADATA.tables["mirrors"]
NOTICES = METADATA.tables["notices"]
SUBSCRIPTIONS = METADATA.tables["subscriptions"]
SENDINGS = METADATA.tables["sendings"]
