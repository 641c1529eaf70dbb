"""GitStore: the front door, which puts the parts together.

Everything a caller outside the package does goes through here; the work is done in the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from obstore.store import ObjectStore
from sqlalchemy import Engine

from git_store.edits import FileEdit
from git_store.files import Files
from git_store.limits import Limits
from git_store.push import Pusher, PushEvent, PushListener
from git_store.refs import Refs
from git_store.repos import Repositories


class GitStore:
    """Safe to call from any thread; any number of processes may share database and objects.

    The engine may be shared with other tables of the same database. On SQLite its owner sets WAL,
    foreign keys and the busy timeout; transactions that write take the write lock at their start.
    """

    repositories: Repositories
    refs: Refs

    def __init__(
        self,
        engine: Engine,
        objects: ObjectStore,
        cache_dir: Path,
        *,
        clock: Callable[[], int],
        limits: Limits | None = None,
        listener: PushListener | None = None,
    ) -> None:
        """`cache_dir` holds quarantined pushes and local copies of packs; `clock` answers
        milliseconds since 1970."""
        raise NotImplementedError

    def create_tables(self) -> None:
        """Create the tables (prefix git_) that do not exist yet."""
        raise NotImplementedError

    def listen(self, listener: PushListener) -> None:
        """Set the one listener of pushes."""
        raise NotImplementedError

    def files(self, repository_id: str) -> Files:
        """Read a repository as it is now. Raises RepoNotFound."""
        raise NotImplementedError

    def commit(
        self,
        repository_id: str,
        edits: Sequence[FileEdit],
        *,
        branch: str,
        message: str,
        author: str,
        pusher: Pusher,
        expected_parent: str | None = None,
        options: Sequence[str] = (),
    ) -> str:
        """Commit edits on a branch (created if it is not there), as a push would. Returns the sha.

        `author` is "Name <mail>". Raises BadName (a path or branch), RefConflict when the branch is
        not at `expected_parent` (None: do not check), PushRejected, ObjectNotFound when a file to
        delete is not there, OverLimit.
        """
        raise NotImplementedError

    def fetch_remote(
        self,
        repository_id: str,
        url: str,
        *,
        ref: str | None = None,
        commit: str | None = None,
        keep: str | None = None,
        allow_private: bool = False,
    ) -> str:
        """Fetch a ref (full name, or a branch) or commit from a remote; returns the commit's sha.

        With both, `commit` must be in what was fetched. Objects arrive through the checks of a
        push; no visible ref moves. `keep` names the hidden ref that keeps the commit alive (see
        `Refs.keep`), by default one per commit. `allow_private` permits file paths and addresses
        of this machine and its networks. Raises RemoteFailed, BadPack, OverLimit.
        """
        raise NotImplementedError

    def pending_events(self, limit: int = 100) -> list[PushEvent]:
        """Events not marked handled yet, oldest first."""
        raise NotImplementedError

    def mark_handled(self, event_id: str) -> None:
        """Take an event out of the outbox. Nothing happens the second time."""
        raise NotImplementedError

    def sweep(self, *, grace_ms: int = 86_400_000) -> int:
        """Remove what no repository uses: packs, left-overs of pushes that died, old handled
        events. Returns how many things were removed."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of opened packs. The engine stays its owner's."""
        raise NotImplementedError
