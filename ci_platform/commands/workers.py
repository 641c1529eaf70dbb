"""Commands on workers: asking one to drain."""

from __future__ import annotations

from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.errors import InvalidRequest, NotFound
from ci_platform.identity import Action, authorise
from ci_platform.model import Actor, WorkerId

NAME_MAX = 512


@dataclass(frozen=True, slots=True)
class Workers:
    parts: Parts

    def drain(self, actor: Actor, name: str) -> WorkerId:
        """Let a worker end: it takes nothing new, and hands back what does not end in its drain
        time. `name` is its whole name, or the last part of it where no other worker has that.

        It is told with its next heartbeat. Raises NotFound, InvalidRequest."""
        authorise(actor, Action.MANAGE_WORKERS)
        worker = self._named(name[:NAME_MAX])
        if not self.parts.store.workers.drain(worker):
            raise NotFound(f"worker {worker} has ended")
        self.parts.audit(actor, "worker drained", worker)
        return worker

    def _named(self, name: str) -> WorkerId:
        ids = [one.id for one in self.parts.store.workers.list()]
        found = [one for one in ids if one == name] or [
            one for one in ids if one.rpartition(":")[2] == name
        ]
        if not found:
            raise NotFound(f"no worker is named {name!r}")
        if len(found) > 1:
            raise InvalidRequest(
                f"{len(found)} workers are named {name!r}: say which: {', '.join(found[:10])}",
                field="name",
            )
        return found[0]
