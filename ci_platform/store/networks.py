"""The hosts that commands of a repository may reach, where it has a list of its own."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import RepositoryId
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import NETWORK_POLICIES

_OF = NETWORK_POLICIES.c.repository_id == bindparam("of_repository")
_GET = select(NETWORK_POLICIES.c.hosts).where(_OF)


class SqlNetworkPolicies:
    """`shell.NetworkPolicies`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, repository_id: RepositoryId) -> Sequence[str] | None:
        asked = {"of_repository": repository_id}
        found = self._database.read(
            lambda connection: connection.execute(_GET, asked).scalar_one_or_none()
        )
        return None if found is None else tuple(unpack(found))

    def put(self, repository_id: RepositoryId, hosts: Sequence[str]) -> None:
        columns = {
            "repository_id": plain(repository_id, "repository_id"),
            "hosts": pack(list(hosts), "hosts"),
        }

        def work(connection: Connection) -> None:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            statement = insert(NETWORK_POLICIES).on_conflict_do_update(
                index_elements=["repository_id"], set_={"hosts": columns["hosts"]}
            )
            connection.execute(statement, columns)

        self._database.write(work)

    def remove(self, repository_id: RepositoryId) -> bool:
        gone, asked = NETWORK_POLICIES.delete().where(_OF), {"of_repository": repository_id}
        return self._database.write(lambda connection: connection.execute(gone, asked).rowcount > 0)
