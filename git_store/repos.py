"""Repositories as rows: create, get, list, fork, delete, and the rules for their names.

Owns the repository rows and nothing of their content. Who wants to know of what happens to them is
told in the same transaction. Called through `GitStore.repositories`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from git_store.database import Clock, Database, new_id
from git_store.direct import Direct
from git_store.errors import BadName, RepoExists, RepoNotFound
from git_store.names import HIDDEN, check_branch, check_part, is_part
from git_store.tables import packs, push_events, refs, repositories, repository_packs

_DESCRIPTION_CHARACTERS = 1000
_PAGE = 1000
_MANY = 1000  # created in one transaction
_PORTION = 10_000  # ids in one statement: databases take few more parameters
_CREATE_TRIES = 3  # while others take the same names


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


@dataclass(frozen=True, slots=True)
class NewRepository:
    owner: str
    name: str
    default_branch: str = "main"
    description: str = ""


class RepositoryEventKind(StrEnum):
    CREATED = "created"
    FORKED = "forked"  # created as a copy of `source`
    IMPORTED = "imported"  # a remote's branches and tags became its own
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class RepositoryEvent:
    kind: RepositoryEventKind
    repository: Repository
    at_ms: int
    source: Repository | None = None


Record = Callable[[Connection, Sequence[RepositoryEvent]], None]
"""Writes events down in the transaction of what happened. What it raises undoes that."""

_COLUMNS = (
    repositories.c.id,
    repositories.c.owner,
    repositories.c.name,
    repositories.c.default_branch,
    repositories.c.description,
    repositories.c.created_ms,
    repositories.c.pack_bytes,
)

_NAMES = [column.name for column in _COLUMNS]

_BY_NAME = Direct(select(*_COLUMNS).where(repositories.c.full_name == bindparam("full_name")))
_BY_ID = Direct(select(*_COLUMNS).where(repositories.c.id == bindparam("id")))
_INSERT = Direct(
    insert(repositories).values({one.name: bindparam(one.name) for one in repositories.c})
)
_LOCK = Direct(
    select(repositories.c.generation).where(repositories.c.id == bindparam("id")).with_for_update()
)


class Repositories:
    """Safe to call from any thread and from several processes at once."""

    def __init__(self, database: Database, clock: Clock, record: Record | None = None) -> None:
        self._database = database
        self._clock = clock
        self._record = record

    def create(
        self, owner: str, name: str, *, default_branch: str = "main", description: str = ""
    ) -> Repository:
        """Create an empty repository. Raises BadName (with `.field`), RepoExists."""
        (made,) = self.create_many([NewRepository(owner, name, default_branch, description)])
        if not isinstance(made, Repository):
            raise made
        return made

    def create_many(
        self, wanted: Sequence[NewRepository], *, template: str | None = None
    ) -> builtins.list[Repository | BadName | RepoExists]:
        """Create up to 1,000 repositories in one transaction, empty or as forks of `template`, an
        id, whose default branch they take. Answers for each in turn what was made or why not.
        Raises RepoNotFound for a template that is gone."""
        if len(wanted) > _MANY:
            raise BadName(f"at most {_MANY} repositories are created at once", field="wanted")
        checked = [self._checked(one) for one in wanted]
        for left in range(_CREATE_TRIES - 1, -1, -1):
            try:
                with self._database.writing() as connection:
                    return self._create(connection, checked, template)
            except IntegrityError:  # somebody took one of the names between the look and now
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    def get(self, owner: str, name: str) -> Repository:
        """Raises RepoNotFound."""
        found = self.find(owner, name)
        if found is None:
            raise RepoNotFound(f"There is no repository {owner[:100]!r}/{name[:100]!r}.")
        return found

    def find(self, owner: str, name: str) -> Repository | None:
        """The repository of this name, if there is one."""
        if not is_part(owner) or not is_part(name):
            return None
        with self._database.reading() as connection:
            row = _BY_NAME.one(connection, {"full_name": f"{owner}/{name}"})
        return None if row is None else Repository(*row)

    def by_id(self, repository_id: str) -> Repository:
        """Raises RepoNotFound."""
        with self._database.reading() as connection:
            return _by_id(connection, repository_id)

    def by_ids(self, ids: Iterable[str]) -> builtins.list[Repository]:
        """In no order, without those that are gone."""
        statement = select(*_COLUMNS)
        with self._database.reading() as connection:
            return [
                _repository(row)
                for some in _portions(ids)
                for row in connection.execute(statement.where(repositories.c.id.in_(some)))
            ]

    def list(
        self, *, after: str = "", limit: int = 100, among: Iterable[str] | None = None
    ) -> builtins.list[Repository]:
        """By full name, ascending, those after the full name `after`; at most 1,000. `among`: only
        those of these ids."""
        limit = max(0, min(limit, _PAGE))
        page = (
            select(*_COLUMNS)
            .where(repositories.c.full_name > after)
            .order_by(repositories.c.full_name)
            .limit(limit)
        )
        pages = [page]
        if among is not None:
            pages = [page.where(repositories.c.id.in_(some)) for some in _portions(among)]
        with self._database.reading() as connection:
            found = [_repository(row) for each in pages for row in connection.execute(each)]
        return sorted(found, key=lambda one: one.full_name)[:limit]

    def fork(self, repository_id: str, owner: str, name: str) -> Repository:
        """Copy refs (not hidden ones) and pack list; the packs are shared. Raises as `create`."""
        description = self.by_id(repository_id).description
        wanted = NewRepository(owner, name, description=description)
        (made,) = self.create_many([wanted], template=repository_id)
        if not isinstance(made, Repository):
            raise made
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
            found = _by_id(connection, repository_id)
            gone = delete(repositories).where(repositories.c.id == repository_id)
            if not connection.execute(gone).rowcount:
                raise RepoNotFound()
            self.tell(connection, RepositoryEventKind.DELETED, [found])
            listed = select(repository_packs.c.pack_id).where(
                repository_packs.c.repository_id == repository_id
            )
            connection.execute(
                update(packs).where(packs.c.id.in_(listed)).values(released_ms=self._clock())
            )
            for table in (refs, repository_packs, push_events):
                connection.execute(delete(table).where(table.c.repository_id == repository_id))

    def tell(
        self,
        connection: Connection,
        kind: RepositoryEventKind,
        of: Sequence[Repository],
        source: Repository | None = None,
    ) -> None:
        """Have an event of each written down, in the transaction of what happened."""
        if self._record is not None:
            now_ms = self._clock()
            self._record(connection, [RepositoryEvent(kind, one, now_ms, source) for one in of])

    def _checked(self, wanted: NewRepository) -> NewRepository | BadName:
        try:
            check_part(wanted.owner, "owner")
            check_part(wanted.name, "name")
            check_branch(wanted.default_branch, "default_branch")
            if len(wanted.description) > _DESCRIPTION_CHARACTERS or "\0" in wanted.description:
                raise BadName(
                    f"description is not acceptable: at most {_DESCRIPTION_CHARACTERS} characters,"
                    " none of them NUL",
                    field="description",
                )
        except BadName as error:
            return error
        return wanted

    def _create(
        self,
        connection: Connection,
        wanted: Sequence[NewRepository | BadName],
        template: str | None,
    ) -> builtins.list[Repository | BadName | RepoExists]:
        parent = None
        if template is not None:
            lock(connection, template)
            parent = _by_id(connection, template)
        taken = _taken(connection, [one for one in wanted if isinstance(one, NewRepository)])
        answers: builtins.list[Repository | BadName | RepoExists] = []
        for one in wanted:
            if isinstance(one, BadName):
                answers.append(one)
                continue
            full_name = f"{one.owner}/{one.name}"
            if full_name in taken:
                answers.append(RepoExists(f"A repository {full_name} exists."))
                continue
            taken.add(full_name)
            answers.append(self._new(one, parent))
        made = [one for one in answers if isinstance(one, Repository)]
        if made:
            _INSERT.many(connection, [_row(one) for one in made])
            if parent is not None:
                _share(connection, parent.id, [one.id for one in made])
            kind = RepositoryEventKind.CREATED if parent is None else RepositoryEventKind.FORKED
            self.tell(connection, kind, made, parent)
        return answers

    def _new(self, wanted: NewRepository, parent: Repository | None) -> Repository:
        now_ms = self._clock()
        return Repository(
            id=new_id("repo", now_ms),
            owner=wanted.owner,
            name=wanted.name,
            default_branch=wanted.default_branch if parent is None else parent.default_branch,
            description=wanted.description,
            created_ms=now_ms,
            pack_bytes=0 if parent is None else parent.pack_bytes,
        )


def lock(connection: Connection, repository_id: str) -> int:
    """Hold the repository's row until the transaction ends; answers its generation.

    Everything that changes refs or packs of a repository goes through here first, so changes of
    one repository happen one after the other. Raises RepoNotFound.
    """
    row = _LOCK.one(connection, {"id": repository_id})
    if row is None:
        raise RepoNotFound()
    return int(row[0])


def _row(made: Repository) -> dict[str, object]:
    values: dict[str, object] = {name: getattr(made, name) for name in _NAMES}
    return {**values, "full_name": made.full_name, "generation": 0}


def _taken(connection: Connection, wanted: Sequence[NewRepository]) -> set[str]:
    names = [f"{one.owner}/{one.name}" for one in wanted]
    found = select(repositories.c.full_name).where(repositories.c.full_name.in_(names))
    return set(connection.execute(found).scalars())


def _share(connection: Connection, parent_id: str, new_ids: Sequence[str]) -> None:
    """Give new repositories the visible refs and the pack list of another: rows, and no packs."""
    new = repositories.c.id
    ours = new.in_(new_ids)
    visible = (
        select(new, refs.c.name, refs.c.sha, refs.c.peeled)
        .join_from(repositories, refs, refs.c.repository_id == parent_id)
        .where(ours, ~refs.c.name.startswith(HIDDEN))
    )
    connection.execute(
        insert(refs).from_select(["repository_id", "name", "sha", "peeled"], visible)
    )
    owned = (
        select(new, repository_packs.c.pack_id)
        .join_from(repositories, repository_packs, repository_packs.c.repository_id == parent_id)
        .where(ours)
    )
    connection.execute(insert(repository_packs).from_select(["repository_id", "pack_id"], owned))


def _portions(ids: Iterable[str]) -> Iterator[Sequence[str]]:
    left = list(dict.fromkeys(ids))
    return (left[at : at + _PORTION] for at in range(0, len(left), _PORTION))


def _by_id(connection: Connection, repository_id: str) -> Repository:
    row = _BY_ID.one(connection, {"id": repository_id})
    if row is None:
        raise RepoNotFound(f"There is no repository {repository_id}.")
    return Repository(*row)


def _repository(row: Row[str, str, str, str, str, int, int]) -> Repository:
    return Repository(*row)
