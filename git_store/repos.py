"""Repositories as rows: create, get, list, fork, delete, and the rules for their names.

Owns the repository rows and nothing of their content. Called through `GitStore.repositories`.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass

from sqlalchemy import Connection, Row, bindparam, delete, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from git_store.database import Clock, Database, new_id
from git_store.errors import BadName, RepoExists, RepoNotFound
from git_store.names import HIDDEN, check_branch, check_part, is_part
from git_store.tables import packs, push_events, refs, repositories, repository_packs

_DESCRIPTION_CHARACTERS = 1000
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Repository:
    id: str  # repo_...
    owner: str
    name: str
    default_branch: str  # without refs/heads/
    description: str
    created_ms: int
    pack_bytes: int  # what counts against the quota

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


_COLUMNS = (
    repositories.c.id,
    repositories.c.owner,
    repositories.c.name,
    repositories.c.default_branch,
    repositories.c.description,
    repositories.c.created_ms,
    repositories.c.pack_bytes,
)

# What every request asks is built once: building a statement costs as much as running it.
_BY_NAME = select(*_COLUMNS).where(repositories.c.full_name == bindparam("full_name"))
_BY_ID = select(*_COLUMNS).where(repositories.c.id == bindparam("id"))
_LOCK = (
    select(repositories.c.generation).where(repositories.c.id == bindparam("id")).with_for_update()
)


class Repositories:
    """Safe to call from any thread and from several processes at once."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self, owner: str, name: str, *, default_branch: str = "main", description: str = ""
    ) -> Repository:
        """Create an empty repository. Raises BadName (with `.field`), RepoExists."""
        check_branch(default_branch, "default_branch")
        made = self._new(owner, name, default_branch=default_branch, description=description)
        with self._database.writing() as connection:
            _insert(connection, made)
        return made

    def get(self, owner: str, name: str) -> Repository:
        """Raises RepoNotFound."""
        if not is_part(owner) or not is_part(name):
            raise RepoNotFound(f"There is no repository {owner[:100]!r}/{name[:100]!r}.")
        with self._database.reading() as connection:
            row = connection.execute(_BY_NAME, {"full_name": f"{owner}/{name}"}).one_or_none()
        if row is None:
            raise RepoNotFound(f"There is no repository {owner}/{name}.")
        return _repository(row)

    def by_id(self, repository_id: str) -> Repository:
        """Raises RepoNotFound."""
        with self._database.reading() as connection:
            return _by_id(connection, repository_id)

    def list(self, *, after: str = "", limit: int = 100) -> builtins.list[Repository]:
        """By full name, ascending, those after the full name `after`; at most 1,000."""
        page = (
            select(*_COLUMNS)
            .where(repositories.c.full_name > after)
            .order_by(repositories.c.full_name)
            .limit(max(0, min(limit, _PAGE)))
        )
        with self._database.reading() as connection:
            return [_repository(row) for row in connection.execute(page)]

    def fork(self, repository_id: str, owner: str, name: str) -> Repository:
        """Copy refs (not hidden ones) and pack list; the packs are shared. Raises as `create`."""
        with self._database.writing() as connection:
            lock(connection, repository_id)
            parent = _by_id(connection, repository_id)
            made = self._new(
                owner,
                name,
                default_branch=parent.default_branch,
                description=parent.description,
                pack_bytes=parent.pack_bytes,
            )
            _insert(connection, made)
            visible = select(literal(made.id), refs.c.name, refs.c.sha, refs.c.peeled).where(
                refs.c.repository_id == repository_id, ~refs.c.name.startswith(HIDDEN)
            )
            columns = ["repository_id", "name", "sha", "peeled"]
            connection.execute(insert(refs).from_select(columns, visible))
            owned = select(literal(made.id), repository_packs.c.pack_id).where(
                repository_packs.c.repository_id == repository_id
            )
            columns = ["repository_id", "pack_id"]
            connection.execute(insert(repository_packs).from_select(columns, owned))
        return made

    def set_default_branch(self, repository_id: str, branch: str) -> None:
        """The branch need not exist yet. Raises BadName, RepoNotFound."""
        check_branch(branch, "default_branch")
        change = (
            update(repositories)
            .where(repositories.c.id == repository_id)
            .values(default_branch=branch)
        )
        with self._database.writing() as connection:
            if not connection.execute(change).rowcount:
                raise RepoNotFound()

    def delete(self, repository_id: str) -> None:
        """Remove the repository and every row of it. Packs nobody uses go with `GitStore.sweep`.
        Raises RepoNotFound."""
        with self._database.writing() as connection:
            gone = delete(repositories).where(repositories.c.id == repository_id)
            if not connection.execute(gone).rowcount:
                raise RepoNotFound()
            listed = select(repository_packs.c.pack_id).where(
                repository_packs.c.repository_id == repository_id
            )
            connection.execute(
                update(packs).where(packs.c.id.in_(listed)).values(released_ms=self._clock())
            )
            for table in (refs, repository_packs, push_events):
                connection.execute(delete(table).where(table.c.repository_id == repository_id))

    def _new(
        self,
        owner: str,
        name: str,
        *,
        default_branch: str,
        description: str,
        pack_bytes: int = 0,
    ) -> Repository:
        check_part(owner, "owner")
        check_part(name, "name")
        if len(description) > _DESCRIPTION_CHARACTERS or "\0" in description:
            raise BadName(
                f"description is not acceptable: at most {_DESCRIPTION_CHARACTERS} characters,"
                " none of them NUL",
                field="description",
            )
        now_ms = self._clock()
        return Repository(
            id=new_id("repo", now_ms),
            owner=owner,
            name=name,
            default_branch=default_branch,
            description=description,
            created_ms=now_ms,
            pack_bytes=pack_bytes,
        )


def lock(connection: Connection, repository_id: str) -> int:
    """Hold the repository's row until the transaction ends; answers its generation.

    Everything that changes refs or packs of a repository goes through here first, so changes of
    one repository happen one after the other. Raises RepoNotFound.
    """
    generation = connection.execute(_LOCK, {"id": repository_id}).scalar_one_or_none()
    if generation is None:
        raise RepoNotFound()
    return int(generation)


def _insert(connection: Connection, made: Repository) -> None:
    values = {column.name: getattr(made, column.name) for column in _COLUMNS}
    try:
        connection.execute(
            insert(repositories).values(full_name=made.full_name, generation=0, **values)
        )
    except IntegrityError as error:
        raise RepoExists(f"A repository {made.full_name} exists.") from error


def _by_id(connection: Connection, repository_id: str) -> Repository:
    row = connection.execute(_BY_ID, {"id": repository_id}).one_or_none()
    if row is None:
        raise RepoNotFound(f"There is no repository {repository_id}.")
    return _repository(row)


def _repository(row: Row[str, str, str, str, str, int, int]) -> Repository:
    return Repository(*row)
