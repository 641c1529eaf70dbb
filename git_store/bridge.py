"""Between ASGI, which is asynchronous, and the git protocol, which here is read(n) and write(b).

What is small comes to the thread whole and goes out whole. The rest of a longer body comes in
through a bounded queue and a longer answer goes out through another, so neither side runs ahead of
the other by more than a few chunks, and a client that goes away or stalls is noticed by the thread
that serves it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from git_store.errors import OverLimit, ProtocolError

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
Result = TypeVar("Result")

BEGINNING_BYTES = 64 * 1024  # of a body, here before a thread reads it
_CHUNKS_IN = 8  # of the request, read ahead
_CHUNKS_OUT = 16  # of the answer, written ahead
_CHUNK_BYTES = 64 * 1024
_TICK_SECONDS = 1.0


class ClientGone(Exception):
    """The client went away, or has been silent for too long."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told instead of an answer."""

    status: int
    text: str


TOO_LATE = Refusal(408, "The request did not come.")


class Body:
    """A request's body, read by a worker thread."""

    def __init__(self, receive: Receive, *, gzip: bool, limit: int | None, idle: float) -> None:
        """`limit` is on what is read, after gunzip; None leaves it to the reader."""
        self._receive = receive
        self._beginning = b""
        self._rest: _Rest | None = None  # what comes after the beginning
        self._gunzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if gzip else None
        self._limit = limit
        self._idle = idle
        self._ahead = b""
        self._read_bytes = 0
        self._ended = False  # read to the end

    async def begin(self) -> None:
        """Wait for the beginning: until it is here a client costs no thread. Raises ClientGone."""
        pieces: list[bytes] = []
        more, size = True, 0
        while more and size < BEGINNING_BYTES:
            try:
                async with asyncio.timeout(self._idle):
                    message = await self._receive()
            except TimeoutError:
                raise ClientGone() from None
            if message["type"] == "http.disconnect":
                raise ClientGone()
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            more = message.get("more_body", False)
        self._beginning = b"".join(pieces)
        if more:
            self._rest = _Rest(self._idle)

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self._rest is None

    async def pump(self, on_gone: Callable[[], None]) -> None:
        """Move the rest from the client to the thread; then watch for its leaving."""
        rest = self._rest
        while True:
            if rest is not None:
                await rest.room()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if rest is not None:
                    rest.break_off()
                on_gone()
                return
            if rest is not None:
                more = message.get("more_body", False)
                rest.put(message.get("body", b""), last=not more)
                rest = rest if more else None

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
            chunk, self._beginning = self._beginning, b""
            if not chunk and self._rest is not None:
                chunk = self._rest.get()
            if not chunk:
                self._ended = True
                if self._gunzip is not None and not self._gunzip.eof:
                    raise ProtocolError("the compressed request was cut short")
                return b""
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


class _Rest:
    """What comes of a body while it is read: a few chunks, put by the loop, got by the thread."""

    def __init__(self, idle: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(_CHUNKS_IN)
        self._chunks: queue.Queue[bytes | None] = queue.Queue()  # bounded by the slots
        self._idle = idle
        self._ended = False

    async def room(self) -> None:
        """Wait until one more may be put."""
        await self._slots.acquire()

    def put(self, chunk: bytes, *, last: bool) -> None:
        if chunk:
            self._chunks.put(chunk)
        else:
            self._slots.release()
        if last:
            self._chunks.put(b"")

    def break_off(self) -> None:
        """There will be no more: the client has gone."""
        self._chunks.put(None)

    def get(self) -> bytes:
        """The next chunk, empty at the end. Raises ClientGone."""
        if self._ended:
            return b""
        try:
            chunk = self._chunks.get(timeout=self._idle)
        except queue.Empty:
            raise ClientGone() from None
        if chunk is None:
            raise ClientGone()
        if chunk:
            self._loop.call_soon_threadsafe(self._slots.release)
        else:
            self._ended = True
        return chunk


class Answer:
    """A response's body, written by a worker thread. What is written goes out at `flush`, when it
    has become much, and at the end."""

    def __init__(self, *, idle: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()  # bounded by the slots; the loop's
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False
        self._slots: threading.Semaphore | None = None
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
            self._put(self.take())

    def take(self) -> bytes:
        """What was written and has not gone out; it is the caller's to send."""
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return data

    def leave(self) -> None:
        """The client has gone: the next write raises."""
        self.gone = True

    def _put(self, data: bytes) -> None:
        if self._slots is None:
            self._slots = threading.Semaphore(_CHUNKS_OUT)
        waited = 0.0
        while not self._slots.acquire(timeout=_TICK_SECONDS):
            waited += _TICK_SECONDS
            if self.gone or waited > self._idle:
                raise ClientGone()
        if self.gone:
            raise ClientGone()
        self.started = True
        self._loop.call_soon_threadsafe(self._arrived, data)

    # --- in the loop ------------------------------------------------------------------------------

    def end(self) -> None:
        """The thread is done: what has not gone out is there to be taken."""
        self._ended = True
        self._wake()

    async def next(self) -> bytes | None:
        """The next that goes out while the thread is at work."""
        while not self._chunks:
            if self._ended:
                return None
            self._waiting = self._loop.create_future()
            await self._waiting
        assert self._slots is not None
        self._slots.release()
        return self._chunks.popleft()

    def _arrived(self, data: bytes) -> None:
        self._chunks.append(data)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


Work = Callable[[Body, Answer], Refusal | None]
"""Done in a thread: reads the body, writes the answer, or says why there is none."""


def in_thread(executor: Executor, work: Callable[[], Result]) -> asyncio.Future[Result]:
    """As the loop's `run_in_executor`, which costs twice as much."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def finish(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(cast(Result, result))
        else:
            done.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(finish, None, error)
        else:
            loop.call_soon_threadsafe(finish, result, None)

    executor.submit(run)
    return done


async def exchange(
    work: Work, *, executor: Executor, body: Body, idle: float, send: Send, headers: Headers
) -> None:
    """Run `work` in a thread, with a body that has begun, and send its answer; a refusal takes its
    place. Exceptions of `work` cut the connection if the answer has begun, and are a 500 if not."""
    answer = Answer(idle=idle)
    working = in_thread(executor, partial(work, body, answer))
    working.add_done_callback(lambda _: answer.end())
    # Whose body is here and whose answer has not begun may leave unseen: the work is done anyway.
    pump = None if body.whole else asyncio.create_task(body.pump(answer.leave))
    started = False
    try:
        while (data := await answer.next()) is not None:
            if not started:
                await _start(send, 200, headers)
                started = True
                pump = pump or asyncio.create_task(body.pump(answer.leave))
            await send({"type": "http.response.body", "body": data, "more_body": True})
        refusal = await working
        if started:
            await send({"type": "http.response.body", "body": answer.take()})
        elif refusal is None:
            await whole(send, answer.take(), headers)
        else:
            await refuse(send, refusal)
    except (ClientGone, OSError):
        log.info("a git client went away or stalled")
        if not started:
            await refuse(send, TOO_LATE)
    except Exception:
        if started:
            raise  # the server cuts the connection, or the client would take the answer as whole
        log.exception("a git request failed")
        await refuse(send, Refusal(500, "The server failed on this request."))
    finally:
        answer.leave()
        if pump is not None:
            pump.cancel()


async def whole(send: Send, data: bytes, headers: Headers) -> None:
    """An answer that is all there."""
    length = (b"content-length", b"%d" % len(data))
    await _start(send, 200, [*headers, length])
    await send({"type": "http.response.body", "body": data})


async def refuse(send: Send, refusal: Refusal) -> None:
    """A short text. git prints it as `remote: ...` if it comes in answer to its first request."""
    data = f"{refusal.text}\n".encode("utf-8", "replace")
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(data)),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="sluice"'))
    await _start(send, refusal.status, headers)
    await send({"type": "http.response.body", "body": data})


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
