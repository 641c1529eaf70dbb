"""Large fetches are put together in a process of their own: git's where it is installed, or ours.

`PackProcesses.send` is called in the server, with a job in which nothing may be refused any more;
the process sees a directory with the repository's packs and no refs but the tags that may go along.
`main` is what our own process runs. Both write the pack to a pipe, and progress to another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import selectors
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from git_store.child import confine, end, start_git, start_python
from git_store.errors import GitStoreError, StorageFailed
from git_store.graph import Graph
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.pack import Pack, map_file
from git_store.packfile import pieces, unload
from git_store.packwriter import PackWriter
from git_store.pktline import SideBand
from git_store.select import Job, Selected, select

_PIPE_BYTES = 1 << 18
_COMPLAINT_BYTES = 1000


class PackProcesses:
    """Shared by all threads of a process; as many at once as are free, the others wait."""

    def __init__(
        self, directory: Path, limits: Limits, free: threading.Semaphore, git: Path | None
    ) -> None:
        """`git` is the binary; None: our own process does it."""
        self._directory = directory
        self._limits = limits
        self._git = git
        self.free = free

    def send(self, packs: Sequence[Pack], job: Job, side: SideBand) -> None:
        """Send what the job asks for. Raises StorageFailed if the process fails."""
        self._directory.mkdir(parents=True, exist_ok=True)
        while not self.free.acquire(timeout=self._limits.keepalive_seconds):
            side.keep_alive()
        try:
            with tempfile.TemporaryDirectory(dir=self._directory, prefix="fetch_") as place:
                lay_out(Path(place), packs, job.tags)
                self._send(Path(place), job, side)
        finally:
            self.free.release()

    def _send(self, place: Path, job: Job, side: SideBand) -> None:
        asked = place / "job"
        asked.write_bytes(pickle.dumps(job) if self._git is None else b"".join(_revisions(job)))
        with asked.open("rb") as stdin:
            stdout, stderr = -1, -1  # pipes of its own
            if self._git is None:
                child = start_python(
                    "pack_process",
                    str(place),
                    limits=self._limits,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                )
            else:
                child = start_git(
                    self._git,
                    place,
                    *_options(job),
                    limits=self._limits,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                )
        try:
            assert child.stdout is not None and child.stderr is not None
            said = self._forward(child.stdout.fileno(), child.stderr.fileno(), side)
            status = child.wait()
        finally:
            end(child)
        if status:
            why = "the process that packs the answer failed; try again"
            side.fatal(f"{why}\n")
            raise StorageFailed(f"{why} ({said.strip()[-_COMPLAINT_BYTES:]})")

    def _forward(self, stdout: int, stderr: int, side: SideBand) -> str:
        """Hand on the pack and what is said about it, until both end. The last words."""
        with contextlib.suppress(OSError):  # the system allows no more: slower, that is all
            fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        said = ""
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            ready.register(stderr, selectors.EVENT_READ)
            while ready.get_map():
                found = ready.select(self._limits.keepalive_seconds)
                if not found:
                    side.keep_alive()
                for key, _ in found:
                    data = os.read(key.fd, _PIPE_BYTES)
                    if not data:
                        ready.unregister(key.fd)
                    elif key.fd == stdout:
                        side.data(data)
                    else:
                        said = data.decode("utf-8", "replace")
                        side.progress(said)
        return said


def lay_out(place: Path, packs: Sequence[Pack], tags: Iterable[tuple[bytes, bytes]]) -> None:
    """Make a directory a bare repository of these packs and tags, in git's eyes."""
    folder = place / "objects" / "pack"
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "HEAD").write_text("ref: refs/heads/none\n")
    lines = [
        f"{tag.hex()} refs/tags/{number:07}\n^{commit.hex()}\n"
        for number, (commit, tag) in enumerate(tags)
    ]
    if lines:
        header = "# pack-refs with: peeled fully-peeled sorted \n"
        (place / "packed-refs").write_text(header + "".join(lines))
    for number, pack in enumerate(packs):
        _place(folder / f"pack-{number:07}", pack)


def _place(path: Path, pack: Pack) -> None:
    copies = path.with_suffix(".pack"), path.with_suffix(".idx")
    if pack.files is not None:
        try:
            for there, here in zip(pack.files, copies, strict=True):
                os.link(there, here)
        except OSError:  # another file system, or dropped from the cache while it is open
            copies[0].unlink(missing_ok=True)
        else:
            return
    for data, here in zip((pack.data, pack.index_data), copies, strict=True):
        with here.open("wb") as copy:
            for piece in pieces(data, 0, len(data)):
                copy.write(piece)


# --- git ------------------------------------------------------------------------------------------


def _options(job: Job) -> list[str]:
    options = ["pack-objects", "--revs", "--stdout", "--progress"]
    if job.thin:
        options.append("--thin")
    if job.near:
        options.append("--delta-base-offset")
    if job.tags:
        options.append("--include-tag")
    if job.filter is not None:
        options.append(f"--filter={job.filter}")
    return options


def _revisions(job: Job) -> Iterator[bytes]:
    """The job as `git upload-pack` hands it to `git pack-objects`.

    What the client has without its parents is said to have none, also where it gets them now: they
    are wanted by themselves, and what the client has must not seem to include them.
    """
    for commit in sorted(job.cut | job.client_cut):
        yield f"--shallow {commit.hex()}\n".encode()
    for name in [*job.commits, *(name for name, _ in job.others)]:
        yield f"{name.hex()}\n".encode()
    yield b"--not\n"
    for commit in [*job.common, *job.opened]:
        yield f"{commit.hex()}\n".encode()


# --- our own process ------------------------------------------------------------------------------


class _Pipe(SideBand):
    """The pack to standard output, words to standard error."""

    def __init__(self) -> None:
        super().__init__(sys.stdout.buffer, large=False)

    def progress(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)


def main() -> None:
    """The child: one fetch, then it ends."""
    (place,) = confine()
    job: Job = pickle.load(sys.stdin.buffer)
    files = sorted(Path(place, "objects", "pack").glob("*.pack"))
    packs = [
        Pack(file.stem, map_file(file), map_file(file.with_suffix(".idx")), None) for file in files
    ]
    side = _Pipe()
    try:
        selected = _selected(packs, job)
        side.progress(f"Enumerating objects: {len(selected.names)}, done.\n")
        PackWriter(Objects(packs), selected, side, thin=job.thin, near=job.near).send()
    except GitStoreError as error:
        raise SystemExit(error.detail) from error
    sys.stdout.buffer.flush()


def _selected(packs: Sequence[Pack], job: Job) -> Selected:
    """What was read to find them is let go of before anything is sent."""
    objects = Objects(packs)
    selected = select(objects, Graph(objects), job)
    for pack in packs:
        unload(pack.data, 0, len(pack.data))
    return selected
