"""Refs as rows: read, resolve, and the hidden ones that keep commits alive.

The functions below the class are the parts of push.py's transaction that touch refs; they expect
the repository's row to be locked. Called through `GitStore.refs`.
"""

from __future__ import annotations

import builtins
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
)

from git_store.database import Database
from git_store.direct import Direct
from git_store.errors import BadName, ObjectNotFound, RefConflict, RepoNotFound
from git_store.names import HIDDEN, KEEP, is_sha, ref_problem
from git_store.objects import Objects
from git_store.packfile import COMMIT
from git_store.packs import Packs
from git_store.repos import lock
from git_store.tables import refs, repositories

_NAMES_PER_QUERY = 500
_RANGES_MAX = 50  # created refs looked at one by one; above, all names are read
_PAGE = 10_000
_KEEP_TRIES = 3
_SHAPES_KEPT = 50  # statements for so many prefixes
_ALL, _BEHIND_ALL = "refs/", "refs0"  # what every name starts with, and what follows
_LAST = "\U0010ffff"
_SURROGATES = (0xD800, 0xE000)  # code points between these are no characters


@dataclass(frozen=True, slots=True)
class Ref:
    name: str  # full: refs/heads/main
    sha: str  # what it points at: a commit, or a tag object
    peeled: str | None  # for an annotated tag: what the tag finally points at

    @property
    def target(self) -> str:
        return self.peeled or self.sha


class Refs:
    def __init__(self, database: Database, packs: Packs, ref_bytes: int) -> None:
        self._database = database
        self._packs = packs
        self._ref_bytes = ref_bytes

    def get(self, repository_id: str, name: str) -> Ref | None:
        """A ref by its full name."""
        if ref_problem(name, self._ref_bytes):
            return None
        with self._database.reading() as connection:
            row = _ONE.one(connection, {"repository": repository_id, "name": name})
        return None if row is None else Ref(*row)

    def list(
        self, repository_id: str, prefix: str = "refs/heads/", *, after: str = "", limit: int = 1000
    ) -> builtins.list[Ref]:
        """By name, ascending, those after `after`; never hidden ones."""
        page = visible(1).where(refs.c.name > after).limit(max(0, min(limit, _PAGE)))
        asked = {"repository": repository_id, **_bounds([prefix])}
        with self._database.reading() as connection:
            return [Ref(*row) for row in connection.execute(page, asked)]

    def all(self, repository_id: str, prefixes: Sequence[str] = ()) -> builtins.list[Ref]:
        """Every visible ref whose name starts with one of the prefixes, by name."""
        wanted = [one for one in prefixes if one.startswith(_ALL) or _ALL.startswith(one)]
        if prefixes and not wanted:
            return []
        with self._database.reading() as connection:
            asked = {"repository": repository_id, **_bounds(wanted)}
            return [Ref(*row) for row in _visible(len(wanted)).rows(connection, asked)]

    def resolve(self, repository_id: str, name: str) -> str | None:
        """The commit behind HEAD, a full ref (tags peeled), a branch or tag by its short name, or
        a full object id that is in the repository. None if there is none."""
        if is_sha(name):
            return self._commit_behind(repository_id, name)
        if name == "HEAD":
            with self._database.reading() as connection:
                branch = default_branch(connection, repository_id)
            candidates = [f"refs/heads/{branch}"]
        else:
            candidates = [name, f"refs/heads/{name}", f"refs/tags/{name}"]
        for candidate in candidates:
            found = self.get(repository_id, candidate) if candidate.startswith("refs/") else None
            if found is not None:
                return found.target
        return None

    def keep(self, repository_id: str, name: str, sha: str) -> None:
        """Keep a commit and its history alive under a hidden ref until `release(name)`.

        Calling again with the same name moves it. Raises ObjectNotFound if it is not here.
        """
        ref = self._keep_ref(name)
        for _ in range(_KEEP_TRIES):
            generation = self._generation(repository_id)
            if not is_sha(sha) or self._commit_behind(repository_id, sha) != sha:
                raise ObjectNotFound(f"there is no commit {sha} in this repository")
            with self._database.writing() as connection:
                if lock(connection, repository_id) == generation:
                    write(connection, repository_id, {ref: (sha, None)})
                    return
        raise RefConflict("the repository is being cleaned up; try again")

    def release(self, repository_id: str, name: str) -> None:
        """Let go of what `keep` kept. Nothing happens if there is nothing."""
        gone = delete(refs).where(
            refs.c.repository_id == repository_id, refs.c.name == self._keep_ref(name)
        )
        with self._database.writing() as connection:
            connection.execute(gone)

    def _keep_ref(self, name: str) -> str:
        ref = KEEP + name
        if ref_problem(ref, self._ref_bytes):
            raise BadName(f"{name!r} cannot be the name of a kept ref")
        return ref

    def _generation(self, repository_id: str) -> int:
        with self._database.reading() as connection:
            return generation(connection, repository_id)

    def _commit_behind(self, repository_id: str, sha: str) -> str | None:
        objects = Objects(self._packs.of_repository(repository_id))
        name = bytes.fromhex(sha)
        if not objects.has(name):
            return None
        target, kind, _ = objects.peel(name)
        return target.hex() if kind == COMMIT else None


_OF = select(refs.c.name, refs.c.sha, refs.c.peeled).where(
    refs.c.repository_id == bindparam("repository")
)
_ONE = Direct(_OF.where(refs.c.name == bindparam("name")))


def visible(prefixes: int = 0) -> Select[str, str, str | None]:
    """All refs of a `repository` but hidden ones, by name; with prefixes, those that start with one
    of so many. Ranges rather than LIKE: they use the key, and nothing needs escaping."""
    found = _OF.where(or_(refs.c.name < HIDDEN, refs.c.name >= _after(HIDDEN)))
    name = refs.c.name
    ranges = [
        and_(name >= bindparam(f"from{n}"), name < bindparam(f"to{n}")) for n in range(prefixes)
    ]
    return (found.where(or_(*ranges)) if ranges else found).order_by(name)


@lru_cache(_SHAPES_KEPT)
def _visible(prefixes: int) -> Direct:
    return Direct(visible(prefixes))


def _bounds(prefixes: Sequence[str]) -> dict[str, object]:
    """The parameters that `visible` has for prefixes."""
    bounds: dict[str, object] = {}
    for number, prefix in enumerate(prefixes):
        bounds[f"from{number}"] = prefix
        bounds[f"to{number}"] = _after(prefix)
    return bounds


def _after(prefix: str) -> str:
    """The first text behind all that start with a prefix; names all start with the empty one."""
    text = prefix.rstrip(_LAST)
    if not text:
        return _BEHIND_ALL
    following = ord(text[-1]) + 1
    return text[:-1] + chr(following if following != _SURROGATES[0] else _SURROGATES[1])


_BELOW = Direct(
    select(refs.c.name)
    .where(
        refs.c.repository_id == bindparam("repository"),
        refs.c.name >= bindparam("low"),
        refs.c.name < bindparam("high"),
    )
    .limit(bindparam("most", type_=Integer()))
)
_COUNT = Direct(
    select(func.count()).select_from(refs).where(refs.c.repository_id == bindparam("repository"))
)
_ADD = Direct(insert(refs))
_REMOVE = Direct(
    delete(refs).where(
        refs.c.repository_id == bindparam("repository"), refs.c.name == bindparam("name")
    )
)
_FEW = 8  # names that are asked for one by one


def default_branch(connection: Connection, repository_id: str) -> str:
    """Raises RepoNotFound."""
    found = select(repositories.c.default_branch).where(repositories.c.id == repository_id)
    branch = connection.execute(found).scalar_one_or_none()
    if branch is None:
        raise RepoNotFound()
    return str(branch)


def generation(connection: Connection, repository_id: str) -> int:
    """Raises RepoNotFound."""
    found = select(repositories.c.generation).where(repositories.c.id == repository_id)
    number = connection.execute(found).scalar_one_or_none()
    if number is None:
        raise RepoNotFound()
    return int(number)


# --- inside a transaction that holds the repository's row -----------------------------------------


def current(connection: Connection, repository_id: str, names: Sequence[str]) -> dict[str, str]:
    """What the named refs point at now; those that do not exist are left out."""
    found: dict[str, str] = {}
    if len(names) <= _FEW:
        for name in names:
            row = _ONE.one(connection, {"repository": repository_id, "name": name})
            if row is not None:
                found[name] = row[1]
        return found
    for at in range(0, len(names), _NAMES_PER_QUERY):
        some = _OF.where(refs.c.name.in_(names[at : at + _NAMES_PER_QUERY]))
        rows = connection.execute(some, {"repository": repository_id})
        found.update((name, sha) for name, sha, _ in rows)
    return found


def count(connection: Connection, repository_id: str) -> int:
    [row] = _COUNT.rows(connection, {"repository": repository_id})
    return int(row[0])


def write(
    connection: Connection,
    repository_id: str,
    values: Mapping[str, tuple[str, str | None] | None],
) -> None:
    """Set refs to (sha, peeled), or delete them (None)."""
    if len(values) <= _FEW:
        for name, value in values.items():
            _REMOVE.run(connection, {"repository": repository_id, "name": name})
            if value is not None:
                _ADD.run(connection, _row(repository_id, name, value))
        return
    names = list(values)
    for at in range(0, len(names), _NAMES_PER_QUERY):
        some = names[at : at + _NAMES_PER_QUERY]
        connection.execute(
            delete(refs).where(refs.c.repository_id == repository_id, refs.c.name.in_(some))
        )
    rows = [_row(repository_id, name, value) for name, value in values.items() if value is not None]
    if rows:
        connection.execute(insert(refs), rows)


def _row(repository_id: str, name: str, value: tuple[str, str | None]) -> dict[str, str | None]:
    return {"repository_id": repository_id, "name": name, "sha": value[0], "peeled": value[1]}


class NameConflicts:
    """Answers whether a ref can be created beside those that exist: `a` and `a/b` cannot be."""

    def __init__(
        self, connection: Connection, repository_id: str, *, created: Sequence[str], deleted: int
    ) -> None:
        """Reads what may be in the way of the `created` names once `deleted` others are gone."""
        if len(created) > _RANGES_MAX:
            found = set(connection.execute(_names(repository_id)).scalars())
        else:
            parents = sorted({parent for name in created for parent in _parents(name)})
            found = set(current(connection, repository_id, parents))
            for name in created:
                below = {"low": name + "/", "high": name + "0", "most": deleted + 1}  # 0 is next
                rows = _BELOW.rows(connection, {"repository": repository_id, **below})
                found.update(row[0] for row in rows)
        self._names = found
        self._sorted = sorted(found)

    def of(self, name: str) -> str | None:
        """The ref that is in the way of creating `name`."""
        for parent in _parents(name):
            if parent in self._names:
                return parent
        at = bisect_left(self._sorted, name + "/")
        if at < len(self._sorted) and self._sorted[at].startswith(name + "/"):
            return self._sorted[at]
        return None

    def add(self, name: str) -> None:
        self._names.add(name)
        insort(self._sorted, name)

    def remove(self, name: str) -> None:
        if name in self._names:
            self._names.discard(name)
            self._sorted.remove(name)


def _names(repository_id: str) -> Select[str]:
    return select(refs.c.name).where(refs.c.repository_id == repository_id)


def _parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:length]) for length in range(2, len(parts)))
