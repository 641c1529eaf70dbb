"""Runs by commit, which are asked for when one is deleted, and those of a repository that live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index("runs_of_commit", "runs", ["repository_id", "commit", "number"])
    live = sa.text("ended_ms IS NULL")
    columns = ["repository_id", "number"]
    op.create_index("runs_live", "runs", columns, sqlite_where=live, postgresql_where=live)
