"""Rings between the processes of one machine: a unix datagram socket in a directory for each that
listens.

A process finds the others by listing the directory; the name of a socket that nobody holds any
more is removed by the first that cannot reach it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import threading
import time
from pathlib import Path

OTHERS_MAX = 256  # sockets rung at once
LISTED_S = 1.0  # how old the list of the others may be


class DatagramWire:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Addresses go through the open directory: a path of its own may be over the 108 bytes
        # that a socket's address holds.
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}.bell"
        self._lock = threading.Lock()
        self._others: tuple[str, ...] = ()
        self._seen_ns = -1  # the directory's change time when it was listed
        self._listed_s = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._waking, self._woken = socket.socketpair()
        self._ears = select.poll()
        for ear in (self._socket, self._woken):
            self._ears.register(ear, select.POLLIN)

    def listen(self) -> None:
        self._socket.bind(self._address(self._name))

    def send(self) -> None:
        with self._lock:
            if self._directory < 0:
                return
            for name in self._listed():
                try:
                    self._socket.sendto(b"!", self._address(name))
                except BlockingIOError:
                    continue  # its rings are waiting already
                except (ConnectionRefusedError, FileNotFoundError):
                    self._remove(name)
                except OSError:
                    continue  # a hint that did not arrive; the other polls

    def receive(self, timeout_s: float) -> bool:
        try:
            readable = {descriptor for descriptor, _ in self._ears.poll(timeout_s * 1000)}
            if self._socket.fileno() not in readable:
                return False
            while True:
                self._socket.recv(16)
        except BlockingIOError:
            return True

    def stop(self) -> None:
        self._waking.close()  # the other end of the pair becomes readable

    def close(self) -> None:
        with self._lock:
            if self._directory < 0:
                return
            self._remove(self._name)
            self._woken.close()
            self._socket.close()
            os.close(self._directory)
            self._directory = -1

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._directory}/{name}"

    def _listed(self) -> tuple[str, ...]:
        changed_ns = os.fstat(self._directory).st_mtime_ns
        now_s = time.monotonic()
        # The change time is too coarse to tell two changes at once apart, so it is not all.
        if changed_ns != self._seen_ns or now_s - self._listed_s > LISTED_S:
            self._seen_ns, self._listed_s = changed_ns, now_s
            names = sorted(os.listdir(self._directory))
            self._others = tuple(
                name for name in names if name.endswith(".bell") and name != self._name
            )[:OTHERS_MAX]
        return self._others

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._directory)
