"""An S3 for tests: moto's server on loopback, in this process, which can be away for a while.

Child processes reach it as they would a real one, by what `S3.environment` puts into theirs.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import obstore
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import WSGIRequestHandler, make_server

from ci_platform.objects import open_objects

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Nobody reads the access log of a test."""


@dataclass
class Outage:
    """What the server refuses with 503, and how often it did."""

    methods: set[str] = field(default_factory=set)
    works: int = 0  # requests of these methods that still succeed
    refused: int = 0

    def refuses(self, method: str) -> bool:
        if method not in self.methods:
            return False
        if self.works > 0:
            self.works -= 1
            return False
        self.refused += 1
        return True


class S3Server:
    def __init__(self) -> None:
        self.outage = Outage()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def bucket(self) -> S3:
        name = f"bucket-{next(self._numbers)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return S3(self, f"s3://{name}/deployment")

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if self.outage.refuses(environ["REQUEST_METHOD"]):
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [BUSY]
        return self._moto(environ, start)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class S3:
    """One bucket, empty when it is handed out."""

    server: S3Server
    url: str  # as SLUICE_OBJECTS_URL

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to reach it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.server.url}

    def open(self) -> S3Store:
        """As a deployment opens it; the environment must be set."""
        opened = open_objects(self.url)
        assert isinstance(opened, S3Store)
        return opened

    def names(self) -> list[str]:
        return sorted(item["path"] for page in obstore.list(self.open()) for item in page)

    @contextlib.contextmanager
    def away(self, *methods: str, works: int = 0) -> Iterator[Outage]:
        """Requests of these methods are refused meanwhile, once `works` of them have succeeded."""
        outage = self.server.outage = Outage(set(methods), works)
        try:
            yield outage
        finally:
            self.server.outage = Outage()
