"""Which hosts the commands of a repository may reach."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_ID = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "network_policies",
        sa.Column("repository_id", _ID, primary_key=True),
        sa.Column("hosts", sa.LargeBinary(), nullable=False),
    )
