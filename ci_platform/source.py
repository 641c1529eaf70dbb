"""Pipeline code, trees and repositories as the platform sees them, read from the git store.

The only place where the platform meets `git_store`: it turns its values and errors into ours. What
a push starts is commands/pushes.py; when a commit is loaded is the worker's.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import git_store
from ci_platform.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    NotFound,
    RepositoryExists,
    RepositoryNotFound,
    SourceError,
    StoreUnavailable,
    TooLarge,
    TooMany,
)
from ci_platform.model import Push, RefUpdate, Repository, RepositoryId, SourceFiles
from ci_platform.ports.hosting import Commit, FileDiff, NewRepository
from ci_platform.ports.repositories import FileChange, Imported, Proof
from git_store.names import KEEP

FOLDER = ".ci"
PIPELINE = ".ci/pipeline.py"
SOURCE_BYTES = 64 << 20  # of all files of one commit
SOURCE_FILES = 2000
CACHE_BYTES = 128 << 20  # of loaded sources held in this process
BRANCHES_MAX = 1000
FETCHED = "fetched/"  # hidden refs that say where a remote's ref was: no visible ref moves


@contextmanager
def translated() -> Iterator[None]:
    """Turn the git store's errors into the platform's."""
    try:
        yield
    except git_store.BadName as error:
        raise InvalidRequest(error.detail, field=error.field) from error
    except git_store.RepoNotFound as error:
        raise RepositoryNotFound() from error
    except git_store.RepoExists as error:
        raise RepositoryExists(error.detail) from error
    except git_store.ObjectNotFound as error:
        raise NotFound(error.detail) from error
    except git_store.OverLimit as error:
        raise TooLarge(error.detail, field=error.limit or None) from error
    except (git_store.RefConflict, git_store.PushRejected) as error:
        raise Conflict(error.detail) from error
    except git_store.RemoteFailed as error:
        raise InvalidRequest(error.detail, field="remote_url") from error
    except git_store.Busy as error:
        raise TooMany(error.detail) from error
    except git_store.StorageFailed as error:
        raise StoreUnavailable(error.detail) from error
    except git_store.GitStoreError as error:
        raise InternalError(error.detail) from error


@dataclass(slots=True)
class SourceCache:
    """The sources loaded last, bounded by their size. Commits never change, so nor do these."""

    bytes_max: int = CACHE_BYTES
    _kept: OrderedDict[tuple[str, str], tuple[SourceFiles, int]] = field(
        default_factory=OrderedDict
    )
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, repository_id: str, commit: str) -> SourceFiles | None:
        with self._lock:
            found = self._kept.get((repository_id, commit))
            if found is None:
                return None
            self._kept.move_to_end((repository_id, commit))
            return found[0]

    def put(self, source: SourceFiles) -> None:
        # Text in memory is at least its characters; 200 stands for what surrounds a file.
        size = sum(len(path) + len(text) + 200 for path, text in source.files.items())
        key = (str(source.repository_id), source.commit)
        with self._lock:
            if key in self._kept or size > self.bytes_max:
                return
            self._kept[key] = (source, size)
            self._bytes += size
            while self._bytes > self.bytes_max:
                self._bytes -= self._kept.popitem(last=False)[1][1]


class GitSource:
    """ports.Source over a GitStore."""

    def __init__(
        self,
        store: git_store.GitStore,
        *,
        bytes_max: int = SOURCE_BYTES,
        allow_private_remotes: bool = False,
    ) -> None:
        self._store = store
        self._bytes_max = bytes_max
        self._allow_private_remotes = allow_private_remotes
        self._cache = SourceCache()

    def load(self, repository_id: RepositoryId, commit: str) -> SourceFiles:
        found = self._cache.get(repository_id, commit)
        if found is None:
            with translated():
                texts = _load(self._store.files(repository_id), commit, self._bytes_max)
            found = SourceFiles(repository_id, commit, texts, _digest(texts))
            self._cache.put(found)
        if not found.files:
            raise SourceError(f"there is no {PIPELINE} in commit {commit[:8]}", missing=True)
        return found

    def has_pipeline(self, repository_id: RepositoryId, commit: str) -> bool:
        with translated():
            try:
                return self._store.files(repository_id).entry(commit, PIPELINE) is not None
            except git_store.ObjectNotFound:
                return False

    def resolve(self, repository_id: RepositoryId, ref: str) -> str | None:
        with translated():
            found = self._store.refs.resolve(repository_id, ref)
            if found is None:
                # A repository that lives elsewhere: where the ref was when last fetched.
                fetched = self._store.refs.get(repository_id, KEEP + FETCHED + ref)
                found = None if fetched is None else fetched.target
            return found

    def default_ref(self, repository_id: RepositoryId) -> str:
        with translated():
            return f"refs/heads/{self._store.repositories.by_id(repository_id).default_branch}"

    def keep(self, repository_id: RepositoryId, commit: str) -> None:
        with translated():
            if self._store.refs.get(repository_id, KEEP + commit) is None:
                self._store.refs.keep(repository_id, commit, commit)

    def release(self, repository_id: RepositoryId, commit: str) -> None:
        with translated():
            self._store.refs.release(repository_id, commit)

    def commit(self, repository_id: RepositoryId, sha: str) -> Commit:
        with translated():
            return _commit(self._store.files(repository_id).commit(sha))

    def changed_paths(
        self, repository_id: RepositoryId, before: str | None, after: str
    ) -> list[str]:
        with translated():
            return self._store.files(repository_id).changed_paths(before, after)

    def fetch(self, repository_id: RepositoryId, url: str, commit: str, ref: str) -> None:
        with translated():
            self._store.fetch_remote(
                repository_id,
                url,
                ref=ref,
                commit=commit,
                keep=FETCHED + ref,
                allow_private=self._allow_private_remotes,
            )


class GitTrees:
    """ports.Trees over a GitStore."""

    def __init__(self, store: git_store.GitStore) -> None:
        self._store = store

    def export(self, repository_id: str, commit: str, into: Path) -> str:
        with translated():
            return self._store.files(repository_id).export(commit, into)

    def history(self, repository_id: str, commit: str, into: Path, *, depth: int) -> None:
        with translated():
            self._store.files(repository_id).history(commit, into, depth=depth)


class GitPushes:
    """ports.Pushes over a GitStore's outbox."""

    def __init__(self, store: git_store.GitStore) -> None:
        self._store = store

    def pending(self, *, limit: int = 100) -> list[Push]:
        with translated():
            return [push_of(event) for event in self._store.pending_events(limit)]

    def done(self, push_id: str) -> None:
        with translated():
            self._store.mark_handled(push_id)


def push_of(event: git_store.PushEvent) -> Push:
    """The git store's event as the platform's value: what its listener hands to the command."""
    return Push(
        id=event.id,
        repository_id=RepositoryId(event.repository_id),
        at_ms=event.at_ms,
        actor=event.pusher.name,
        actor_id=event.pusher.id,
        updates=[RefUpdate(change.ref, change.old, change.new) for change in event.changes],
        options=event.options,
    )


class GitRepositories:
    """ports.Repositories over a GitStore."""

    def __init__(self, store: git_store.GitStore, *, allow_private_remotes: bool = False) -> None:
        self._store = store
        self._allow_private_remotes = allow_private_remotes

    def create(
        self, owner: str, name: str, *, default_branch: str = "main", description: str = ""
    ) -> Repository:
        with translated():
            return _repository(
                self._store.repositories.create(
                    owner, name, default_branch=default_branch, description=description
                )
            )

    def create_many(
        self, wanted: Sequence[NewRepository], *, template: RepositoryId | None
    ) -> list[Repository | InvalidRequest | RepositoryExists]:
        new = [
            git_store.NewRepository(one.owner, one.name, description=one.description)
            for one in wanted
        ]
        with translated():
            made = self._store.repositories.create_many(new, template=template)
        return [_made(one) for one in made]

    def get(self, owner: str, name: str) -> Repository:
        with translated():
            return _repository(self._store.repositories.get(owner, name))

    def by_id(self, repository_id: RepositoryId) -> Repository:
        with translated():
            return _repository(self._store.repositories.by_id(repository_id))

    def by_ids(self, ids: Iterable[RepositoryId]) -> Sequence[Repository]:
        with translated():
            return [_repository(one) for one in self._store.repositories.by_ids(ids)]

    def list(
        self, *, after: str = "", limit: int = 100, among: Iterable[RepositoryId] | None = None
    ) -> list[Repository]:
        with translated():
            found = self._store.repositories.list(after=after, limit=limit, among=among)
        return [_repository(one) for one in found]

    def delete(self, repository_id: RepositoryId) -> None:
        with translated():
            self._store.repositories.delete(repository_id)

    def fork(self, repository_id: RepositoryId, owner: str, name: str) -> Repository:
        with translated():
            return _repository(self._store.repositories.fork(repository_id, owner, name))

    def import_remote(
        self,
        repository_id: RepositoryId,
        url: str,
        *,
        credentials: tuple[str, str] | None,
        prune: bool,
        options: Sequence[str],
        pusher_id: str | None,
        pusher: str,
    ) -> Imported:
        with translated():
            try:
                done = self._store.import_remote(
                    repository_id,
                    url,
                    pusher=git_store.Pusher(pusher_id, pusher),
                    credentials=credentials,
                    prune=prune,
                    options=options,
                    allow_private=self._allow_private_remotes,
                )
            except git_store.RemoteFailed as error:
                raise InvalidRequest(error.detail, field="url") from error
        return Imported(done.moved, done.refused)

    def collect_garbage(self, repository_id: RepositoryId) -> int:
        with translated():
            return self._store.gc(repository_id)

    def prove(self, repository_id: RepositoryId) -> Proof:
        with translated():
            found = self._store.fsck(repository_id)
        return Proof(found.packs, found.objects, found.refs, found.problems)

    def archive(
        self, repository_id: RepositoryId, commit: str, *, kind: str, prefix: str
    ) -> Iterator[bytes]:
        with translated():
            files = self._store.files(repository_id)
            yield from files.archive(commit, git_store.ArchiveFormat(kind), prefix=prefix)

    def branches(self, repository_id: RepositoryId) -> Mapping[str, str]:
        with translated():
            refs = self._store.refs.list(repository_id, "refs/heads/", limit=BRANCHES_MAX)
        return {ref.name.removeprefix("refs/heads/"): ref.target for ref in refs}

    def log(
        self, repository_id: RepositoryId, commit: str, *, skip: int = 0, limit: int = 50
    ) -> Sequence[Commit]:
        with translated():
            found = self._store.files(repository_id).log(commit, skip=skip, limit=limit)
        return [_commit(one) for one in found]

    def diff(
        self, repository_id: RepositoryId, before: str | None, after: str
    ) -> tuple[Sequence[FileDiff], bool]:
        with translated():
            found, more = self._store.files(repository_id).diff(before, after)
        return [_file_diff(one) for one in found], more

    def read_file(self, repository_id: RepositoryId, commit: str, path: str) -> bytes:
        with translated():
            return self._store.files(repository_id).read(commit, path)

    def list_tree(
        self, repository_id: RepositoryId, commit: str, path: str
    ) -> Sequence[tuple[str, str]]:
        with translated():
            entries = self._store.files(repository_id).list(commit, path)
        return [(entry.name, str(entry.kind)) for entry in entries]

    def commit_files(
        self,
        repository_id: RepositoryId,
        *,
        branch: str,
        changes: Sequence[FileChange],
        message: str,
        author: str,
        expected_parent: str | None,
        pusher_id: str | None = None,
        pusher: str = "sluice",
    ) -> str:
        edits = [
            git_store.FileEdit(one.path, one.content, one.executable, one.moved_from)
            for one in changes
        ]
        with translated():
            return self._store.commit(
                repository_id,
                edits,
                branch=branch,
                message=message,
                author=author,
                pusher=git_store.Pusher(pusher_id, pusher),
                expected_parent=expected_parent,
            )


def _repository(row: git_store.Repository) -> Repository:
    return Repository(
        id=RepositoryId(row.id),
        owner=row.owner,
        name=row.name,
        default_branch=row.default_branch,
        description=row.description,
        created_ms=row.created_ms,
    )


def _made(
    one: git_store.Repository | git_store.BadName | git_store.RepoExists,
) -> Repository | InvalidRequest | RepositoryExists:
    if isinstance(one, git_store.BadName):
        return InvalidRequest(one.detail, field=one.field)
    if isinstance(one, git_store.RepoExists):
        return RepositoryExists(one.detail)
    return _repository(one)


def _file_diff(one: git_store.FileDiff) -> FileDiff:
    return FileDiff(
        status=one.status,
        path=one.path,
        old_path=one.old_path,
        old_mode=one.old_mode,
        new_mode=one.new_mode,
        binary=one.binary,
        additions=one.additions,
        deletions=one.deletions,
        text=one.text,
    )


def _commit(info: git_store.CommitInfo) -> Commit:
    return Commit(
        sha=info.sha,
        tree=info.tree,
        parents=info.parents,
        author=info.author,
        committed_ms=info.committed_ms,
        message=info.message,
    )


def _load(files: git_store.Files, commit: str, bytes_max: int) -> dict[str, str]:
    """Nothing if there is no pipeline file."""
    texts: dict[str, str] = {}
    if not _has_pipeline_file(files, commit):
        return texts
    left = bytes_max
    for entry in files.walk(commit, FOLDER):
        if not entry.path.endswith(".py"):
            continue
        if len(texts) >= SOURCE_FILES:
            raise SourceError(f"{FOLDER} has more than {SOURCE_FILES} Python files")
        if entry.kind is not git_store.EntryKind.FILE:
            raise SourceError(f"{entry.path} is a {entry.kind}, not a file")
        try:
            data = files.read(commit, entry.path, max_bytes=left)
        except git_store.OverLimit as error:
            raise SourceError(
                f"{entry.path} is too large: the Python files below {FOLDER} may have "
                f"{bytes_max:,} bytes together"
            ) from error
        left -= len(data)
        texts[entry.path] = _text(entry.path, data)
    if not texts[PIPELINE].strip():
        raise SourceError(f"{PIPELINE} is empty")
    return texts


def _has_pipeline_file(files: git_store.Files, commit: str) -> bool:
    try:
        entry = files.entry(commit, PIPELINE)
    except git_store.ObjectNotFound as error:
        gone = f"the commit {commit} is not in the repository any more"
        raise SourceError(gone, missing=True) from error
    if entry is None:
        folder = files.entry(commit, FOLDER)
        if folder is not None and folder.kind is not git_store.EntryKind.DIRECTORY:
            raise SourceError(f"{FOLDER} is a {folder.kind}, not a directory", missing=True)
        return False
    if entry.kind is not git_store.EntryKind.FILE:
        words = {"dir": "directory", "link": "symbolic link"}
        raise SourceError(f"{PIPELINE} is a {words.get(entry.kind, entry.kind)}, not a file")
    return True


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}"
        ) from error


def _digest(texts: Mapping[str, str]) -> str:
    found = hashlib.sha256()
    for path in sorted(texts):
        for part in (path, texts[path]):
            data = part.encode(errors="surrogateescape")
            found.update(len(data).to_bytes(8, "big"))
            found.update(data)
    return found.hexdigest()
