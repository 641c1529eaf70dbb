"""A terminal for a command in a sandbox: a pseudo-terminal of its own, joined to a person's.

The sandbox never gets the person's own terminal, into which it could type. Used by `sluice debug`.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_READ_BYTES = 1 << 16
_TICK_MS = 100
_SIZE = struct.pack("HHHH", 24, 80, 0, 0)

# In a sandbox the script leads a session without a terminal: the shell gets one of its own.
SHELL = """
command -v bash >/dev/null && set -- bash --norc -i || set -- sh -i
command -v setsid >/dev/null && exec setsid --ctty --wait "$@"
exec "$@"
"""


class Terminal:
    """Between a person at `person` (a terminal: input and output) and one command."""

    def __init__(self, person_in: int, person_out: int) -> None:
        self._in = person_in
        self._out = person_out
        self._ours, self._theirs = os.openpty()

    def lend(self, uid: int | None) -> int:
        """The end for the command, which may run under a uid of its own."""
        if uid is not None:
            os.fchown(self._theirs, uid, -1)
        self._resize()
        return self._theirs

    def close(self) -> None:
        os.close(self._ours)
        self._let_go()

    def _let_go(self) -> None:
        """Close our copy of the command's end, without which nobody would see it end."""
        if self._theirs != -1:
            os.close(self._theirs)
            self._theirs = -1

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Carry what is typed and shown, as long as this is open. In the main thread only."""
        self._let_go()
        before = termios.tcgetattr(self._in)
        resized = signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        done = threading.Event()
        carrier = threading.Thread(target=self._carry, args=(done,), daemon=True)
        tty.setraw(self._in)
        carrier.start()
        try:
            yield
        finally:
            done.set()
            carrier.join()
            termios.tcsetattr(self._in, termios.TCSADRAIN, before)
            signal.signal(signal.SIGWINCH, resized)

    def _resize(self) -> None:
        size = _SIZE
        with suppress(OSError):
            size = fcntl.ioctl(self._in, termios.TIOCGWINSZ, _SIZE)
        with suppress(OSError):
            fcntl.ioctl(self._ours, termios.TIOCSWINSZ, size)

    def _carry(self, done: threading.Event) -> None:
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        poll.register(self._in, select.POLLIN)
        while True:
            ready = dict(poll.poll(_TICK_MS))
            if self._in in ready:
                typed = os.read(self._in, _READ_BYTES)
                if typed:
                    _write(self._ours, typed)
                else:
                    poll.unregister(self._in)
            if self._ours in ready:
                try:
                    shown = os.read(self._ours, _READ_BYTES)
                except OSError:  # the other end is closed everywhere
                    return
                _write(self._out, shown)
            elif done.is_set():
                return


def _write(fd: int, data: bytes) -> None:
    with suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
