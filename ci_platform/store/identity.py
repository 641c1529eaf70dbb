"""Users, roles, tokens and one-time links. Knows nothing of what they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Select, bindparam, select
from sqlalchemy.engine import Connection

from ci_platform.errors import Conflict
from ci_platform.model import Json, RepositoryId, Role, User, UserId
from ci_platform.ports import Clock
from ci_platform.ports.identity import Token
from ci_platform.ports.telling import Notice, NoticeKind
from ci_platform.store.codec import Columns, plain, plain_or_none
from ci_platform.store.database import Database
from ci_platform.store.direct import Direct
from ci_platform.store.ids import new_id
from ci_platform.store.notices import write_notices
from ci_platform.store.packing import pack, unpack
from ci_platform.store.tables import LINKS, ROLES, TOKENS, USERS

TOUCH_MS = 60_000  # a token's last use is kept to the minute, not written at every request

# Every request of a client asks these.
_BY_DIGEST = Direct(select(TOKENS).where(TOKENS.c.digest == bindparam("digest")))
_BY_ID = Direct(select(USERS).where(USERS.c.id == bindparam("user")))
_ROLES_OF = Direct(select(ROLES).where(ROLES.c.user_id == bindparam("user")))


class SqlIdentityStore:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create_user(self, name: str, password_hash: str | None, *, admin: bool) -> User:
        now_ms = self._clock.now_ms()
        user = User(UserId(new_id("usr", now_ms)), plain(name, "name"), admin, now_ms)
        columns = {
            "id": user.id,
            "name": user.name,
            "password_hash": plain_or_none(password_hash, "password_hash"),
            "admin": admin,
            "created_ms": now_ms,
        }
        if self.user_by_name(name) is not None:
            raise Conflict(f"the name {name!r} is taken")
        self._database.write(lambda connection: connection.execute(USERS.insert(), columns))
        return user

    def user(self, user_id: UserId) -> User | None:
        rows = self._direct(_BY_ID, {"user": user_id})
        return _user_of(rows[0]) if rows else None

    def user_by_name(self, name: str) -> tuple[User, str | None] | None:
        row = self._one(select(USERS).where(USERS.c.name == name))
        return None if row is None else (_user_of(row), row.password_hash)

    def users(self) -> list[User]:
        return [_user_of(row) for row in self._all(select(USERS).order_by(USERS.c.id))]

    def set_password(self, user_id: UserId, password_hash: str) -> None:
        plain(password_hash, "password_hash")
        statement = USERS.update().where(USERS.c.id == user_id).values(password_hash=password_hash)
        self._database.write(lambda connection: connection.execute(statement))

    def set_role(self, user_id: UserId, repository_id: RepositoryId, role: Role | None) -> None:
        row = {"user_id": user_id, "repository_id": plain(repository_id, "repository_id")}
        remove = ROLES.delete().where(
            ROLES.c.user_id == user_id, ROLES.c.repository_id == repository_id
        )

        def work(connection: Connection) -> None:
            # The user's row orders two changes at once.
            connection.execute(select(USERS.c.id).where(USERS.c.id == user_id).with_for_update())
            connection.execute(remove)
            if role is not None:
                connection.execute(ROLES.insert(), {**row, "role": role.value})

        self._database.write(work)

    def roles(self, user_id: UserId) -> Mapping[RepositoryId, Role]:
        rows = self._direct(_ROLES_OF, {"user": user_id})
        return {RepositoryId(row.repository_id): Role(row.role) for row in rows}

    def add_token(self, token: Token, digest: str) -> None:
        columns = {
            "id": plain(token.id, "id"),
            "digest": plain(digest, "digest"),
            "name": plain(token.name, "name"),
            "user_id": token.user_id,
            "scopes": pack(sorted(token.scopes), "scopes"),
            "repository_id": token.repository_id,
            "created_ms": token.created_ms,
            "expires_ms": token.expires_ms,
            "last_used_ms": token.last_used_ms,
        }

        def work(connection: Connection) -> None:
            connection.execute(TOKENS.insert(), columns)
            write_notices(connection, [_notice(NoticeKind.TOKEN_CREATED, token, token.created_ms)])

        self._database.write(work)

    def token(self, digest: str) -> Token | None:
        rows = self._direct(_BY_DIGEST, {"digest": digest})
        return _token_of(rows[0]) if rows else None

    def tokens(self, user_id: UserId | None = None) -> list[Token]:
        statement = select(TOKENS).order_by(TOKENS.c.id)
        if user_id is not None:
            statement = statement.where(TOKENS.c.user_id == user_id)
        return [_token_of(row) for row in self._all(statement)]

    def revoke_token(self, token_id: str) -> None:
        gone = TOKENS.delete().where(TOKENS.c.id == token_id).returning(*TOKENS.c)
        now_ms = self._clock.now_ms()

        def work(connection: Connection) -> None:
            row = connection.execute(gone).one_or_none()
            if row is not None:
                notice = _notice(NoticeKind.TOKEN_REVOKED, _token_of(row), now_ms)
                write_notices(connection, [notice])

        self._database.write(work)

    def touch_token(self, token_id: str, at_ms: int) -> None:
        row = self._one(select(TOKENS.c.last_used_ms).where(TOKENS.c.id == token_id))
        recent = row is not None and row.last_used_ms is not None
        if row is None or (recent and row.last_used_ms > at_ms - TOUCH_MS):
            return
        statement = TOKENS.update().where(TOKENS.c.id == token_id).values(last_used_ms=at_ms)
        self._database.write(lambda connection: connection.execute(statement))

    def put_link(self, digest: str, purpose: str, expires_ms: int) -> None:
        row = {
            "purpose": plain(purpose, "purpose"),
            "digest": plain(digest, "digest"),
            "expires_ms": expires_ms,
        }

        def work(connection: Connection) -> None:
            connection.execute(LINKS.delete().where(LINKS.c.purpose == purpose))
            connection.execute(LINKS.insert(), row)

        self._database.write(work)

    def take_link(self, digest: str, now_ms: int) -> str | None:
        taken = (
            LINKS.delete()
            .where(LINKS.c.digest == digest)
            .returning(LINKS.c.purpose, LINKS.c.expires_ms)
        )
        row = self._database.write(lambda connection: connection.execute(taken).one_or_none())
        return row.purpose if row is not None and row.expires_ms > now_ms else None

    def forget_links(self, now_ms: int) -> int:
        expired = LINKS.delete().where(LINKS.c.expires_ms <= now_ms)
        return self._database.write(lambda connection: connection.execute(expired).rowcount)

    def _direct(self, statement: Direct, asked: Mapping[str, object]) -> Sequence[Columns]:
        return self._database.read(lambda connection: statement.rows(connection, asked))

    def _one(self, statement: Select[tuple[Json, ...]]) -> Columns | None:
        return self._database.read(lambda connection: connection.execute(statement).one_or_none())

    def _all(self, statement: Select[tuple[Json, ...]]) -> Sequence[Columns]:
        return self._database.read(lambda connection: connection.execute(statement).all())


def _notice(kind: NoticeKind, token: Token, at_ms: int) -> Notice:
    """That a token came or went: what it was for, and nothing of its secret."""
    detail: dict[str, Json] = {
        "token": token.id,
        "name": token.name,
        "scopes": sorted(token.scopes),
        "user": token.user_id,
        "expires_ms": token.expires_ms,
    }
    return Notice(new_id("evt", at_ms), kind, token.repository_id, at_ms, detail)


def _user_of(row: Columns) -> User:
    return User(UserId(row.id), row.name, row.admin, row.created_ms)


def _token_of(row: Columns) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        user_id=None if row.user_id is None else UserId(row.user_id),
        scopes=frozenset(unpack(row.scopes)),
        repository_id=None if row.repository_id is None else RepositoryId(row.repository_id),
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        last_used_ms=row.last_used_ms,
    )
