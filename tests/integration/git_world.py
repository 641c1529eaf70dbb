"""A git store behind a real HTTP server, and the real git client against it."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from obstore.store import LocalStore, MemoryStore, ObjectStore
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from git_store import Access, GitHttp, GitStore, Limits, Push, PushEvent, PushRejected, Repository

GIT = Path(shutil.which("git") or "git").resolve()
TOKEN = "s3cret"
READ_TOKEN = "readonly"


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


@dataclass
class Recorder:
    """A listener that does what a test tells it to."""

    refuse: str | None = None
    fail: bool = False
    words: list[str] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    events: list[PushEvent] = field(default_factory=list)
    look: Callable[[Push], None] = field(default=lambda push: None)

    def before(self, push: Push) -> None:
        self.look(push)
        self.pushes.append(push)
        if self.refuse:
            raise PushRejected(self.refuse)

    def after(self, event: PushEvent, say: Callable[[str], None]) -> None:
        self.events.append(event)
        for word in self.words:
            say(word)
        if self.fail:
            raise RuntimeError("the listener broke")


def authenticate(
    authorization: str | None, owner: str, name: str, *, repository: Repository | None, write: bool
) -> Access:
    """Basic authorization as the platform does it: the token is the password."""
    if authorization is None:
        return Access.ask()
    password = base64.b64decode(authorization.split(" ", 1)[1]).decode().partition(":")[2]
    if owner == "secret":
        return Access.not_there()
    if password == READ_TOKEN:
        if write:
            return Access.forbid(f"You may read {owner}/{name}, but not push to it.")
        return Access.allow("usr_reader", "reader")
    if password != TOKEN:
        return Access.ask("The token is wrong or has expired.")
    return Access.allow("usr_alice", "alice")


def sqlite_engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    return engine


class GitWorld:
    """One server, one directory for clones."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits | None = None,
        engine: Engine | None = None,
        objects: ObjectStore | None = None,
        git: Path | None = None,
    ) -> None:
        """`git`: the binary for large work; None: the store does without."""
        self.directory = directory
        self.engine = engine or sqlite_engine(directory / "git.db")
        (directory / "objects").mkdir(exist_ok=True)
        self.objects = objects or LocalStore(directory / "objects")
        self.clock = Clock()
        self.listener = Recorder()
        self.store = GitStore(
            self.engine,
            self.objects,
            directory / "cache",
            clock=self.clock,
            limits=limits,
            listener=self.listener,
            git=git,
        )
        self.store.create_tables()
        self.app = GitHttp(self.store, authenticate=authenticate)
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self.app.close()
        self.store.close()
        self.engine.dispose()

    def url(self, full_name: str, token: str = TOKEN) -> str:
        return f"http://any:{token}@127.0.0.1:{self.port}/{full_name}.git"

    def create(self, full_name: str = "acme/app") -> str:
        """Create a repository and answer its URL."""
        owner, name = full_name.split("/")
        self.store.repositories.create(owner, name)
        return self.url(full_name)

    def git(self, *arguments: str, cwd: str | Path = ".", ok: bool = True, env: str = "") -> str:
        """Run git in a directory below this world's; both its outputs."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.directory / cwd,
            env=_environment() | dict(pair.split("=", 1) for pair in env.split() if pair),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        if ok != (done.returncode == 0):
            raise AssertionError(f"git {' '.join(arguments)} gave {done.returncode}:\n{output}")
        return output

    def clone(self, url: str, name: str, *options: str) -> Path:
        self.git("clone", "-q", *options, url, name)
        return self.directory / name

    def work(self, name: str = "work", url: str | None = None) -> Path:
        """A new local repository on branch main, with a remote."""
        self.git("init", "-q", "-b", "main", name)
        if url is not None:
            self.git("remote", "add", "origin", url, cwd=name)
        return self.directory / name

    def commit(
        self, cwd: str | Path, files: dict[str, str | bytes], message: str = "change"
    ) -> str:
        for path, content in files.items():
            target = self.directory / cwd / path
            target.parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            target.write_bytes(data)
        self.git("add", "-A", cwd=cwd)
        self.git("commit", "-q", "--allow-empty", "-m", message, cwd=cwd)
        return self.git("rev-parse", "HEAD", cwd=cwd).strip()

    def head(self, cwd: str | Path, rev: str = "HEAD") -> str:
        return self.git("rev-parse", rev, cwd=cwd).strip()

    def fsck(self, cwd: str | Path) -> None:
        """The client's own judgement of what it has."""
        output = self.git("fsck", "--full", "--strict", "--no-dangling", "--no-progress", cwd=cwd)
        assert "missing" not in output and "broken" not in output, output


def _environment() -> dict[str, str]:
    names = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org"}
    names |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
        **names,
    }


__all__ = [
    "GIT",
    "READ_TOKEN",
    "TOKEN",
    "Clock",
    "GitWorld",
    "MemoryStore",
    "Recorder",
    "sqlite_engine",
]
