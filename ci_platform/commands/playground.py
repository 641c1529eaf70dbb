"""The playground: a pipeline from a text field, run in a repository of its own for each user.

The repository is made when it is first needed, kept small, and thrown away when it has run enough;
nothing but this command writes to it. Whatever runs there is an ordinary run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ci_platform.commands.parts import Parts, check_json
from ci_platform.commands.quota import check_quota, live
from ci_platform.commands.repositories import PLAYGROUND, Repositories, author_line
from ci_platform.commands.runs import Runs, StartRun
from ci_platform.commands.starting import PIPELINE_FILE, described, load_failure
from ci_platform.errors import (
    Forbidden,
    InvalidRequest,
    NotSignedIn,
    RepositoryExists,
    RepositoryNotFound,
    TooLarge,
)
from ci_platform.model import SYSTEM, Actor, Json, Repository, Role, Run, UserId
from ci_platform.ports import RunFilter
from ci_platform.ports.repositories import FileChange

CODE_BYTES_MAX = 64 * 1024
PARAMS_BYTES_MAX = 64 * 1024
RUNS_MAX = 200  # of one repository, until a new one takes its place
# A commit here starts no run by a trigger: the button does.
MESSAGE = "Playground\n\nWritten in the playground. [skip ci]\n"


def repository_name(actor: Actor) -> str:
    """The name of a user's repository below `playground/`: for no other user, ever."""
    return f"{actor.name.lower()[:64].strip('.-_') or 'user'}-{actor.id[-8:].lower()}"


@dataclass(frozen=True, slots=True)
class Playground:
    parts: Parts

    def run(self, actor: Actor, code: str, params: Json) -> Run:
        """Commit the code and start it. Raises InvalidRequest when it does not load."""
        if actor.kind == "anonymous":
            raise NotSignedIn()
        if actor.kind != "user":
            raise Forbidden("the playground is for people who have signed in")
        data = code.replace("\r\n", "\n").encode()
        if not data.strip() or b"\0" in data:
            raise InvalidRequest("write a pipeline first", field="code")
        if len(data) > CODE_BYTES_MAX:
            detail = f"the code has {len(data):,} bytes; the limit is {CODE_BYTES_MAX:,}"
            raise TooLarge(detail, field="code")
        check_json(params, field="params", bytes_max=PARAMS_BYTES_MAX)
        repository = self._repository(actor)
        check_quota(self.parts, repository)
        # Their role is newer than what they signed in with.
        owner = replace(actor, roles={**actor.roles, repository.id: Role.MAINTAINER})
        commit = self.parts.repositories.commit_files(
            repository.id,
            branch=repository.default_branch,
            changes=[FileChange(PIPELINE_FILE, data)],
            message=MESSAGE,
            author=author_line(actor),
            expected_parent=None,
            pusher_id=actor.id,
            pusher=actor.name,
        )
        what = StartRun(pipeline=self._pipeline(repository, commit), commit=commit, params=params)
        return Runs(self.parts).start(owner, repository.owner, repository.name, what)

    def _pipeline(self, repository: Repository, commit: str) -> str:
        """The file's first pipeline."""
        found = described(self.parts, self.parts.source.load(repository.id, commit))
        if found.error is not None:
            raise InvalidRequest(load_failure(found.error), field="code")
        return found.pipelines[0].name

    def _repository(self, actor: Actor) -> Repository:
        name = repository_name(actor)
        try:
            found = self.parts.repositories.get(PLAYGROUND, name)
        except RepositoryNotFound:
            return self._create(actor, name)
        newest = self.parts.store.runs.list(RunFilter(repository_ids=[found.id]), limit=1).runs
        if newest and newest[0].number >= RUNS_MAX and not live(self.parts, found):
            Repositories(self.parts).delete(SYSTEM, PLAYGROUND, name)
            return self._create(actor, name)
        return found

    def _create(self, actor: Actor, name: str) -> Repository:
        description = "What is tried in the playground. It is thrown away from time to time."
        try:
            made = self.parts.repositories.create(PLAYGROUND, name, description=description)
        except RepositoryExists:  # by the same user's other click
            made = self.parts.repositories.get(PLAYGROUND, name)
        self.parts.store.identity.set_role(UserId(actor.id), made.id, Role.MAINTAINER)
        return made
