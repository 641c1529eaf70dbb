"""The tables of the git store, all named git_..., in a metadata of their own.

Rows never leave the package. The database may hold other tables; nothing here refers to them.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, Index, LargeBinary, String, Table, text
from sqlalchemy.orm import registry
from sqlmodel import BigInteger, Field, SQLModel

# Names are compared byte by byte: ranges over them must not depend on the database's locale.
ByteString = String().with_variant(String(collation="C"), "postgresql")


class GitTable(SQLModel, registry=registry()):
    model_config = {"defer_build": True}  # no row is ever an object: no validators


class RepositoryRow(GitTable, table=True):
    __tablename__ = "git_repositories"

    id: str = Field(primary_key=True)
    full_name: str = Field(sa_column=Column(ByteString, nullable=False, unique=True))
    owner: str
    name: str
    default_branch: str
    description: str
    created_ms: int = Field(sa_type=BigInteger)
    pack_bytes: int = Field(default=0, sa_type=BigInteger)
    # Raised when objects may have gone from the repository: a push whose check of its new objects
    # is older than this has to look again.
    generation: int = 0


class RefRow(GitTable, table=True):
    __tablename__ = "git_refs"
    __table_args__ = {"sqlite_with_rowid": False}

    repository_id: str = Field(primary_key=True)
    name: str = Field(sa_column=Column(ByteString, primary_key=True))
    sha: str
    peeled: str | None = None


class PackRow(GitTable, table=True):
    __tablename__ = "git_packs"

    id: str = Field(primary_key=True)
    checksum: str  # the trailer, in hex
    size: int = Field(sa_type=BigInteger)
    objects: int
    # Names of the objects that no other object of the pack refers to, 20 bytes each; null when
    # there are too many to be of use.
    roots: bytes | None = Field(default=None, sa_type=LargeBinary)
    data: bytes | None = Field(default=None, sa_type=LargeBinary)  # null: in the object store
    created_ms: int = Field(sa_type=BigInteger)
    # When a repository last took it off its list: requests that began before may still read it.
    released_ms: int | None = Field(default=None, sa_type=BigInteger)


class RepositoryPackRow(GitTable, table=True):
    __tablename__ = "git_repository_packs"
    __table_args__ = (
        Index("git_repository_packs_by_pack", "pack_id"),
        {"sqlite_with_rowid": False},
    )

    repository_id: str = Field(primary_key=True)
    pack_id: str = Field(primary_key=True)


class PushEventRow(GitTable, table=True):
    __tablename__ = "git_push_events"
    __table_args__ = (
        Index(
            "git_push_events_pending",
            "id",
            sqlite_where=text("handled_ms IS NULL"),
            postgresql_where=text("handled_ms IS NULL"),
        ),
        Index("git_push_events_by_repository", "repository_id"),
    )

    id: str = Field(primary_key=True)
    repository_id: str
    pusher_id: str | None = None
    pusher_name: str
    changes: list[list[str | None]] = Field(sa_column=Column(JSON, nullable=False))
    options: list[str] = Field(sa_column=Column(JSON, nullable=False))
    at_ms: int = Field(sa_type=BigInteger)
    handled_ms: int | None = Field(default=None, sa_type=BigInteger)


def _table(row: type[GitTable]) -> Table:
    return GitTable.metadata.tables[str(row.__tablename__)]


# The statements of this package are Core statements on these: there is no session and no identity
# map to keep in step with other processes.
repositories = _table(RepositoryRow)
refs = _table(RefRow)
packs = _table(PackRow)
repository_packs = _table(RepositoryPackRow)
push_events = _table(PushEventRow)
metadata = GitTable.metadata
