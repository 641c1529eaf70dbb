"""A git server: packs are immutable objects, refs are rows. It has never heard of CI.

The names below are the whole public surface; everything else may change.
"""

from git_store.archive import ArchiveFormat
from git_store.diffs import FileDiff
from git_store.edits import FileEdit
from git_store.errors import (
    BadName,
    BadPack,
    Busy,
    GitStoreError,
    ObjectNotFound,
    OverLimit,
    ProtocolError,
    PushRejected,
    RefConflict,
    RemoteFailed,
    RepoExists,
    RepoNotFound,
    StorageFailed,
)
from git_store.files import CommitInfo, EntryKind, Files, TreeEntry
from git_store.http import Access, Authenticate, GitHttp, Verdict
from git_store.limits import Limits
from git_store.mirror import Imported
from git_store.push import Push, Pusher, PushEvent, PushListener, RefChange
from git_store.refs import Ref, Refs
from git_store.repos import (
    NewRepository,
    Record,
    Repositories,
    Repository,
    RepositoryEvent,
    RepositoryEventKind,
)
from git_store.store import GitStore
from git_store.upkeep import Proof

__all__ = [
    "Access",
    "ArchiveFormat",
    "Authenticate",
    "BadName",
    "BadPack",
    "Busy",
    "CommitInfo",
    "EntryKind",
    "FileDiff",
    "FileEdit",
    "Files",
    "GitHttp",
    "GitStore",
    "GitStoreError",
    "Imported",
    "Limits",
    "NewRepository",
    "ObjectNotFound",
    "OverLimit",
    "Proof",
    "ProtocolError",
    "Push",
    "PushEvent",
    "PushListener",
    "PushRejected",
    "Pusher",
    "Record",
    "Ref",
    "RefChange",
    "RefConflict",
    "Refs",
    "RemoteFailed",
    "RepoExists",
    "RepoNotFound",
    "Repositories",
    "Repository",
    "RepositoryEvent",
    "RepositoryEventKind",
    "StorageFailed",
    "TreeEntry",
    "Verdict",
]
