"""A web server for commands to reach, where they may."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.2"  # not localhost: that is the step itself, and goes past the proxy


class Site(BaseHTTPRequestHandler):
    """Says what it was asked."""

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        said = f"{self.command} {self.path} {self.headers['Host']} {self.rfile.read(length)!r}"
        names = [name.lower() for name in self.headers if name.lower().startswith("proxy")]
        body = f"{said} {names}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def answering() -> Iterator[int]:
    """A site at HOST; its port."""
    server = ThreadingHTTPServer((HOST, 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
