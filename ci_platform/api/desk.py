"""What every route works with: the commands, the queries, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ci_platform.commands import Commands
from ci_platform.identity import Identity
from ci_platform.live import Live
from ci_platform.model import Actor
from ci_platform.queries import Queries


@dataclass(frozen=True, slots=True)
class Desk:
    """Kept in the app's state."""

    commands: Commands
    queries: Queries
    identity: Identity
    live: Live
    base_url: str
    acting_as: Actor | None  # who asks, when there is no door to come through: the console
    way: str  # of an approval: api, cli


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, not looked up yet: that blocks, so a route does it in its thread."""

    desk: Desk
    authorization: str | None

    def actor(self) -> Actor:
        """Raises NotSignedIn for bad credentials; without any, the actor is anonymous."""
        if self.desk.acting_as is not None:
            return self.desk.acting_as
        return self.desk.identity.of_authorization(self.authorization)


async def _caller(request: Request) -> Caller:
    desk: Desk = request.app.state.desk
    return Caller(desk, request.headers.get("authorization"))


From = Annotated[Caller, Depends(_caller)]
