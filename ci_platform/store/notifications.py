"""Rings between processes through PostgreSQL: LISTEN/NOTIFY on connections of their own.

NOTIFY takes a lock of the whole cluster when its transaction commits, so it is never sent inside
one that does work. A thread sends it, and a burst of rings becomes one notification.
"""

from __future__ import annotations

import secrets
import threading

import psycopg
from sqlalchemy import URL

RECONNECT_S = 1.0  # between tries to connect
CONNECT_SECONDS = 10


class NotifyWire:
    def __init__(self, url: URL, channel: str) -> None:
        self._channel = channel
        self._address = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._own = secrets.token_hex(8)  # to know one's own notifications
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._listening: psycopg.Connection | None = None
        self._sender = threading.Thread(target=self._send_all, name="bell-sender", daemon=True)
        self._sender.start()

    def listen(self) -> None:
        """The first `receive` does."""

    def send(self) -> None:
        self._dirty.set()

    def receive(self, timeout_s: float) -> bool:
        try:
            if self._listening is None:
                self._listening = self._connect()
                self._listening.execute(f"LISTEN {self._channel}")
                return True  # what was rung before is not known
            notes = list(self._listening.notifies(timeout=timeout_s, stop_after=1))
            return any(note.payload != self._own for note in notes)
        except psycopg.Error:
            self._drop()
            self._closed.wait(RECONNECT_S)
        return False

    def stop(self) -> None:
        self._closed.set()
        self._dirty.set()

    def close(self) -> None:
        self._sender.join()
        self._drop()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            self._address,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="sluice bell",
            options="-c synchronous_commit=off",  # a ring is a commit too, but none to be kept
        )

    def _drop(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def _send_all(self) -> None:
        connection: psycopg.Connection | None = None
        while True:
            self._dirty.wait()
            self._dirty.clear()
            closing = self._closed.is_set()
            try:
                if connection is None:
                    connection = self._connect()
                connection.execute("SELECT pg_notify(%s, %s)", (self._channel, self._own))
            except psycopg.Error:
                if connection is not None:
                    connection.close()
                connection = None
                self._dirty.set()  # said again once there is a connection
                self._closed.wait(RECONNECT_S)
            if closing:  # the last notification was for our own receiver
                break
        if connection is not None:
            connection.close()
