"""Mirrors that follow a remote, and notices to those who subscribed to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_ID = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "mirrors",
        sa.Column("repository_id", _ID, primary_key=True),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=True),
        sa.Column("password", sa.LargeBinary(), nullable=True),
        _instant("every_ms", nullable=True),
        _instant("next_ms", nullable=True),
        _instant("held_ms"),
        sa.Column("tries", sa.Integer(), nullable=False),
        _instant("checked_ms", nullable=True),
        _instant("synced_ms", nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
    )
    _partial("mirrors_due", "mirrors", "next_ms")
    op.create_table(
        "notices",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("repository_id", _ID, nullable=True),
        _instant("at_ms"),
        sa.Column("detail", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("repository_id", _ID, nullable=True, index=True),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("kinds", sa.LargeBinary(), nullable=False),
        _instant("created_ms"),
        _instant("ended_ms", nullable=True),
    )
    subscription = sa.ForeignKey("subscriptions.id", ondelete="CASCADE")
    op.create_table(
        "sendings",
        sa.Column("subscription_id", _ID, subscription, primary_key=True),
        sa.Column("notice_id", _ID, primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        _instant("created_ms"),
        _instant("due_ms", nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sqlite_with_rowid=False,
    )
    _partial("sendings_due", "sendings", "due_ms")
    op.create_index("sendings_created", "sendings", ["created_ms"])


def _instant(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _partial(name: str, table: str, column: str) -> None:
    condition = sa.text(f"{column} IS NOT NULL")
    op.create_index(name, table, [column], sqlite_where=condition, postgresql_where=condition)
