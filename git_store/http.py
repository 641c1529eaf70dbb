"""Smart HTTP: one plain ASGI app over a GitStore.

Serves /{owner}/{name}.git/{info/refs,git-upload-pack,git-receive-pack} and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from git_store.push import Pusher, PushListener
from git_store.store import GitStore

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Verdict(StrEnum):
    ALLOWED = "allowed"
    NEEDS_CREDENTIALS = "needs_credentials"  # 401: none were sent, or they are wrong
    FORBIDDEN = "forbidden"  # 403: may see the repository, but not do this
    NOT_THERE = "not_there"  # 404: no such repository, or not to be seen: the same answer


@dataclass(frozen=True, slots=True)
class Access:
    """The answer to "may they?". Use the class methods."""

    verdict: Verdict
    message: str = ""  # shown in the git client's terminal
    pusher: Pusher = Pusher(id=None, name="anonymous")

    @classmethod
    def allow(cls, pusher_id: str | None, pusher_name: str) -> Access:
        return cls(Verdict.ALLOWED, pusher=Pusher(pusher_id, pusher_name))

    @classmethod
    def ask(cls, message: str = "Authentication is required: use a token as password.") -> Access:
        return cls(Verdict.NEEDS_CREDENTIALS, message)

    @classmethod
    def forbid(cls, message: str) -> Access:
        return cls(Verdict.FORBIDDEN, message)

    @classmethod
    def not_there(cls, message: str = "") -> Access:
        return cls(Verdict.NOT_THERE, message)


class Authenticate(Protocol):
    """Decides who may read or write a repository. Called in a thread, may block; called before
    the repository is looked up, also for names that do not exist."""

    def __call__(
        self, authorization: str | None, owner: str, name: str, *, write: bool
    ) -> Access: ...


class GitHttp:
    """The ASGI app. Mount it at the root, before other routes, for the paths `handles` says."""

    def __init__(
        self, store: GitStore, *, authenticate: Authenticate, listener: PushListener | None = None
    ) -> None:
        """A `listener` given here is handed to `store.listen`."""
        raise NotImplementedError

    @staticmethod
    def handles(path: str) -> bool:
        """True if the path looks like a git client's."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End the worker threads, after the requests in work."""
        raise NotImplementedError
