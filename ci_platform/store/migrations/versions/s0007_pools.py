"""Commands by the labels they need, workers that drain, memos by use, logs still to be sealed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_ID = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("operations", sa.Column("pool", _ID, nullable=False, server_default=""))
    op.add_column("operations", sa.Column("lost_worker", sa.String(), nullable=True))
    op.drop_index("operations_due", "operations")
    op.drop_index("operations_due_of", "operations")
    due = ["pool", "due_ms", "n"]
    _partial("operations_due", "operations", due, "due_ms IS NOT NULL")
    due = ["pool", "repository_id", "due_ms", "n"]
    _partial("operations_due_of", "operations", due, "due_ms IS NOT NULL")
    op.add_column("logs", _zero("hot"))
    op.execute(
        "UPDATE logs SET hot = (SELECT coalesce(sum(size), 0) FROM log_chunks"
        " WHERE log_chunks.run_n = logs.run_n AND log_chunks.step = logs.step)"
    )
    _partial("logs_hot", "logs", ["run_n"], "hot >= 65536")
    op.add_column("memos", _zero("used_ms"))
    op.add_column("memos", _zero("size"))
    op.add_column("memos", sa.Column("digest", _ID, nullable=True))
    op.create_index("memos_used", "memos", ["repository_id", "used_ms", "size"])
    _partial("memos_digest", "memos", ["digest"], "digest IS NOT NULL")
    op.add_column("workers", _zero("capacity"))
    for name in ("draining", "drain"):
        op.add_column("workers", _no(name))


def _zero(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _no(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
