"""Packet lines and side bands. (dulwich's reader cannot tell a delimiter from a flush, and its side
band writer copies the rest of a blob for every packet.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol

from dulwich.protocol import pkt_line

from git_store.errors import ProtocolError

FLUSH = b"0000"
DELIMITER = b"0001"
_SIDE_BAND_LARGE = 65515
_SIDE_BAND_SMALL = 995
_READ_BYTES = 1 << 18


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
        head = self._exactly(4)
        if not head:
            return Mark.END
        try:
            length = int(head, 16)
        except ValueError as error:
            raise ProtocolError("bad packet length") from error
        if length in (0, 1):
            return Mark(length)
        if length < 4:
            raise ProtocolError("bad packet length")
        content = self._exactly(length - 4)
        if len(content) != length - 4:
            raise ProtocolError("the request was cut short")
        return content

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

    def _exactly(self, count: int) -> bytes:
        while len(self._ahead) - self._position < count:
            chunk = self._read(_READ_BYTES)
            if not chunk:
                break
            self._ahead = self._ahead[self._position :] + chunk
            self._position = 0
        start = self._position
        self._position = min(start + count, len(self._ahead))
        return self._ahead[start : self._position]


def packet(line: bytes) -> bytes:
    return pkt_line(line)


class SideBand:
    """Writes data, progress and errors, multiplexed as far as the client can take it."""

    def __init__(self, out: Out, *, large: bool, small: bool = False, quiet: bool = False) -> None:
        self.on = large or small
        self._out = out
        self._quiet = quiet
        self._most = _SIDE_BAND_LARGE if large else _SIDE_BAND_SMALL

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
        """Text for the person at the client; must end a line with a newline or return."""
        if self.on:
            self._send(2, text.encode("utf-8", "replace"))
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
