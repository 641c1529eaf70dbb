"""Whether a service is ready: one look at a port, an address, or what a command says.

Everything a service answers is a stranger's word: read with a deadline and a bound. Used by
services.py.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from ci_platform.model import Json

LOOK_SECONDS = 2.0  # for one look to be answered
_ANSWER_BYTES_MAX = 64  # of an HTTP answer: its first line says all
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_HOST = "127.0.0.1"

Connector = Callable[[], socket.socket]  # a socket in the network of the service


def why_not(
    ready: Mapping[str, Json],
    connector: Connector,
    *,
    check: Callable[[str], str | None],
    said: Callable[[str], bool],
) -> str | None:
    """None if the service is ready, else why it is not. `check` runs a command beside it, and
    tells how that failed; `said` whether a text has come up in its log."""
    if "port" in ready:
        return _port(connector, int(ready["port"]))
    if "http" in ready:
        return _http(connector, str(ready["http"]))
    if "log" in ready:
        return None if said(str(ready["log"])) else f"its log does not say {ready['log']!r}"
    return check(str(ready["command"]))


def _port(connector: Connector, port: int) -> str | None:
    with connector() as connection:
        connection.settimeout(LOOK_SECONDS)
        try:
            connection.connect((_HOST, port))
        except OSError as error:
            return f"port {port}: {error.strerror or error}"
    return None


def _http(connector: Connector, url: str) -> str | None:
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        return f"{url} has no possible port"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    deadline = time.monotonic() + LOOK_SECONDS
    with connector() as connection:
        connection.settimeout(LOOK_SECONDS)
        try:
            connection.connect((_HOST, port))
            request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode("ascii"))
            answer = _first_bytes(connection, deadline)
        except OSError as error:
            return f"{url}: {error.strerror or error}"
    found = _STATUS.match(answer)
    if found is None:
        return f"{url} does not answer in HTTP"
    return None if int(found[1]) < 400 else f"{url} answers {found[1].decode()}"


def _first_bytes(connection: socket.socket, deadline: float) -> bytes:
    answer = b""
    while len(answer) < _ANSWER_BYTES_MAX and b"\n" not in answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        connection.settimeout(left)
        data = connection.recv(_ANSWER_BYTES_MAX)
        if not data:
            break
        answer += data
    return answer
