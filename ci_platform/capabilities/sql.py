"""Runs statements on repositories' databases, in processes that may die of them.

One process serves one repository at a time and is ended when another needs its place; what a
statement may do is decided in sql_process.py, which is what these processes execute. Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci_platform.capabilities.shelf import Shelf
from ci_platform.capabilities.sql_process import BUSY_MS, HEADER
from ci_platform.errors import InternalError, SqlError, TooLarge, TooMany
from ci_platform.model import Json, RepositoryId

MIB = 1 << 20
GRACE_SECONDS = 2.0  # for a statement to stop by itself, and for a process to start
WAIT_SECONDS = 10.0  # for other statements of the same repository, or for a process
PROCESS = Path(__file__).with_name("sql_process.py")


@dataclass(frozen=True, slots=True)
class StorageLimits:
    database_bytes: int = 64 * MIB  # the quota of a repository's database, and of its kv
    value_bytes: int = MIB  # one text or blob, one value of the kv
    answer_bytes: int = MIB  # the rows of one statement, as JSON
    rows: int = 10_000  # of one statement
    seconds: float = 5.0  # that one statement may take
    processes: int = 4  # at once, of one worker


@dataclass(eq=False, slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    channel: socket.socket
    busy: bool = True

    def close(self) -> None:
        self.channel.close()
        self.popen.kill()
        self.popen.wait()


@dataclass(eq=False)
class SqlDatabases:
    """The databases of all repositories on a shelf."""

    shelf: Shelf
    limits: StorageLimits
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _processes: dict[RepositoryId, _Process] = field(default_factory=dict)  # last used last
    _starting: set[RepositoryId] = field(default_factory=set)

    def execute(
        self, repository: RepositoryId, database: str, statement: str, arguments: Sequence[Json]
    ) -> list[dict[str, Json]]:
        """Run one statement as one transaction. Raises SqlError, TooLarge, TooMany."""
        with self._process(repository) as process:

            def work(path: Path) -> list[dict[str, Json]]:
                asked = {"path": str(path), "statement": statement, "arguments": arguments}
                return _rows(self._exchange(process, json.dumps(asked).encode()))

            return self.shelf.use(repository, database, work)

    def remove(self, repository: RepositoryId) -> None:
        """Drop what a repository has stored."""
        self.shelf.remove(repository)

    def close(self) -> None:
        with self._changed:
            processes, self._processes = dict(self._processes), {}
        for process in processes.values():
            process.close()
        self.shelf.close()

    # --- processes ---

    @contextlib.contextmanager
    def _process(self, repository: RepositoryId) -> Iterator[_Process]:
        process = self._take(repository)
        try:
            yield process
        finally:
            with self._changed:
                process.busy = False
                self._changed.notify_all()

    def _take(self, repository: RepositoryId) -> _Process:
        until = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while True:
                process = self._processes.pop(repository, None)
                if process is not None and process.popen.poll() is not None:
                    process.close()
                    continue
                if process is not None and not process.busy:
                    process.busy = True
                    self._processes[repository] = process
                    return process
                if process is not None:
                    self._processes[repository] = process
                elif repository not in self._starting and self._make_room():
                    self._starting.add(repository)
                    break
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise TooMany("the storage of this server is busy: too many statements at once")
        try:
            process = self._start()
            with self._changed:
                self._processes[repository] = process
        finally:
            with self._changed:
                self._starting.discard(repository)
                self._changed.notify_all()
        return process

    def _make_room(self) -> bool:
        """Whether one more process may start, after ending an idle one if need be."""
        if len(self._processes) + len(self._starting) < self.limits.processes:
            return True
        for repository, process in self._processes.items():
            if not process.busy:
                del self._processes[repository]
                process.close()
                return True
        return False

    def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        limits = self.limits
        setup = {
            "fd": theirs.fileno(),
            "database_bytes": limits.database_bytes,
            "value_bytes": limits.value_bytes,
            "answer_bytes": limits.answer_bytes,
            "rows": limits.rows,
            "seconds": limits.seconds,
        }
        try:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(PROCESS), json.dumps(setup)],
                pass_fds=[theirs.fileno()],
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            raise InternalError(f"no process for storage starts: {error}") from error
        finally:
            theirs.close()
        return _Process(popen, ours)

    def _exchange(self, process: _Process, message: bytes) -> Json:
        """Raises SqlError when the statement took the process with it."""
        limits = self.limits
        until = time.monotonic() + limits.seconds + BUSY_MS / 1000 + GRACE_SECONDS
        try:
            process.channel.settimeout(max(0.01, until - time.monotonic()))
            process.channel.sendall(HEADER.pack(len(message)) + message)
            size = HEADER.unpack(_receive(process.channel, HEADER.size, until))[0]
            if size > 2 * limits.answer_bytes + MIB:
                raise OSError(f"an answer of {size} bytes")
            return json.loads(_receive(process.channel, size, until))
        except TimeoutError as error:
            process.close()
            raise SqlError(
                f"the statement took longer than {limits.seconds:g} seconds, or waited for another "
                "worker's for too long"
            ) from error
        except (OSError, ValueError) as error:
            process.close()
            raise SqlError("the statement ended the process that executed it") from error


def _receive(channel: socket.socket, size: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)
        piece = channel.recv(min(MIB, size - len(data)))
        if not piece:
            raise OSError("it is gone")
        data += piece
    return bytes(data)


def _rows(answer: Json) -> list[dict[str, Json]]:
    if "error" not in answer:
        rows: list[dict[str, Json]] = answer["rows"]
        return rows
    kind, message = answer["error"]
    raise _ERRORS.get(kind, SqlError)(message)


_ERRORS: dict[str, type[SqlError | TooLarge | TooMany]] = {"TooLarge": TooLarge, "TooMany": TooMany}
