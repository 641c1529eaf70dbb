"""What a waiting run costs: a checksum in place of repository and commit in an index, and one line
of the audit log for a batch of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ci_platform.store.codec import commit_key

revision = "0012"
down_revision = "0011"

_COMMITS = sa.text('SELECT DISTINCT repository_id, "commit" FROM runs')
_KEY = sa.text(
    'UPDATE runs SET commit_key = :key WHERE repository_id = :repository AND "commit" = :commit'
)


def upgrade() -> None:
    key = sa.Column("commit_key", sa.Integer(), nullable=False, server_default="0")
    op.add_column("runs", key)
    connection = op.get_bind()
    for repository, commit in connection.execute(_COMMITS).all():
        told = {"repository": repository, "commit": commit, "key": commit_key(repository, commit)}
        connection.execute(_KEY, told)
    op.drop_index("runs_of_commit", "runs")
    op.create_index("runs_of_commit", "runs", ["commit_key", "number"])
    op.add_column("audit", sa.Column("subjects", sa.LargeBinary(), nullable=True))
