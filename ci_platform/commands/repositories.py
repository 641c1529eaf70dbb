"""Commands on repositories: create, delete, fork, import, write files without a git client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.commands.parts import Parts, check_text
from ci_platform.commands.triggers import SKIP_OPTION
from ci_platform.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    RepositoryExists,
    SluiceError,
)
from ci_platform.identity import Action, authorise
from ci_platform.model import Actor, Json, Repository, RunState
from ci_platform.ports import RunFilter
from ci_platform.ports.hosting import NewRepository
from ci_platform.ports.repositories import FileChange, Imported, Proof

CHANGES_MAX = 1000  # files of one commit written over the API
OBJECT_FORMAT = "sha1"  # git's word for how objects are named
BATCH_MAX = 100  # repositories made at once
MESSAGE_MAX = 65_536
DESCRIPTION_MAX = 1000
DELETE_PAGE = 100
URL_MAX = 2000
CREDENTIAL_MAX = 1000
PLAYGROUND = "playground"  # the owner of what users try there
# First words of the server's own addresses: a repository of such an owner could not be shown.
RESERVED_OWNERS = frozenset(
    {"api", "healthz", "hooks", "metrics", "readyz", "runs"}
    | {"-", PLAYGROUND, "setup", "sign-in", "sign-out", "static", "system", "tokens"}
)


@dataclass(frozen=True, slots=True)
class Repositories:
    parts: Parts

    def create(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        default_branch: str = "main",
        description: str = "",
        object_format: str = OBJECT_FORMAT,
    ) -> Repository:
        """Make an empty repository. Raises RepositoryExists, InvalidRequest."""
        authorise(actor, Action.CREATE_REPOSITORY)
        check_text(description, field="description", chars_max=DESCRIPTION_MAX, empty=True)
        check_owner(owner)
        if object_format != OBJECT_FORMAT:
            raise InvalidRequest(
                f"object_format must be {OBJECT_FORMAT}: repositories of other formats cannot be"
                " kept here, and a push of one is refused",
                field="object_format",
            )
        created = self.parts.repositories.create(
            owner, name, default_branch=default_branch, description=description
        )
        self.parts.audit(actor, "repository created", created.full_name)
        return created

    def create_many(
        self,
        actor: Actor,
        wanted: Sequence[NewRepository],
        *,
        template: tuple[str, str] | None = None,
    ) -> Sequence[Repository | InvalidRequest | RepositoryExists]:
        """Make up to 100 repositories, empty or with what a template holds, which they share. For
        each in turn what was made, or why not: one that cannot be made stops no other."""
        authorise(actor, Action.CREATE_REPOSITORY)
        if not 1 <= len(wanted) <= BATCH_MAX:
            raise InvalidRequest(
                f"repositories must name 1 to {BATCH_MAX}, this names {len(wanted):,}",
                field="repositories",
            )
        source = None
        if template is not None:
            source = self.parts.repository(actor, Action.READ_REPOSITORY, *template)
        answers: list[Repository | InvalidRequest | RepositoryExists | None] = []
        for one in wanted:
            answers.append(_new_problem(one))
        good = [one for one, why in zip(wanted, answers, strict=True) if why is None]
        template_id = None if source is None else source.id
        made = iter(self.parts.repositories.create_many(good, template=template_id))
        found = [next(made) if why is None else why for why in answers]
        names: list[Json] = [one.full_name for one in found if isinstance(one, Repository)]
        if names:
            of = None if source is None else source.full_name
            self.parts.audit(actor, "repositories created", str(names[0]), names=names, source=of)
        return found

    def delete(self, actor: Actor, owner: str, name: str) -> None:
        """Remove a repository, its runs first; refused while one of them is not finished."""
        repository = self.parts.repository(actor, Action.DELETE_REPOSITORY, owner, name)
        self._delete_runs(repository)
        for hook in self.parts.store.hooks.of_repository(repository.id):
            self.parts.store.hooks.remove(hook.id)
        self.parts.forget_storage(repository.id)
        self.parts.store.networks.remove(repository.id)
        if self.parts.mirrors is not None:
            self.parts.mirrors.remove(repository.id)
        self.parts.repositories.delete(repository.id)
        self.parts.audit(actor, "repository deleted", repository.full_name)

    def fork(
        self, actor: Actor, owner: str, name: str, *, into_owner: str, into_name: str
    ) -> Repository:
        repository = self.parts.repository(actor, Action.READ_REPOSITORY, owner, name)
        authorise(actor, Action.CREATE_REPOSITORY)
        check_owner(into_owner)
        created = self.parts.repositories.fork(repository.id, into_owner, into_name)
        self.parts.audit(actor, "repository forked", created.full_name, source=repository.full_name)
        return created

    def import_remote(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        url: str,
        credentials: tuple[str, str] | None = None,
        mirror: bool = False,
    ) -> tuple[Repository, Imported]:
        """Copy a remote's branches and tags into a new or empty repository; it starts no runs.

        `mirror` makes one that has branches a copy again, dropping what only it has; what moves
        then starts what a push would. A repository made for an import that fails is removed.
        """
        check_remote(url, credentials)
        repository, made = self._for_import(actor, owner, name, mirror=mirror)
        fresh = made or not self.parts.repositories.branches(repository.id)
        try:
            done = self.parts.repositories.import_remote(
                repository.id,
                url,
                credentials=credentials,
                prune=mirror,
                options=[SKIP_OPTION] if fresh else [],
                pusher_id=actor.id,
                pusher=actor.name,
            )
        except SluiceError:
            if made:
                self.parts.repositories.delete(repository.id)
            raise
        self.parts.audit(actor, "repository imported", repository.full_name, refs=done.refs)
        return self.parts.repositories.by_id(repository.id), done

    def _for_import(
        self, actor: Actor, owner: str, name: str, *, mirror: bool
    ) -> tuple[Repository, bool]:
        """The repository to import into, and whether it was made for that."""
        try:
            found = self.parts.repository(actor, Action.WRITE_REPOSITORY, owner, name)
        except NotFound:
            return self.create(actor, owner, name), True
        if not mirror and self.parts.repositories.branches(found.id):
            raise Conflict(
                f"{found.full_name} has branches; with `mirror` it becomes a copy of the remote,"
                " without what only it has"
            )
        return found, False

    def collect_garbage(self, actor: Actor, owner: str, name: str) -> int:
        """Drop what nothing reaches any more. Returns how many objects."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        dropped = self.parts.repositories.collect_garbage(repository.id)
        self.parts.audit(actor, "garbage collected", repository.full_name, objects=dropped)
        return dropped

    def prove(self, actor: Actor, owner: str, name: str) -> Proof:
        """Read every object of the repository and follow every reference."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        return self.parts.repositories.prove(repository.id)

    def commit_files(
        self,
        actor: Actor,
        owner: str,
        name: str,
        *,
        branch: str,
        changes: Sequence[FileChange],
        message: str,
        expected_parent: str | None = None,
    ) -> str:
        """Commit on a branch as a push would; returns the commit."""
        repository = self.parts.repository(actor, Action.WRITE_REPOSITORY, owner, name)
        check_text(branch, field="branch")
        if not message.strip() or len(message) > MESSAGE_MAX or "\0" in message:
            raise InvalidRequest(
                f"message must have 1 to {MESSAGE_MAX:,} characters and no NUL", field="message"
            )
        if not 1 <= len(changes) <= CHANGES_MAX:
            raise InvalidRequest(
                f"changes must name 1 to {CHANGES_MAX:,} files, this names {len(changes):,}",
                field="changes",
            )
        commit = self.parts.repositories.commit_files(
            repository.id,
            branch=branch,
            changes=changes,
            message=message,
            author=author_line(actor),
            expected_parent=expected_parent,
            pusher_id=actor.id,
            pusher=actor.name,
        )
        self.parts.audit(
            actor, "files committed", repository.full_name, branch=branch, commit=commit
        )
        return commit

    def _delete_runs(self, repository: Repository) -> None:
        live = [state for state in RunState if not state.terminal]
        here = [repository.id]
        if self.parts.store.runs.list(RunFilter(repository_ids=here, states=live), limit=1).runs:
            raise Conflict(f"{repository.full_name} has runs that are not finished; cancel them")
        # Bounded by what there is: each round removes what the last one listed.
        while runs := self.parts.store.runs.list(
            RunFilter(repository_ids=here), limit=DELETE_PAGE
        ).runs:
            for run in runs:
                self.parts.store.runs.delete(run.id)


def _new_problem(wanted: NewRepository) -> InvalidRequest | None:
    try:
        check_owner(wanted.owner)
        check_text(wanted.description, field="description", chars_max=DESCRIPTION_MAX, empty=True)
    except InvalidRequest as error:
        return error
    return None


def check_owner(owner: str) -> None:
    """Refuse an owner whose repositories would be hidden behind the server's own addresses."""
    if owner.lower() in RESERVED_OWNERS:
        raise InvalidRequest(f"owner {owner!r} is a word of the server's own", field="owner")


def check_remote(url: str, credentials: tuple[str, str] | None) -> None:
    """Refuse an address that is none, or holds a password."""
    check_text(url, field="url", chars_max=URL_MAX)
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidRequest(
            "credentials belong in username and password, not in the url", field="url"
        )
    for field, value in zip(("username", "password"), credentials or (), strict=False):
        check_text(value, field=field, chars_max=CREDENTIAL_MAX)


def author_line(actor: Actor) -> str:
    """The actor as git writes authors; what would break its format is left out."""
    name = "".join(char for char in actor.name if char.isprintable() and char not in "<>")
    return f"{name.strip() or 'sluice'} <{actor.id}@users.sluice.invalid>"
