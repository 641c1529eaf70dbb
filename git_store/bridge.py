"""Between ASGI, which is asynchronous, and the git protocol, which here is read(n) and write(b).

The body comes in through a bounded queue and the answer goes out through another, so neither side
runs ahead of the other by more than a few chunks, and a client that goes away or stalls is noticed
by the thread that serves it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import Executor
from typing import Any

from git_store.errors import OverLimit, ProtocolError

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

_CHUNKS_IN = 8  # of the request, read ahead
_CHUNKS_OUT = 16  # of the answer, written ahead
_CHUNK_BYTES = 64 * 1024
_TICK_SECONDS = 1.0


class ClientGone(Exception):
    """The client went away, or has been silent for too long."""


class Body:
    """A request's body, read by a worker thread."""

    def __init__(self, receive: Receive, *, gzip: bool, limit: int | None, idle: float) -> None:
        """`limit` is on what is read, after gunzip; None leaves it to the reader."""
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(_CHUNKS_IN)
        self._chunks: queue.Queue[bytes | None] = queue.Queue()  # bounded by the slots
        self._gunzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if gzip else None
        self._limit = limit
        self._idle = idle
        self._ahead = b""
        self._read_bytes = 0
        self._received = False  # the last of it, from the client
        self._ended = False  # read to the end

    async def begin(self) -> None:
        """Wait for the beginning: until it is here a client costs no thread. Raises ClientGone."""
        pieces: list[bytes] = []
        while not self._received and sum(map(len, pieces)) < _CHUNK_BYTES:
            try:
                message = await asyncio.wait_for(self._receive(), self._idle)
            except TimeoutError:
                raise ClientGone() from None
            if message["type"] == "http.disconnect":
                raise ClientGone()
            pieces.append(message.get("body", b""))
            self._received = not message.get("more_body")
        await self._slots.acquire()
        self._put(b"".join(pieces))

    def _put(self, chunk: bytes) -> None:
        if chunk:
            self._chunks.put(chunk)
        else:
            self._slots.release()
        if self._received:
            self._chunks.put(b"")

    async def pump(self, on_gone: Callable[[], None]) -> None:
        """Move chunks from the client into the queue, until the end; then watch for its leaving."""
        while True:
            if not self._received:
                await self._slots.acquire()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._chunks.put(None)
                on_gone()
                return
            self._received = not message.get("more_body")
            self._put(message.get("body", b""))

    def read(self, count: int) -> bytes:
        """At least one byte unless at the end, and never more than `count`."""
        if not self._ahead and not self._ended:
            self._ahead = self._next()
            self._read_bytes += len(self._ahead)
            if self._limit is not None and self._read_bytes > self._limit:
                raise OverLimit(
                    f"the request is longer than {self._limit} bytes (request_bytes)",
                    limit="request_bytes",
                )
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        return taken

    def _next(self) -> bytes:
        while True:
            if self._gunzip is not None and self._gunzip.unconsumed_tail:
                return self._inflate(self._gunzip.unconsumed_tail)
            try:
                chunk = self._chunks.get(timeout=self._idle)
            except queue.Empty:
                raise ClientGone() from None
            if chunk is None:
                raise ClientGone()
            if not chunk:
                self._ended = True
                if self._gunzip is not None and not self._gunzip.eof:
                    raise ProtocolError("the compressed request was cut short")
                return b""
            self._loop.call_soon_threadsafe(self._slots.release)
            if self._gunzip is not None:
                chunk = self._inflate(chunk)
            if chunk:
                return chunk

    def _inflate(self, chunk: bytes) -> bytes:
        assert self._gunzip is not None
        try:
            return self._gunzip.decompress(chunk, _CHUNK_BYTES)
        except zlib.error as error:
            raise ProtocolError("the request is not the gzip it claims to be") from error


class Answer:
    """A response's body, written by a worker thread; small writes are held until `flush`."""

    def __init__(self, *, idle: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the slots
        self._slots = threading.Semaphore(_CHUNKS_OUT)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._idle = idle
        self.started = False
        self.gone = False

    def write(self, data: bytes | memoryview) -> None:
        self._held.append(bytes(data))
        self._held_bytes += len(data)
        if self._held_bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            self._put(data)

    def discard(self) -> None:
        """Forget what was written and has not gone out."""
        self._held.clear()
        self._held_bytes = 0

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._chunks.put_nowait, None)

    def leave(self) -> None:
        """The client has gone: the next write raises."""
        self.gone = True

    def _put(self, data: bytes) -> None:
        waited = 0.0
        while not self._slots.acquire(timeout=_TICK_SECONDS):
            waited += _TICK_SECONDS
            if self.gone or waited > self._idle:
                raise ClientGone()
        if self.gone:
            raise ClientGone()
        self.started = True
        self._loop.call_soon_threadsafe(self._chunks.put_nowait, data)

    async def next(self) -> bytes | None:
        data = await self._chunks.get()
        if data is not None:
            self._slots.release()
        return data


async def stream(
    work: Callable[[Body, Answer], None],
    *,
    executor: Executor,
    body: Body,
    idle: float,
    send: Send,
    headers: Headers,
) -> None:
    """Run `work` in a thread and stream both ways. Its exceptions cut the connection if the answer
    has begun, and are a 500 if not."""
    try:
        await body.begin()
    except ClientGone:
        await plain(send, 408, "The request did not come.\n")
        return
    answer = Answer(idle=idle)

    def run() -> None:
        try:
            work(body, answer)
            answer.flush()
        finally:
            answer.end()

    pump = asyncio.create_task(body.pump(answer.leave))
    future = asyncio.get_running_loop().run_in_executor(executor, run)
    started = False
    try:
        while (data := await answer.next()) is not None:
            if not started:
                await _start(send, 200, headers)
                started = True
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await future
        if not started:
            await _start(send, 200, headers)
        await send({"type": "http.response.body", "body": b""})
    except (ClientGone, OSError):
        log.info("a git client went away or stalled")
        if not started:
            await plain(send, 408, "The request did not come.\n")
    except Exception:
        if started:
            raise  # the server cuts the connection, or the client would take the answer as whole
        log.exception("a git request failed")
        await plain(send, 500, "The server failed on this request.\n")
    finally:
        answer.leave()
        pump.cancel()


async def whole(send: Send, data: bytes, headers: Headers) -> None:
    """An answer that is all there."""
    length = (b"content-length", str(len(data)).encode())
    await _start(send, 200, [*headers, length])
    await send({"type": "http.response.body", "body": data})


async def plain(send: Send, status: int, text: str, headers: Headers = ()) -> None:
    """A short text. git prints it as `remote: ...` if it comes in answer to its first request."""
    kind = (b"content-type", b"text/plain; charset=utf-8")
    data = text.encode("utf-8", "replace")
    length = (b"content-length", str(len(data)).encode())
    await _start(send, status, [kind, length, *headers])
    await send({"type": "http.response.body", "body": data})


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
