"""The tables of what other servers are told and asked: mirrors, notices, subscriptions, sendings.

Part of the same schema as tables.py, whose rules hold here too.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    text,
)

from ci_platform.store.tables import METADATA, Id

MIRRORS = Table(
    "mirrors",
    METADATA,
    Column("repository_id", Id, primary_key=True),
    Column("url", String, nullable=False),
    Column("username", String),
    Column("password", LargeBinary),  # sealed, see cipher.py
    Column("every_ms", BigInteger),
    Column("next_ms", BigInteger),
    Column("held_ms", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("checked_ms", BigInteger),
    Column("synced_ms", BigInteger),
    Column("outcome", String),
    Index(
        "mirrors_due",
        "next_ms",
        sqlite_where=text("next_ms IS NOT NULL"),
        postgresql_where=text("next_ms IS NOT NULL"),
    ),
)

# The outbox: gone once it is spread.
NOTICES = Table(
    "notices",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("kind", String, nullable=False),
    Column("repository_id", Id),
    Column("at_ms", BigInteger, nullable=False),
    Column("detail", LargeBinary, nullable=False),  # packed
)

SUBSCRIPTIONS = Table(
    "subscriptions",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("repository_id", Id, index=True),
    Column("url", String, nullable=False),
    Column("secret", LargeBinary, nullable=False),  # sealed
    Column("kinds", LargeBinary, nullable=False),  # packed
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),  # when its repository was deleted
)

SENDINGS = Table(
    "sendings",
    METADATA,
    Column(
        "subscription_id", Id, ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("notice_id", Id, primary_key=True),
    Column("kind", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("due_ms", BigInteger),
    Column("tries", Integer, nullable=False),
    Column("status", Integer),
    Column("outcome", String),
    Index(
        "sendings_due",
        "due_ms",
        sqlite_where=text("due_ms IS NOT NULL"),
        postgresql_where=text("due_ms IS NOT NULL"),
    ),
    Index("sendings_created", "created_ms"),
    sqlite_with_rowid=False,
)
