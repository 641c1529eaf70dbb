"""Routes of a repository's history and upkeep: import, log, diff, archives, gc, fsck."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from ci_platform.api.answers import Answer, RepositoryAnswer, iso
from ci_platform.api.desk import Caller, From
from ci_platform.api.requests import Body
from ci_platform.api.requests import Query as QueryString
from ci_platform.errors import InvalidRequest
from ci_platform.ports.hosting import Commit, FileDiff
from ci_platform.ports.repositories import Imported, Proof
from ci_platform.queries.git import LOG_MAX, GitQueries

router = APIRouter(prefix="/repos/{owner}/{name}", tags=["repositories"])

_MEDIA_TYPES = {"tar.gz": "application/gzip", "zip": "application/zip"}


class NewImport(Body):
    """Credentials come apart from the url, and are shown nowhere."""

    url: str
    username: str | None = None
    password: str | None = None
    mirror: bool = False


def credentials_of(username: str | None, password: str | None) -> tuple[str, str] | None:
    """Raises InvalidRequest for a username alone."""
    if password is None and username is None:
        return None
    if not password:
        raise InvalidRequest("a username needs a password", field="password")
    return username or "git", password


class LogOf(QueryString):
    ref: str | None = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=LOG_MAX)] = 50


class DiffOf(QueryString):
    base: str | None = None
    head: str | None = None


class ChangesOf(QueryString):
    before: str | None = None
    after: str | None = None


class ImportAnswer(Answer):
    repository: RepositoryAnswer
    refs: int
    refused: dict[str, str]

    @classmethod
    def of(cls, repository: RepositoryAnswer, done: Imported) -> ImportAnswer:
        return cls(repository=repository, refs=done.refs, refused=dict(done.refused))


class CommitInfo(Answer):
    sha: str
    tree: str
    parents: list[str]
    author: str
    committed_at: str
    message: str

    @classmethod
    def of(cls, commit: Commit) -> CommitInfo:
        return cls(
            sha=commit.sha,
            tree=commit.tree,
            parents=list(commit.parents),
            author=commit.author,
            committed_at=iso(commit.committed_ms),
            message=commit.message,
        )


class CommitList(Answer):
    commits: list[CommitInfo]
    cursor: str | None  # of the next page


class FileDiffAnswer(Answer):
    status: str  # added, deleted, modified, renamed
    path: str
    old_path: str | None
    old_mode: str | None
    new_mode: str | None
    binary: bool
    additions: int
    deletions: int
    text: str | None  # unified; null: over a limit

    @classmethod
    def of(cls, diff: FileDiff) -> FileDiffAnswer:
        return cls(
            status=diff.status,
            path=shown_path(diff.path),
            old_path=None if diff.old_path is None else shown_path(diff.old_path),
            old_mode=None if diff.old_mode is None else f"{diff.old_mode:06o}",
            new_mode=None if diff.new_mode is None else f"{diff.new_mode:06o}",
            binary=diff.binary,
            additions=diff.additions,
            deletions=diff.deletions,
            text=None if diff.text is None else diff.text.decode("utf-8", "replace"),
        )


def shown_path(path: str) -> str:
    """As JSON can say it: bytes that are not UTF-8 are replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class DiffAnswer(Answer):
    base: str | None
    head: str
    files: list[FileDiffAnswer]
    more: bool  # there are more files than are listed


class ChangeList(Answer):
    before: str | None
    after: str
    paths: list[str]


class Dropped(Answer):
    dropped: int  # objects


class ProofAnswer(Answer):
    whole: bool
    packs: int
    objects: int
    refs: int
    problems: list[str]

    @classmethod
    def of(cls, proof: Proof) -> ProofAnswer:
        return cls(
            whole=not proof.problems,
            packs=proof.packs,
            objects=proof.objects,
            refs=proof.refs,
            problems=list(proof.problems),
        )


@router.post("/import", status_code=201)
def import_repository(caller: From, owner: str, name: str, body: NewImport) -> ImportAnswer:
    """Copy a repository from elsewhere; `mirror` makes one that has branches a copy again."""
    repository, done = caller.desk.commands.repositories.import_remote(
        caller.actor(),
        owner,
        name,
        url=body.url,
        credentials=credentials_of(body.username, body.password),
        mirror=body.mirror,
    )
    return ImportAnswer.of(RepositoryAnswer.of(repository, caller.desk.base_url), done)


@router.get("/commits")
def list_commits(caller: From, owner: str, name: str, at: Annotated[LogOf, Query()]) -> CommitList:
    """The history of a ref, newest first."""
    found = _git(caller).log(caller.actor(), owner, name, at.ref, cursor=at.cursor, limit=at.limit)
    return CommitList(commits=[CommitInfo.of(one) for one in found.commits], cursor=found.cursor)


@router.get("/diff")
def get_diff(caller: From, owner: str, name: str, at: Annotated[DiffOf, Query()]) -> DiffAnswer:
    """What differs between two refs, file by file; without `base`, all of `head` is new."""
    found = _git(caller).diff(caller.actor(), owner, name, base=at.base, head=at.head)
    files = [FileDiffAnswer.of(one) for one in found.files]
    return DiffAnswer(base=found.before, head=found.after, files=files, more=found.more)


@router.get(
    "/diff.patch",
    response_class=Response,
    responses={200: {"content": {"text/x-diff": {}}}},
)
def get_patch(caller: From, owner: str, name: str, at: Annotated[DiffOf, Query()]) -> Response:
    """The same as one text that `git apply` takes. What it cannot hold is named in headers."""
    found = _git(caller).diff(caller.actor(), owner, name, base=at.base, head=at.head)
    left_out = sum(one.text is None or one.binary for one in found.files)
    headers = {"X-Left-Out": str(left_out), "X-More": "true" if found.more else "false"}
    text = b"".join(one.text or b"" for one in found.files)
    return Response(text, 200, headers, "text/x-diff")


@router.get("/changes")
def list_changes(
    caller: From, owner: str, name: str, at: Annotated[ChangesOf, Query()]
) -> ChangeList:
    """Files that differ between two refs."""
    found = _git(caller).changes(caller.actor(), owner, name, before=at.before, after=at.after)
    return ChangeList(before=found.before, after=found.after, paths=list(found.paths))


@router.get(
    "/archive/{file:path}",
    response_class=StreamingResponse,
    responses={200: {"content": {kind: {} for kind in _MEDIA_TYPES.values()}}},
)
def get_archive(caller: From, owner: str, name: str, file: str) -> StreamingResponse:
    """All files at a ref: `main.tar.gz`, `v1.0.zip`. Made while it is sent."""
    found = _git(caller).archive(caller.actor(), owner, name, file)
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.name)}",
        "X-Commit": found.commit,
    }
    return StreamingResponse(found.pieces, 200, headers, _MEDIA_TYPES[found.kind])


@router.post("/gc")
def collect_garbage(caller: From, owner: str, name: str) -> Dropped:
    """Drop what nothing has reached for two weeks, and join packs."""
    repositories = caller.desk.commands.repositories
    return Dropped(dropped=repositories.collect_garbage(caller.actor(), owner, name))


@router.post("/fsck")
def prove(caller: From, owner: str, name: str) -> ProofAnswer:
    """Read every object and follow every reference."""
    return ProofAnswer.of(caller.desk.commands.repositories.prove(caller.actor(), owner, name))


def _git(caller: Caller) -> GitQueries:
    return GitQueries(caller.desk.queries)
