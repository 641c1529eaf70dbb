"""What code in a sandbox may do beyond its steps: `self.env`, on the platform's side.

One handler per capability, each for the repository of the grant and no other. The worker and the
repository's endpoint hold a `Granted` and know no more than its port; app.py puts it together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

from ci_platform.capabilities.files import FilesHandler
from ci_platform.capabilities.object_shelf import ObjectShelf
from ci_platform.capabilities.shelf import LocalShelf
from ci_platform.capabilities.sql import SqlDatabases, StorageLimits
from ci_platform.capabilities.storage import KvHandler, SqlHandler
from ci_platform.errors import FileMissing, NotGranted, RequestError, TooLarge
from ci_platform.model import Json
from ci_platform.ports.granting import Ask, Grant

__all__ = [
    "FilesHandler",
    "Granted",
    "KvHandler",
    "LocalShelf",
    "ObjectShelf",
    "SqlDatabases",
    "SqlHandler",
    "StorageLimits",
]

ANSWER_BYTES_MAX = 2 << 20  # JSON of what a capability answers

Handler: TypeAlias = Callable[[Grant, str, Mapping[str, Json]], Json]


class Granted:
    """Implements ports.Capabilities over handlers by name."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def ask(self, grant: Grant, ask: Ask) -> Mapping[str, Json]:
        try:
            handler = self._handlers.get(ask.capability)
            if handler is None:
                raise NotGranted(f"self.env.{ask.capability} is not granted")
            answer = {"value": handler(grant, ask.method, ask.arguments)}
            size = len(json.dumps(answer))
            if size > ANSWER_BYTES_MAX:
                raise TooLarge(
                    f"the answer of self.env.{ask.capability}.{ask.method} has {size:,} bytes; "
                    f"the limit is {ANSWER_BYTES_MAX:,}"
                )
        except RequestError as error:
            return {"error": {"type": _word(error), "message": error.detail}}
        return answer


def _word(error: RequestError) -> str:
    """The type by which the author's code knows an error."""
    return "FileNotFoundError" if isinstance(error, FileMissing) else type(error).__name__
