"""Routes of a repository's history and upkeep: import, log, changes, archives, gc, fsck."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from ci_platform.api.answers import Answer, RepositoryAnswer, iso
from ci_platform.api.desk import Caller, From
from ci_platform.api.requests import Body
from ci_platform.api.requests import Query as QueryString
from ci_platform.errors import InvalidRequest
from ci_platform.git_queries import LOG_MAX, GitQueries
from ci_platform.ports import Commit, Imported, Proof

router = APIRouter(prefix="/repos/{owner}/{name}", tags=["repositories"])

_MEDIA_TYPES = {"tar.gz": "application/gzip", "zip": "application/zip"}


class NewImport(Body):
    """Credentials come apart from the url, and are shown nowhere."""

    url: str
    username: str | None = None
    password: str | None = None
    mirror: bool = False

    def credentials(self) -> tuple[str, str] | None:
        if self.password is None and self.username is None:
            return None
        if not self.password:
            raise InvalidRequest("a username needs a password", field="password")
        return self.username or "git", self.password


class LogOf(QueryString):
    ref: str | None = None
    limit: Annotated[int, Field(ge=1, le=LOG_MAX)] = 50


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
        credentials=body.credentials(),
        mirror=body.mirror,
    )
    return ImportAnswer.of(RepositoryAnswer.of(repository, caller.desk.base_url), done)


@router.get("/commits")
def list_commits(caller: From, owner: str, name: str, at: Annotated[LogOf, Query()]) -> CommitList:
    """The history of a ref, newest first."""
    found = _git(caller).log(caller.actor(), owner, name, at.ref, limit=at.limit)
    return CommitList(commits=[CommitInfo.of(one) for one in found])


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
