"""How hosts that commands may reach are written: in `network=`, by the server, by repositories.

Only words: what is resolved, judged and dialled is runner/egress.py, where the lists meet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HOSTS_MAX = 100  # of one repository
HOST_CHARS_MAX = 260  # a name of DNS, and a port
_DEFAULT_PORTS = (80, 443)
_PATTERN = re.compile(r"(?P<host>(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)(:(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Host:
    """A host a step may reach: a name, or `*.name` for all below it; one port, or the usual."""

    name: str
    ports: tuple[int, ...]

    def matches(self, name: str, port: int) -> bool:
        if port not in self.ports:
            return False
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and name != self.name[2:]
        return name == self.name


def parse_host(pattern: str) -> Host:
    """Read `pypi.org`, `*.pythonhosted.org` or `example.org:8443`. Raises ValueError."""
    found = _PATTERN.fullmatch(pattern)
    if found is None:
        raise ValueError(f"{pattern!r} is not a host: expected name, *.name or name:port")
    port = found["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError(f"{pattern!r}: {port} is not a port")
    return Host(found["host"].lower(), (int(port),) if port else _DEFAULT_PORTS)
