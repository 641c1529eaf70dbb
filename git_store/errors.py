"""Everything the git store raises, sorted by who must act.

    GitStoreError
    ├── BadName             an owner, repository, branch or ref name is not acceptable
    ├── RepoNotFound        no such repository
    ├── RepoExists          the name is taken
    ├── ObjectNotFound      no such commit, path or ref in this repository
    ├── RefConflict         the ref is not where the caller expected it
    ├── PushRejected        a check or a policy refused the push
    │   └── BadPack             the pack is damaged, hostile or incomplete
    ├── OverLimit           something is larger than a limit; names the limit
    ├── RemoteFailed        a remote repository could not be fetched from
    ├── StorageFailed       database, disk or object store failed; nothing was changed
    ├── Busy                as much of this is being done as may be at once
    └── ProtocolError       the client did not speak the git protocol

The docstring of a class is its default message.
"""

from __future__ import annotations


class GitStoreError(Exception):
    """The git store cannot do this."""

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip()
        super().__init__(self.detail)


class BadName(GitStoreError):
    """The name is not acceptable."""

    def __init__(self, detail: str | None = None, *, field: str = "name") -> None:
        super().__init__(detail)
        self.field = field


class RepoNotFound(GitStoreError):
    """There is no such repository."""


class RepoExists(GitStoreError):
    """A repository with this name exists."""


class ObjectNotFound(GitStoreError):
    """There is no such object, path or ref in this repository."""


class RefConflict(GitStoreError):
    """The ref has moved since the caller looked."""


class PushRejected(GitStoreError):
    """The push was refused."""


class BadPack(PushRejected):
    """The pack is damaged or incomplete."""


class OverLimit(GitStoreError):
    """A limit is exceeded."""

    def __init__(self, detail: str | None = None, *, limit: str = "") -> None:
        super().__init__(detail)
        self.limit = limit


class RemoteFailed(GitStoreError):
    """The remote repository could not be fetched from."""


class StorageFailed(GitStoreError):
    """What packs and refs are kept in does not work now; nothing was changed, try again later."""


class Busy(GitStoreError):
    """As much of this is being done as may be at once; try again later."""


class ProtocolError(GitStoreError):
    """The client does not speak the git protocol."""
