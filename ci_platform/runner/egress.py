"""The only way out of a sandbox: a proxy that knows the hosts a step may reach.

Listens inside the step's network namespace, which has no other way out, and dials outside it. A
name is resolved once, the addresses are judged, and a judged address is dialled, so that a name
cannot point elsewhere a moment later. CONNECT and plain `http://` requests only.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from ci_platform.hosts import Host
from ci_platform.runner.limits import RunnerLimits, over_network

PORT = 3128
CONNECTIONS_MAX = 64  # of one step at a time
VERDICTS_MAX = 100  # lines in the log of one step
_DIAL_SECONDS = 20.0
_HEAD_SECONDS = 30.0
_IDLE_SECONDS = 600.0
_WAIT_SECONDS = 0.5  # between looks at whether the step has ended
_CHUNK_BYTES = 1 << 16
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_CERTIFICATE_VARIABLES = (
    *("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
    *("PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"),
)
_HOP_BY_HOP = ("connection", "keep-alive", "te", "trailer", "upgrade", "host")
# Addresses that hide an IPv4 address, which a gateway would reach for us: NAT64, 6to4, Teredo.
_TRANSLATED = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")]
_TRANSLATED += [ipaddress.ip_network("2001::/32")]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Refused(Exception):
    """A destination that a step may not reach; the message says why."""


def resolve(name: str, port: int) -> Sequence[str]:
    """The addresses of a name, best first."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a step may reach: hosts it named, and that server and repository let it name."""

    named: Sequence[Host]
    allowed: Sequence[Host] | None  # of the server; None: any
    private: Sequence[Network] = ()  # inner networks the server opens to steps
    of_repository: Sequence[Host] | None = None  # that it allows; None: it leaves it to the server
    resolve: Callable[[str, int], Sequence[str]] = resolve  # name and port -> addresses

    def addresses(self, name: str, port: int) -> list[str]:
        """The addresses to dial for a destination. Raises Refused."""
        name = name.lower().rstrip(".")
        if not any(host.matches(name, port) for host in self.named):
            raise Refused("the step does not name it (network= of step.sh)")
        if self.allowed is not None and not any(host.matches(name, port) for host in self.allowed):
            raise Refused("the server does not allow it")
        ours = self.of_repository
        if ours is not None and not any(host.matches(name, port) for host in ours):
            raise Refused(
                "the repository does not allow it (its maintainers can: sluice repo network)"
            )
        try:
            addresses = self.resolve(name, port)
        except (OSError, UnicodeError) as error:
            raise Refused(f"its name cannot be resolved ({error})") from error
        fine = [address for address in addresses if self._may_dial(address)]
        if not fine:
            raise Refused(f"its address {addresses[0]} is not on the public internet")
        return fine

    def _may_dial(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            address = mapped
        if any(address in network for network in self.private):
            return True
        if any(address in network for network in _TRANSLATED):
            return False
        return address.is_global and not address.is_multicast and not _is_ours(str(address))


class Egress:
    """The proxy of one step. Threads: one that accepts, one for each connection."""

    def __init__(self, listener: socket.socket, rules: Rules, limits: RunnerLimits) -> None:
        self._listener = listener
        self._rules = rules
        self._limits = limits
        self._slots = threading.Semaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._bytes = 0
        self._said: set[str] = set()
        self._verdicts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="egress", daemon=True)
        self._thread.start()

    def verdicts(self) -> Iterator[str]:
        """What was decided since the last call, a line for each destination and answer."""
        while not self._verdicts.empty():
            yield self._verdicts.get()

    def close(self) -> None:
        """End all connections. Safe to call twice."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._open)
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def dial(self, name: str, port: int) -> socket.socket:
        """Connect to a destination if the rules allow it. Raises Refused."""
        try:
            addresses = self._rules.addresses(name, port)
        except Refused as refused:
            self._say(f"network: refused {name}:{port}: {refused}")
            raise
        problem: OSError | None = None
        for address in addresses:
            try:
                dialled = socket.create_connection((address, port), _DIAL_SECONDS)
            except OSError as error:
                problem = error
                continue
            self._say(f"network: allowed {name}:{port} ({address})")
            return dialled
        self._say(f"network: {name}:{port} does not answer: {problem}")
        raise Refused(f"it does not answer: {problem}")

    def pump(self, inside: socket.socket, outside: socket.socket) -> None:
        """Copy both ways until both sides are done, or the step has used up its bytes."""
        peers = {inside: outside, outside: inside}
        with self._tracked(outside):
            while peers:
                ready, _, _ = select.select(list(peers), [], [], _IDLE_SECONDS)
                if not ready:
                    return
                for one in ready:
                    data = one.recv(_CHUNK_BYTES)
                    if data:
                        self._count(len(data))
                        peers[one].sendall(data)
                    else:
                        with suppress(OSError):
                            peers[one].shutdown(socket.SHUT_WR)
                        del peers[one]

    def _count(self, size: int) -> None:
        with self._lock:
            self._bytes += size
            over = self._bytes > self._limits.network_bytes
        if over:
            self._say(f"network: {over_network(self._limits)}")
            raise Refused("the step has moved too many bytes")

    def _accept(self) -> None:
        while not self._closed:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return  # closed
            while not self._slots.acquire(timeout=_WAIT_SECONDS):
                if self._closed:
                    inside.close()
                    return
            threading.Thread(target=self._serve, args=(inside,), daemon=True).start()

    def _serve(self, inside: socket.socket) -> None:
        try:
            with inside, self._tracked(inside):
                inside.settimeout(_HEAD_SECONDS)
                _Handler(inside, self)
        except (OSError, Refused):
            return  # either side went away, or was sent away
        finally:
            self._slots.release()

    def _tracked(self, one: socket.socket) -> _Tracked:
        return _Tracked(self._open, self._lock, one)

    def _say(self, line: str) -> None:
        with self._lock:
            if line in self._said or len(self._said) >= VERDICTS_MAX:
                return
            self._said.add(line)
        self._verdicts.put(line)


class _Tracked:
    """A socket that `Egress.close` finds and ends."""

    def __init__(self, sockets: set[socket.socket], lock: threading.Lock, one: socket.socket):
        self._sockets, self._lock, self._one = sockets, lock, one

    def __enter__(self) -> None:
        with self._lock:
            self._sockets.add(self._one)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._sockets.discard(self._one)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads one request head, then only copies."""

    protocol_version = "HTTP/1.1"
    rbufsize = 0  # nothing beyond the head may be swallowed

    def __init__(self, inside: socket.socket, egress: Egress) -> None:
        self._egress = egress
        super().__init__(inside, ("", 0), None)  # type: ignore[arg-type]

    def handle(self) -> None:
        self.close_connection = True
        self.handle_one_request()

    def do_CONNECT(self) -> None:
        name, _, port = self.path.rpartition(":")
        if not name or not port.isdigit():
            self.send_error(400, "expected CONNECT name:port")
            return
        self._forward(name.strip("[]"), int(port), head=None)

    def _plain(self) -> None:
        parts = urlsplit(self.path)
        if parts.scheme != "http" or not parts.hostname:
            self.send_error(400, "this is a proxy: expected an absolute http:// address")
            return
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{self.command} {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        for key, value in self.headers.items():
            if key.lower() not in _HOP_BY_HOP and not key.lower().startswith("proxy-"):
                lines.append(f"{key}: {value}")
        lines += ["Connection: close", "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        self._forward(parts.hostname, parts.port or 80, head=head)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _plain

    def _forward(self, name: str, port: int, *, head: bytes | None) -> None:
        try:
            outside = self._egress.dial(name, port)
        except Refused as refused:
            self.send_error(403, f"{name}:{port} cannot be reached from this step", str(refused))
            return
        with outside:
            self.connection.settimeout(_IDLE_SECONDS)
            outside.settimeout(_IDLE_SECONDS)
            if head is None:
                self.connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                outside.sendall(head)
            self._egress.pump(self.connection, outside)

    def log_message(self, format: str, *args: object) -> None:
        """Verdicts are the log."""


def _is_ours(address: str) -> bool:
    """Whether an address is this machine's own: then it is also what one would speak from."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address)


def proxy_variables(port: int = PORT) -> dict[str, str]:
    """What makes pip, curl, npm and their like use the proxy."""
    address = f"http://127.0.0.1:{port}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    found = {name: address for name in names}
    found |= {name.lower(): address for name in names}
    return found | {"NO_PROXY": "localhost,127.0.0.1", "no_proxy": "localhost,127.0.0.1"}


def certificate_variables() -> dict[str, str]:
    """What makes them trust whom this machine trusts, where a command sees its files: some bring
    certificates of their own, which do not know a company's."""
    bundle = next((path for path in _CERTIFICATES if os.path.exists(path)), None)
    return {} if bundle is None else dict.fromkeys(_CERTIFICATE_VARIABLES, bundle)
