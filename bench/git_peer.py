"""`git http-backend` behind a small web server: the peer that the git store is measured beside.

Run as a module with the directory of the bare repositories; prints its port. Streams both ways, as
a web server in front of git does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, ClassVar

_CHUNK_BYTES = 1 << 16
_PASSED_ON = {
    "Content-Type": "CONTENT_TYPE",
    "Content-Encoding": "HTTP_CONTENT_ENCODING",
    "Git-Protocol": "HTTP_GIT_PROTOCOL",
}


class Bridge(BaseHTTPRequestHandler):
    """One request: a child process, its environment made of the headers, as CGI has it."""

    protocol_version = "HTTP/1.1"
    root: ClassVar[str]

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_USER": "bench",
        }
        for header, name in _PASSED_ON.items():
            if header in self.headers:
                environment[name] = self.headers[header]
        with subprocess.Popen(
            ["git", "http-backend"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            for chunk in self._body():
                child.stdin.write(chunk)
            child.stdin.close()
            self._answer(child.stdout)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            chunk = self.rfile.read(min(left, _CHUNK_BYTES))
            left -= len(chunk)
            yield chunk

    def _answer(self, output: IO[bytes]) -> None:
        headers = []
        while line := output.readline().strip():
            name, _, value = line.decode("latin-1").partition(": ")
            headers.append((name, value))
        status = next((value for name, value in headers if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while chunk := output.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None: ...


def main() -> None:
    Bridge.root = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bridge)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
