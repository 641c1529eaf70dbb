"""GitStore: the front door, which puts the parts together.

Everything a caller outside the package does goes through here; the work is done in the modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from obstore.store import ObjectStore
from sqlalchemy import Engine

from git_store.database import Database
from git_store.edits import CommitBuilder, FileEdit
from git_store.errors import Busy, PushRejected, RefConflict
from git_store.files import Files
from git_store.limits import Limits
from git_store.mirror import Import, Imported, Mirrors
from git_store.names import check_branch
from git_store.objects import Objects
from git_store.pack_process import PackProcesses
from git_store.packs import Packs
from git_store.push import Pusher, Pushes, PushEvent, PushListener, RefChange, Request
from git_store.refs import Refs
from git_store.remote import Fetch, Remotes
from git_store.remote_http import parse_url
from git_store.repos import Record, Repositories
from git_store.upkeep import Proof, Upkeep

DAY_MS = 86_400_000


class GitStore:
    """Safe to call from any thread; any number of processes may share database and objects.

    The engine may be shared with other tables of the same database. On SQLite its owner sets WAL,
    foreign keys and the busy timeout; transactions that write take the write lock at their start.
    """

    def __init__(
        self,
        engine: Engine,
        objects: ObjectStore,
        cache_dir: Path,
        *,
        clock: Callable[[], int],
        limits: Limits | None = None,
        listener: PushListener | None = None,
        git: Path | None = None,
        record: Record | None = None,
    ) -> None:
        """`cache_dir` holds quarantined pushes and local copies of packs; `clock` answers
        milliseconds since 1970. `git` is the binary that does the largest work; without it, it
        takes longer. `record` writes down what happens to repositories."""
        self.limits = limits or Limits()
        self.heavy = threading.BoundedSemaphore(self.limits.heavy_threads)
        processes = threading.BoundedSemaphore(self.limits.processes)
        self.pack_processes = PackProcesses(cache_dir / "quarantine", self.limits, processes, git)
        self._clock = clock
        self._database = Database(engine)
        self._packs = Packs(self._database, objects, cache_dir, clock=clock, limits=self.limits)
        self.repositories = Repositories(self._database, clock, record)
        self.refs = Refs(self._database, self._packs, self.limits.ref_bytes)
        self.pushes = Pushes(
            self._database,
            self._packs,
            cache_dir / "quarantine",
            clock=clock,
            limits=self.limits,
            heavy=self.heavy,
            processes=processes,
            git=git,
        )
        self.pushes.listener = listener
        self._remotes = Remotes(self._database, self._packs, self.pushes, self.limits)
        self._mirrors = Mirrors(
            self._database,
            self._packs,
            self.refs,
            self.pushes,
            self.repositories,
            self.limits,
        )
        self._imports = threading.BoundedSemaphore(self.limits.remote_imports)
        self._upkeep = Upkeep(
            self._database,
            objects,
            self._packs,
            self.pushes,
            quarantined=cache_dir / "quarantine",
            limits=self.limits,
        )

    def create_tables(self) -> None:
        """Create the tables (prefix git_) that do not exist yet."""
        self._database.create_tables()

    def listen(self, listener: PushListener) -> None:
        """Set the one listener of pushes."""
        self.pushes.listener = listener

    def objects(self, repository_id: str) -> Objects:
        """The objects of a repository as of now, for one request in one thread."""
        return Objects(self._packs.of_repository(repository_id))

    def files(self, repository_id: str) -> Files:
        """Read a repository as it is now. Raises RepoNotFound."""
        objects = self.objects(repository_id)
        if not objects.packs:
            self.repositories.by_id(repository_id)
        return Files(objects, self.limits)

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
        delete is not there, OverLimit, StorageFailed.
        """
        repository = self.repositories.by_id(repository_id)
        ref = check_branch(branch)
        found = self.refs.get(repository_id, ref)
        parent = found.sha if found else None
        if expected_parent is not None and parent != expected_parent:
            raise RefConflict(f"{branch} is at {parent or 'nothing'}, not at {expected_parent}")
        new = CommitBuilder(self.objects(repository_id), self.limits).build(
            edits,
            parent=parent,
            message=message,
            author=author,
            at_seconds=self._clock() // 1000,
        )
        report = self.pushes.receive(
            Request(
                repository=repository,
                pusher=pusher,
                changes=[RefChange(ref, parent, new.sha)],
                options=options,
                chunks=new.pack,
            ),
            say=lambda text: None,
            progress=lambda text: None,
        )
        problem = report.unpack or report.message or report.refs[ref]
        if report.storage is not None:
            raise report.storage
        if report.event is None:
            refused = report.unpack or report.message
            raise PushRejected(refused) if refused else RefConflict(problem)
        return new.sha

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
        of this machine and its networks. Raises RemoteFailed, BadPack, OverLimit, BadName,
        ObjectNotFound.
        """
        self.repositories.by_id(repository_id)
        address = parse_url(url, allow_private=allow_private)
        return self._remotes.fetch(Fetch(repository_id, address, ref, commit, keep))

    def import_remote(
        self,
        repository_id: str,
        url: str,
        *,
        pusher: Pusher,
        credentials: tuple[str, str] | None = None,
        prune: bool = False,
        options: Sequence[str] = (),
        allow_private: bool = False,
    ) -> Imported:
        """Make the branches and tags of a remote ours, as one push of `pusher`; forced where ours
        differ. `prune` drops those that the remote does not have.

        `credentials` are a user and password; they and those in the URL are never shown. A remote
        whose default branch ours does not have gives its own. Raises as `fetch_remote`, and Busy.
        """
        repository = self.repositories.by_id(repository_id)
        address = parse_url(url, allow_private=allow_private)
        if credentials is not None:
            address = replace(address, username=credentials[0], password=credentials[1])
        if not self._imports.acquire(blocking=False):
            raise Busy(f"{self.limits.remote_imports} imports are running (remote_imports)")
        try:
            return self._mirrors.run(Import(repository, address, pusher, prune, options))
        finally:
            self._imports.release()

    def pending_events(self, limit: int = 100) -> list[PushEvent]:
        """Events not marked handled yet, oldest first."""
        return self.pushes.pending(limit)

    def mark_handled(self, event_id: str) -> None:
        """Take an event out of the outbox. Nothing happens the second time."""
        self.pushes.mark_handled(event_id)

    def sweep(self, *, grace_ms: int = DAY_MS) -> int:
        """Remove what no repository uses: packs, left-overs of pushes that died, old handled
        events. Returns how many things were removed."""
        return self._upkeep.sweep(before_ms=self._clock() - grace_ms)

    def maintain(self, *, grace_ms: int = DAY_MS, repositories: int = 20) -> int:
        """Join the small packs of up to `repositories` crowded repositories, then sweep. Meant to
        be called now and then, by any process. Returns how many things were removed."""
        for repository_id in self._upkeep.crowded(repositories):
            self._upkeep.join(repository_id)
        return self.sweep(grace_ms=grace_ms)

    def gc(self, repository_id: str, *, grace_ms: int = 14 * DAY_MS) -> int:
        """Drop what no ref reaches any more and is older than the grace period, and join packs.
        Returns the number of objects dropped. Raises RepoNotFound."""
        self.repositories.by_id(repository_id)
        dropped = self._upkeep.collect(repository_id, before_ms=self._clock() - grace_ms)
        self._upkeep.join(repository_id)
        return dropped

    def fsck(self, repository_id: str) -> Proof:
        """Read every object and follow every reference. Raises RepoNotFound."""
        self.repositories.by_id(repository_id)
        return self._upkeep.prove(repository_id)

    def close(self) -> None:
        """Let go of opened packs and of connections. The engine stays its owner's."""
        self.pushes.close()
        self._packs.close()
        self._database.close()
