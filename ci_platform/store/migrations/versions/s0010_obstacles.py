"""Why a worker that is there starts no command."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("workers", sa.Column("obstacle", sa.String(), nullable=True))
