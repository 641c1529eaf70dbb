"""The first schema that is migrated from: both databases' statements, as they were then.

They are kept as text, since what tables.py says changes with every later revision.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    script = Path(__file__).with_name(f"s{revision}_{connection.dialect.name}.sql")
    for statement in script.read_text(encoding="utf-8").split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
