"""How answers leave the server: whole in one piece when they are short, and never lost."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from ci_platform.metrics import Receive, Scope, Send
from ci_platform.server.protocol import Protocol

LARGE = os.urandom(3_000_000)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers /many in pieces, one after the other, and everything else at once."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/many":
        for at in range(0, len(LARGE), 1000):
            piece = LARGE[at : at + 1000]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"the end"})


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    config = uvicorn.Config(app, port=0, http=Protocol, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        thread.join(0.005)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join()


def test_head_and_body_come_together(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"the end\r\n0\r\n\r\n")


def test_an_answer_in_many_pieces_comes_whole(address: tuple[str, int]) -> None:
    answer = httpx.get(f"http://{address[0]}:{address[1]}/many")
    assert answer.content == LARGE + b"the end"


def test_what_was_written_is_sent_before_the_connection_is_closed(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        came = b""
        while piece := client.recv(65536):
            came += piece
    assert came.endswith(b"the end\r\n0\r\n\r\n")
