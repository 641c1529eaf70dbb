"""The values and Protocols of what code in a sandbox may do beyond its steps, and of the databases
of repositories.

A part of the ports, under their contract; apart because most of the platform needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ci_platform.model import Broke, Json, Raised, RepositoryId, Run, SourceFiles


@dataclass(frozen=True, slots=True)
class Ask:
    """What code in a sandbox wants of `self.env`. No command: it leaves no entry."""

    capability: str  # files, storage.kv, storage.sql, runs
    method: str
    arguments: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Grant:
    """Whose code asks for a capability. Made by the platform; nothing of it comes from the code."""

    repository_id: RepositoryId
    commit: str  # of the code that executes
    before: str | None = None  # the commit before the push that started the run
    run: Run | None = None  # None: a request to the repository's own endpoint
    body: bool = False  # a step's body executes: what it does is not done again by a replay
    trusted: bool = True


class Capabilities(Protocol):
    """What code in a sandbox may do beyond its steps. Every call is bounded in time and size."""

    def ask(self, grant: Grant, ask: Ask) -> Mapping[str, Json]:
        """Do what is asked, for the grant's own repository: {"value": …}, or {"error": {"type",
        "message"}} when that cannot be. Raises InternalError, which costs the code its attempt."""


@dataclass(frozen=True, slots=True)
class WebRequest:
    """A request to a repository's own endpoint, as its code gets to see it."""

    method: str
    path: str  # after the repository's name
    query: Sequence[tuple[str, str]]
    headers: Sequence[tuple[str, str]]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True)
class WebResponse:
    status: int
    headers: Sequence[tuple[str, str]]  # as the code said: to be filtered
    body: bytes


class AskHost(Protocol):
    """What the code of a request may ask of the world."""

    def ask(self, ask: Ask) -> Mapping[str, Json]:
        """See ActivationHost."""


class FetchSandbox(Protocol):
    """Runs a repository's own endpoint. Safe to call from many threads."""

    def fetch(
        self, source: SourceFiles, request: WebRequest, host: AskHost
    ) -> WebResponse | Raised | Broke:
        """Answer one request with the file's `fetch`, in an interpreter of its own or one that ran
        equal code of the same repository. Raised: its code failed, or a limit was reached."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """One state of a repository's own database: 1, 2, 3, …, and the object that holds it."""

    version: int
    object: str


class ShelfStore(Protocol):
    """Which object is the newest state of a repository's own database. The objects are others'."""

    def get(self, repository_id: RepositoryId, name: str) -> Shelved | None: ...

    def move(
        self, repository_id: RepositoryId, name: str, *, version: int, to: str
    ) -> Shelved | None:
        """Make `to` the state after `version` (0: the first). None when another came before it."""

    def remove(self, repository_id: RepositoryId) -> list[str]:
        """Forget a repository's databases; answers the objects that held them."""
