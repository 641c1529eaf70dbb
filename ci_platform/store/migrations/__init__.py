"""Moves the schema of an existing database to this program's, with Alembic. All tables are here,
also the git store's: they live in one database, and one version tells of both.

A new database is created from the tables themselves and needs none of this. Loaded by database.py
only when there is something to migrate: Alembic takes longer to load than a server to start.
"""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from ci_platform.errors import StoreUnavailable

HERE = Path(__file__).parent
VERSIONS = [HERE / "versions"]  # where revisions lie; a test adds one


def upgrade(connection: Connection, version: str) -> None:
    """Move to `version` in the transaction that the connection is in: all of it, or nothing.

    Raises StoreUnavailable when no migration leads from where the database is.
    """
    config = Config()
    for option, value in (
        ("script_location", str(HERE)),
        ("path_separator", "newline"),
        ("version_locations", "\n".join(map(str, VERSIONS))),
    ):
        config.set_main_option(option, value.replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)

    def steps(found: tuple[str, ...], context: MigrationContext) -> list[RevisionStep]:
        return list(scripts._upgrade_revs(version, found))  # type: ignore[arg-type]

    if not connection.in_transaction():
        connection.begin()  # what the driver has begun: else Alembic would commit each revision
    try:
        with EnvironmentContext(config, scripts, fn=steps) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()
    except CommandError as error:
        raise StoreUnavailable(f"the database cannot be migrated: {error}") from error
