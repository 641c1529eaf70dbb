"""HTTP to a remote that may not be trusted: which addresses, how much, how long.

urllib3's pools, with connections that resolve a name themselves, refuse what is not public and
connect to the very address they checked; so a name that answers differently the second time gains
nothing. The environment's proxies are not used.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from git_store.errors import BadName, OverLimit, RemoteFailed

_CONNECT_SECONDS = 10.0
_READ_SECONDS = 30.0
_REDIRECTS_MAX = 3
_URL_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Address:
    scheme: str
    host: str
    base: str  # without path and credentials
    path: str
    username: str | None
    password: str | None
    allow_private: bool

    @property
    def shown(self) -> str:
        """For messages: no credentials."""
        return f"{self.base}{self.path}"


def parse_url(url: str, *, allow_private: bool) -> Address:
    """Raises BadName (field url)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadName(f"url is not a URL: {error}", field="url") from error
    schemes = ("https", "http", "file") if allow_private else ("https", "http")
    if parts.scheme not in schemes or len(url) > _URL_CHARACTERS or not url.isprintable():
        raise BadName(f"url must begin with {' or '.join(f'{s}://' for s in schemes)}", field="url")
    host = parts.hostname or ""
    if parts.scheme != "file" and not host:
        raise BadName("url names no host", field="url")
    bracketed = f"[{host}]" if ":" in host else host
    return Address(
        scheme=parts.scheme,
        host=host,
        base=f"{parts.scheme}://{bracketed}{f':{port}' if port else ''}",
        path=parts.path or "/",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        allow_private=allow_private,
    )


class Allowance:
    """What one fetch may still use of bytes and seconds."""

    def __init__(self, bytes_max: int, seconds_max: float) -> None:
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._bytes = 0
        self._started = time.monotonic()

    def take(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._bytes_max:
            raise OverLimit(
                f"the remote sends more than {self._bytes_max} bytes (push_bytes)",
                limit="push_bytes",
            )
        self.check_time()

    def check_time(self) -> None:
        if time.monotonic() - self._started > self._seconds_max:
            raise OverLimit(
                f"the remote takes longer than {self._seconds_max:g} s (remote_seconds)",
                limit="remote_seconds",
            )


class GuardedPools(urllib3.PoolManager):
    """A PoolManager that connects to one host only, at addresses it has checked."""

    def __init__(self, address: Address, allowance: Allowance) -> None:
        super().__init__(
            retries=urllib3.Retry(total=_REDIRECTS_MAX, connect=0, read=0),
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        )
        self._meter = allowance
        self._responses: list[urllib3.BaseHTTPResponse] = []

        def connect(host: str, port: int) -> socket.socket:
            if host.strip("[]") != address.host:
                raise RemoteFailed(f"{address.shown} redirects to another host, {host}")
            return connect_checked(host.strip("[]"), port, allow_private=address.allow_private)

        plain_pool, secure_pool = _pools(connect)
        self.pool_classes_by_scheme = {"http": plain_pool, "https": secure_pool}

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **options: object
    ) -> urllib3.BaseHTTPResponse:
        self._meter.check_time()
        response = super().urlopen(method, url, redirect, **options)
        self._responses.append(response)
        read = response.read

        def counted(count: int | None = None) -> bytes:
            data = read(count)
            self._meter.take(len(data))
            return data

        response.__dict__["read"] = counted  # the refs a remote lists are read by dulwich itself
        return response

    def close(self) -> None:
        """Close every connection: dulwich leaves those open whose answer it did not like."""
        for response in self._responses:
            response.close()
        self.clear()


def _pools(
    connect: Callable[[str, int], socket.socket],
) -> tuple[type[HTTPConnectionPool], type[HTTPSConnectionPool]]:
    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self.host, self.port)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self.host, self.port or 443)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return PlainPool, SecurePool


def connect_checked(host: str, port: int, *, allow_private: bool) -> socket.socket:
    """Resolve once, refuse the host if any of its addresses is not public, connect to the first
    that answers. Raises RemoteFailed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RemoteFailed(f"the name {host} cannot be resolved") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private:
        for address in addresses:
            if not is_public(address):
                raise RemoteFailed(f"{host} is at {address}, which is not a public address")
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), _CONNECT_SECONDS)
        except OSError:
            continue
        connection.settimeout(_READ_SECONDS)
        return connection
    raise RemoteFailed(f"{host} cannot be reached on port {port}")


def is_public(address: str) -> bool:
    """False for this machine, private and link-local networks, and what tunnels to them."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed.teredo is not None:
            inner = parsed.teredo[1]
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return parsed.is_global and not parsed.is_multicast
