"""`sluice migrate`: the database of an older version becomes this one's."""

from __future__ import annotations

from ci_platform.app import database_url
from ci_platform.config import Config
from ci_platform.model import Json
from ci_platform.server.data_lock import locked, make_directory
from ci_platform.store import migrate_store


def run(config: Config) -> dict[str, Json]:
    """Migrate. Raises ServerBusy while a server uses the data directory, StoreUnavailable if it
    cannot be done; nothing has changed then."""
    make_directory(config.data)
    with locked(config.data):
        done = migrate_store(database_url(config))
    if done is None:
        return {"migrated": False}
    backup = None if done.backup is None else str(done.backup)
    return {"migrated": True, "before": done.before, "after": done.after, "backup": backup}


def told(done: dict[str, Json]) -> str:
    if not done["migrated"]:
        return "nothing to migrate"
    kept = f"; the database as it was: {done['backup']}" if done["backup"] else ""
    return f"migrated from {done['before']} to {done['after']}{kept}"
