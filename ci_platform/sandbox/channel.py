"""Framed messages between a worker and its sandbox process, over a socket pair.

A frame is one byte of kind, four of length, and the payload. Both sides limit what they accept, so
that a hostile guest can make neither of them run out of memory.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from enum import Enum

FRAME_BYTES_MAX = 160 << 20  # source files of 64 MiB, escaped as JSON, and then some
_HEADER = struct.Struct(">cI")
_CHUNK = 1 << 20
# Longer waits are made of these: each time that a socket's timeout is set anew costs a call of the
# system, and the interpreter's lock, for which other threads wait.
WAIT_SECONDS = 10.0


class Frame(Enum):
    """What a frame says. Its payload is UTF-8 text unless noted."""

    HELLO = b"H"  # child: ready; JSON of how it is confined
    ACTIVATE = b"A"  # worker: one byte of flags, then the guest's message
    NEXT = b"N"  # child: commands of the guest; worker: the answer
    LOG = b"L"  # child: JSON [step, stream, text]
    SLEEP = b"S"  # child: the guest sleeps for so many milliseconds, silently
    ASK = b"Q"  # child: JSON of what the guest wants of self.env; worker: the answer
    ANSWER = b"R"  # child: eight bytes of resident size, then the guest's answer
    TRAP = b"T"  # child: eight bytes of resident size, then JSON [kind, detail]


USE_WARM, KEEP, PREPARE = 1, 2, 4  # PREPARE: nobody waits, so make a fresh interpreter ready
RSS = struct.Struct(">Q")


class ChannelClosed(Exception):
    """The other side is gone, or sent what is no frame."""


class Silence(Exception):
    """Nothing came in time."""


class Channel:
    """One end. Not for use by two threads at once."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._seconds = end.gettimeout()
        self._buffer = bytearray()

    def send(self, frame: Frame, payload: bytes, *, seconds: float | None = None) -> None:
        """Raises ChannelClosed, or Silence when the other side does not read in time."""
        self._time_out_after(seconds)
        head = _HEADER.pack(frame.value, len(payload))
        try:
            if len(payload) <= _CHUNK:  # in one piece: two would wake the other side twice
                self._socket.sendall(head + payload)
            else:
                self._socket.sendall(head)
                self._socket.sendall(payload)
        except TimeoutError as error:
            raise Silence from error
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, *, seconds: float | None = None) -> tuple[Frame, bytes]:
        """The next frame, whole. Raises ChannelClosed, or Silence after so many seconds."""
        until = None if seconds is None else time.monotonic() + seconds
        kind, size = _HEADER.unpack(self._read(_HEADER.size, until))
        if size > FRAME_BYTES_MAX:
            raise ChannelClosed(f"a frame of {size} bytes, more than {FRAME_BYTES_MAX}")
        try:
            frame = Frame(kind)
        except ValueError as error:
            raise ChannelClosed(f"no such frame: {kind!r}") from error
        return frame, self._read(size, until)

    def _read(self, size: int, until: float | None) -> bytes:
        buffer = self._buffer
        while len(buffer) < size:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise Silence
            self._time_out_after(None if left is None else min(left, WAIT_SECONDS))
            try:
                data = self._socket.recv(max(65_536, min(_CHUNK, size - len(buffer))))
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not data:
                raise ChannelClosed("the other side has closed")
            buffer += data
        taken = bytes(memoryview(buffer)[:size])
        del buffer[:size]
        return taken

    def _time_out_after(self, seconds: float | None) -> None:
        if seconds != self._seconds:  # a confined process may not even ask for the same again
            self._socket.settimeout(seconds)
            self._seconds = seconds

    def wait(self, seconds: float) -> None:
        """Sleep; only as long as the other side is silent, as it is unless it has gone."""
        if not self._buffer:
            select.select([self._socket], [], [], seconds)

    def readable(self) -> bool:
        """Whether a message, or the end, is there already."""
        return bool(self._buffer) or bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        self._socket.close()
