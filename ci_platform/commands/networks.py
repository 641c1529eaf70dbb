"""Which hosts the commands of a repository may ask for with `network=`: the repository's own list.

It narrows what the server allows and never widens it; none set leaves the server's alone. Workers
read it at each command (worker/memory.py); the proxy applies it (runner/egress.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ci_platform.commands.parts import Parts
from ci_platform.errors import InvalidRequest
from ci_platform.hosts import HOST_CHARS_MAX, HOSTS_MAX, parse_host
from ci_platform.identity import Action
from ci_platform.model import Actor


@dataclass(frozen=True, slots=True)
class Networks:
    parts: Parts

    def get(self, actor: Actor, owner: str, name: str) -> Sequence[str] | None:
        """None: what the server allows; an empty list: no network."""
        repository = self.parts.repository(actor, Action.READ_REPOSITORY, owner, name)
        return self.parts.store.networks.get(repository.id)

    def put(self, actor: Actor, owner: str, name: str, hosts: Sequence[str]) -> Sequence[str]:
        """Allow these hosts and no others from the next command on. Raises InvalidRequest."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        allowed = _checked(hosts)
        self.parts.store.networks.put(repository.id, allowed)
        self.parts.audit(actor, "network set", repository.full_name, hosts=list(allowed))
        return allowed

    def remove(self, actor: Actor, owner: str, name: str) -> None:
        """What the server allows holds alone again. Nothing happens if it did."""
        repository = self.parts.repository(actor, Action.CONFIGURE_REPOSITORY, owner, name)
        if self.parts.store.networks.remove(repository.id):
            self.parts.audit(actor, "network cleared", repository.full_name)


def _checked(hosts: Sequence[str]) -> Sequence[str]:
    if len(hosts) > HOSTS_MAX:
        raise InvalidRequest(
            f"hosts names {len(hosts):,}; the limit is {HOSTS_MAX}: *.name is all below a name",
            field="hosts",
        )
    for host in hosts:
        if len(host) > HOST_CHARS_MAX:
            raise InvalidRequest(
                f"hosts: one has {len(host):,} characters; the limit is {HOST_CHARS_MAX}",
                field="hosts",
            )
        try:
            parse_host(host)
        except ValueError as error:
            raise InvalidRequest(f"hosts: {error}", field="hosts") from error
    return tuple(dict.fromkeys(hosts))
