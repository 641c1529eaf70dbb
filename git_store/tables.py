"""The tables of the git store, all named git_..., in a metadata of their own.

Rows never leave the package. The database may hold other tables; nothing here refers to them.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

# Names are compared byte by byte: ranges over them must not depend on the database's locale.
ByteString = String().with_variant(String(collation="C"), "postgresql")


# The statements of this package are Core statements on these: there is no session and no identity
# map to keep in step with other processes.
metadata = MetaData()

repositories = Table(
    "git_repositories",
    metadata,
    Column("id", String, primary_key=True),
    Column("full_name", ByteString, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("default_branch", String, nullable=False),
    Column("description", String, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("pack_bytes", BigInteger, nullable=False, default=0),
    # Raised when objects may have gone from the repository: a push whose check of its new objects
    # is older than this has to look again.
    Column("generation", Integer, nullable=False, default=0),
)

refs = Table(
    "git_refs",
    metadata,
    Column("repository_id", String, primary_key=True),
    Column("name", ByteString, primary_key=True),
    Column("sha", String, nullable=False),
    Column("peeled", String),
    sqlite_with_rowid=False,
)

packs = Table(
    "git_packs",
    metadata,
    Column("id", String, primary_key=True),
    Column("checksum", String, nullable=False),  # the trailer, in hex
    Column("size", BigInteger, nullable=False),
    Column("objects", Integer, nullable=False),
    # Names of the objects that no other object of the pack refers to, 20 bytes each; null when
    # there are too many to be of use.
    Column("roots", LargeBinary),
    Column("data", LargeBinary),  # null: in the object store
    Column("created_ms", BigInteger, nullable=False),
    # When a repository last took it off its list: requests that began before may still read it.
    Column("released_ms", BigInteger),
)

repository_packs = Table(
    "git_repository_packs",
    metadata,
    Column("repository_id", String, primary_key=True),
    Column("pack_id", String, primary_key=True),
    Index("git_repository_packs_by_pack", "pack_id"),
    sqlite_with_rowid=False,
)

push_events = Table(
    "git_push_events",
    metadata,
    Column("id", String, primary_key=True),
    Column("repository_id", String, nullable=False),
    Column("pusher_id", String),
    Column("pusher_name", String, nullable=False),
    Column("changes", JSON, nullable=False),
    Column("options", JSON, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("handled_ms", BigInteger),
    Index(
        "git_push_events_pending",
        "id",
        sqlite_where=text("handled_ms IS NULL"),
        postgresql_where=text("handled_ms IS NULL"),
    ),
    Index("git_push_events_by_repository", "repository_id"),
)
