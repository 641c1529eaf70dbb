"""Indexing a large pack in a process of its own, so that it never holds up the server's threads.

`index_apart` is called in the server, `main` is what the child runs. They speak over a
socket pair: the child asks for objects it needs and tells its progress, and ends with the result.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from git_store.errors import BadPack, GitStoreError, OverLimit, StorageFailed
from git_store.index import Indexed, Lookup, Progress, index_pack
from git_store.limits import Limits
from git_store.pack import map_file

CHILD = [sys.executable, "-c", "from git_store.index_process import main; main()"]
_LOOKUP, _PROGRESS, _DONE, _BAD, _OVER = range(5)  # what the child says


def index_apart(path: Path, *, limits: Limits, lookup: Lookup, progress: Progress) -> Indexed:
    """As `index_pack`, of a file, in a child process. Raises also StorageFailed if it dies."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [*CHILD, str(theirs.fileno())],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            with Connection(os.dup(ours.fileno())) as line:
                line.send((str(path), dataclasses.asdict(limits)))
                return _converse(line, lookup, progress)
        except (EOFError, OSError) as error:
            raise StorageFailed("the process that indexes the pack died; push again") from error
        finally:
            child.kill()  # it has ended, unless we gave up on it
            child.wait()


def _converse(line: Connection, lookup: Lookup, progress: Progress) -> Indexed:
    while True:
        what, value = line.recv()
        if what == _LOOKUP:
            line.send(lookup(value))
        elif what == _PROGRESS:
            progress(value)
        elif what == _BAD:
            raise BadPack(value)
        elif what == _OVER:
            raise OverLimit(value[0], limit=value[1])
        else:
            return Indexed(*value)


def main() -> None:
    """The child: one pack, then it ends."""
    with Connection(int(sys.argv[1])) as line:
        path, limits = line.recv()

        def lookup(name: bytes) -> tuple[int, bytes] | None:
            line.send((_LOOKUP, name))
            found: tuple[int, bytes] | None = line.recv()
            return found

        try:
            indexed = index_pack(
                map_file(Path(path)),
                limits=Limits(**limits),
                lookup=lookup,
                progress=lambda text: line.send((_PROGRESS, text)),
            )
        except OverLimit as error:
            line.send((_OVER, (error.detail, error.limit)))
        except GitStoreError as error:
            line.send((_BAD, error.detail))
        else:
            fields = dataclasses.fields(Indexed)
            line.send((_DONE, [getattr(indexed, field.name) for field in fields]))
