"""The JSON of the API's requests. Unknown fields are refused; rules beyond types are commands'."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ci_platform.errors import InvalidRequest
from ci_platform.model import EntryKind, Json, Role, RunState, StepKey, StepKind
from ci_platform.ports import RunFilter
from ci_platform.ports.repositories import FileChange
from ci_platform.queries import EntryFilter


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Query(BaseModel):
    """A query string; its values are text, so they are converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewRepository(Body):
    owner: str
    name: str
    default_branch: str = "main"
    description: str = ""
    object_format: str = "sha1"


class BatchRepository(Body):
    owner: str
    name: str
    description: str = ""


class NewRepositories(Body):
    repositories: list[BatchRepository]
    template: str | None = None  # owner/name


class Fork(Body):
    owner: str
    name: str


class Change(Body):
    """One file: written, moved (`from`), or deleted (`content` null and no `from`)."""

    model_config = ConfigDict(populate_by_name=True)

    path: str
    content: str | None = None
    moved_from: Annotated[str | None, Field(alias="from")] = None
    encoding: Literal["utf-8", "base64"] = "utf-8"
    executable: bool = False

    def change(self, index: int) -> FileChange:
        if "content" not in self.model_fields_set and self.moved_from is None:
            raise InvalidRequest(
                "content or from must be given; content null deletes the file",
                field=f"changes.{index}.content",
            )
        if self.content is None:
            return FileChange(self.path, None, moved_from=self.moved_from)
        try:
            if self.encoding == "base64":
                data = base64.b64decode(self.content, validate=True)
            else:
                data = self.content.encode()
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest(
                f"content is not {self.encoding}: {error}", field=f"changes.{index}.content"
            ) from error
        return FileChange(self.path, data, self.executable, self.moved_from)


class NewCommit(Body):
    branch: str
    message: str
    changes: list[Change]
    expected_parent: str | None = None


class NewRun(Body):
    pipeline: str | None = None
    ref: str | None = None
    commit: str | None = None
    params: Json = None
    id: str | None = None
    resume: str | None = None
    priority: int = 0


class NewRuns(Body):
    runs: list[NewRun]


class RunIds(Body):
    ids: list[str]


class Cancel(Body):
    rollback: bool = False


class Event(Query):
    id: str | None = None  # of the sender's: a run takes it once


class Step(Body):
    kind: str
    name: str
    occurrence: Annotated[int, Field(ge=1)] = 1

    def key(self) -> StepKey:
        try:
            return StepKey(StepKind(self.kind), self.name, self.occurrence)
        except ValueError:
            known = ", ".join(StepKind)
            raise InvalidRequest(f"kind must be one of {known}", field="from.kind") from None


class Restart(Body):
    model_config = ConfigDict(populate_by_name=True)

    from_step: Annotated[Step | None, Field(alias="from")] = None
    commit: str | None = None  # 40 hex digits, or newest
    id: str | None = None


class Decide(Body):
    decision: Literal["approve", "reject"]
    comment: str = ""
    form: dict[str, Json] | None = None


class NewToken(Body):
    name: str
    scopes: list[str]
    repository: str | None = None
    days: int | None = None
    user: str | None = None


class NewUser(Body):
    name: str
    password: str | None = None
    admin: bool = False


class NewPassword(Body):
    password: str


class RoleOf(Body):
    model_config = ConfigDict(strict=False)  # a role comes as text

    user: str
    role: Role | None


class NewHook(Body):
    provider: str = "github"
    remote_url: str | None = None
    secret: str | None = None


class After(Query):
    """A page of repositories."""

    cursor: str = ""
    limit: Annotated[int, Field(ge=1, le=200)] = 100


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else round(instant.timestamp() * 1000)


class RunsOf(Query):
    """A page of runs, newest first."""

    state: list[RunState] = Field(default=[], max_length=8)
    branch: str | None = None
    pipeline: str | None = None
    commit: str | None = None
    trigger: str | None = None
    actor: str | None = None
    created_after: AwareDatetime | None = None  # at it, or later
    created_before: AwareDatetime | None = None  # earlier than it
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50

    def filter(self) -> RunFilter:
        return RunFilter(
            pipeline=self.pipeline,
            states=self.state,
            branch=self.branch,
            commit=self.commit,
            trigger=self.trigger,
            actor=self.actor,
            created_after_ms=_ms(self.created_after),
            created_before_ms=_ms(self.created_before),
        )


WAIT_S_MAX = 60.0


STEPS_MAX = 5_000  # of one answer; a run may have 25,000


class RunOf(Query):
    wait: Annotated[float, Field(ge=0, le=WAIT_S_MAX)] = 0.0  # seconds, for the run to end
    steps: Annotated[int, Field(ge=0, le=STEPS_MAX)] = 1_000
    steps_after: Annotated[int, Field(ge=0)] = 0  # `steps_cursor` of the page before


class JournalFrom(Query):
    after: Annotated[int, Field(ge=0)] = 0
    type: list[EntryKind] = Field(default=[], max_length=len(EntryKind))  # none: all
    step: list[str] = Field(default=[], max_length=20)  # sh:build, do:x#2; none: all

    def filter(self) -> EntryFilter:
        try:
            steps = frozenset(StepKey.parse(one) for one in self.step)
        except ValueError as error:
            raise InvalidRequest(str(error), field="step") from error
        return EntryFilter(frozenset(self.type), steps)


class JournalOf(JournalFrom):
    limit: Annotated[int, Field(ge=1, le=5000)] = 5000


class LogOf(Query):
    step: str = "$run"
    after: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=5000)] = 1000


class FileOf(Query):
    ref: str | None = None


class Follow(Query):
    step: str = "$run"
    after: Annotated[int, Field(ge=0)] = 0
