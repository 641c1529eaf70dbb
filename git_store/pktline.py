"""Packet lines and side bands. (dulwich's reader cannot tell a delimiter from a flush, and its side
band writer copies the rest of a blob for every packet.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from time import monotonic
from typing import Protocol

from dulwich.protocol import pkt_line

from git_store.errors import ProtocolError

FLUSH = b"0000"
DELIMITER = b"0001"
_SIDE_BAND_LARGE = 65515
_SIDE_BAND_SMALL = 995
_READ_BYTES = 1 << 18
_TEXT_SECONDS = 0.3  # how often text goes out by itself


class Mark(Enum):
    FLUSH = 0
    DELIMITER = 1
    END = 2  # no more input


class Out(Protocol):
    """Where an answer goes. `write` may hold back small pieces until `flush`."""

    def write(self, data: bytes | memoryview, /) -> object: ...

    def flush(self) -> object: ...


class PacketReader:
    def __init__(self, read: Callable[[int], bytes]) -> None:
        """`read(n)` answers at least one byte unless at the end, never more than n."""
        self._read = read
        self._ahead = b""
        self._position = 0  # in what was read ahead

    def line(self) -> bytes | Mark:
        start = self._position
        end = len(self._ahead)
        if end - start < 4:
            start, end = self._more(4)
            if start == end:
                return Mark.END
        try:
            length = int(self._ahead[start : start + 4], 16)
        except ValueError as error:
            raise ProtocolError("bad packet length") from error
        if length < 4:
            if length not in (0, 1):
                raise ProtocolError("bad packet length")
            self._position = start + 4
            return Mark(length)
        if end - start < length:
            start, end = self._more(length)
            if end - start < length:
                raise ProtocolError("the request was cut short")
        self._position = start + length
        return self._ahead[start + 4 : start + length]

    def lines(self) -> Iterator[bytes]:
        """Lines up to a flush or the end, without their newline."""
        while isinstance(line := self.line(), bytes):
            yield line.removesuffix(b"\n")
        if line is Mark.DELIMITER:
            raise ProtocolError("unexpected delimiter packet")

    def rest(self) -> Iterator[bytes]:
        """What follows the packets, in chunks."""
        if self._position < len(self._ahead):
            yield self._ahead[self._position :]
            self._ahead, self._position = b"", 0
        while chunk := self._read(_READ_BYTES):
            yield chunk

    def _more(self, count: int) -> tuple[int, int]:
        """Read ahead until `count` bytes are here, if they come; answers from where to where."""
        while len(self._ahead) - self._position < count:
            chunk = self._read(_READ_BYTES)
            if not chunk:
                break
            self._ahead = self._ahead[self._position :] + chunk
            self._position = 0
        return self._position, len(self._ahead)


def packet(line: bytes) -> bytes:
    return pkt_line(line)


class SideBand:
    """Writes data, progress and errors, multiplexed as far as the client can take it."""

    def __init__(self, out: Out, *, large: bool, small: bool = False, quiet: bool = False) -> None:
        self.on = large or small
        self._out = out
        self._quiet = quiet
        self._most = _SIDE_BAND_LARGE if large else _SIDE_BAND_SMALL
        self._due = monotonic() + _TEXT_SECONDS

    def data(self, content: bytes | memoryview) -> None:
        if self.on:
            self._send(1, content)
        else:
            self._out.write(content)

    def progress(self, text: str) -> None:
        """Text that a client may do without."""
        if not self._quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Text for the person at the client; must end a line with a newline or return. It goes out
        with what follows: by itself only when the client has waited for some time."""
        if self.on:
            self._send(2, text.encode("utf-8", "replace"))
            now = monotonic()
            if now > self._due:
                self._due = now + _TEXT_SECONDS
                self._out.flush()

    def keep_alive(self) -> None:
        """Send what says nothing, so that no proxy takes a client that waits for one that died."""
        if self.on:
            self._out.write(b"0005\1")
            self._out.flush()

    def fatal(self, text: str) -> None:
        """The client prints the text and gives up."""
        if self.on:
            self._send(3, text.encode("utf-8", "replace"))
        else:
            self._out.write(packet(b"ERR " + text.encode("utf-8", "replace")))

    def _send(self, band: int, content: bytes | memoryview) -> None:
        view = memoryview(content)
        for start in range(0, len(view), self._most):
            piece = view[start : start + self._most]
            self._out.write(b"%04x%c" % (len(piece) + 5, band))
            self._out.write(piece)
