"""Smart HTTP: one plain ASGI app over a GitStore.

Serves /{owner}/{name}.git/{info/refs,git-upload-pack,git-receive-pack} and nothing else. Access and
the repository are settled before a body is read. git prints the text of an error only in answer to
its first request (info/refs), as `remote: ...`; later ones travel inside the protocol.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from urllib.parse import parse_qs

from git_store.advertise import (
    advertise_receive,
    advertise_upload,
    advertise_version_2,
    list_refs,
    ref_prefixes,
)
from git_store.bridge import Answer, Body, Receive, Scope, Send, plain, stream, whole
from git_store.errors import GitStoreError, ProtocolError, RepoNotFound, StorageFailed
from git_store.fetch import Fetcher
from git_store.limits import Limits
from git_store.pktline import Mark, Out, PacketReader, packet
from git_store.push import Pusher, PushListener
from git_store.receive import Receiver
from git_store.repos import Repository
from git_store.store import GitStore

_PATH = re.compile(
    r"/([^/]+)/([^/]+?)(?:\.git)?/(info/refs|git-upload-pack|git-receive-pack)", re.DOTALL
)
_UPLOAD, _RECEIVE = "git-upload-pack", "git-receive-pack"
_NO_CACHE = (
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
)
_CHALLENGE = (b"www-authenticate", b'Basic realm="sluice"')
_ARGUMENTS_MAX = 1_000_000
_LIGHT_THREADS = 4
# How long a thread that packs or indexes may keep others from running. Python's own 5 ms are felt:
# a small request changes threads several times, and waits for each busy one every time.
_SWITCH_SECONDS = 0.0005


class Verdict(StrEnum):
    ALLOWED = "allowed"
    NEEDS_CREDENTIALS = "needs_credentials"  # 401: none were sent, or they are wrong
    FORBIDDEN = "forbidden"  # 403: may see the repository, but not do this
    NOT_THERE = "not_there"  # 404: no such repository, or not to be seen: the same answer


@dataclass(frozen=True, slots=True)
class Access:
    """The answer to "may they?". Use the class methods."""

    verdict: Verdict
    message: str = ""  # shown in the git client's terminal
    pusher: Pusher = Pusher(id=None, name="anonymous")

    @classmethod
    def allow(cls, pusher_id: str | None, pusher_name: str) -> Access:
        return cls(Verdict.ALLOWED, pusher=Pusher(pusher_id, pusher_name))

    @classmethod
    def ask(cls, message: str = "Authentication is required: use a token as password.") -> Access:
        return cls(Verdict.NEEDS_CREDENTIALS, message)

    @classmethod
    def forbid(cls, message: str) -> Access:
        return cls(Verdict.FORBIDDEN, message)

    @classmethod
    def not_there(cls, message: str = "") -> Access:
        return cls(Verdict.NOT_THERE, message)


class Authenticate(Protocol):
    """Decides who may read or write a repository. Called in a thread, may block; called before
    the repository is looked up, also for names that do not exist."""

    def __call__(
        self, authorization: str | None, owner: str, name: str, *, write: bool
    ) -> Access: ...


@dataclass(frozen=True, slots=True)
class _Request:
    """What a URL and its headers ask for."""

    owner: str
    name: str
    service: str
    advertise: bool  # info/refs
    version: int
    gzip: bool
    authorization: str | None

    @property
    def write(self) -> bool:
        return self.service == _RECEIVE


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    text: str


class GitHttp:
    """The ASGI app. Mount it at the root, before other routes, for the paths `handles` says."""

    def __init__(
        self, store: GitStore, *, authenticate: Authenticate, listener: PushListener | None = None
    ) -> None:
        """A `listener` given here is handed to `store.listen`."""
        if listener is not None:
            store.listen(listener)
        sys.setswitchinterval(min(_SWITCH_SECONDS, sys.getswitchinterval()))
        self._store = store
        self._authenticate = authenticate
        self._limits: Limits = store.limits
        # Apart, so that clients that take their time with large packs do not keep others from
        # being let in or turned away.
        self._light = ThreadPoolExecutor(_LIGHT_THREADS, thread_name_prefix="git-light")
        self._threads = ThreadPoolExecutor(self._limits.threads, thread_name_prefix="git")

    @staticmethod
    def handles(path: str) -> bool:
        """True if the path looks like a git client's."""
        return _PATH.fullmatch(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = _parse(scope)
        if isinstance(request, _Refusal):
            await plain(send, request.status, f"{request.text}\n")
            return
        loop = asyncio.get_running_loop()
        work = self._greet if request.advertise else self._admit
        admitted = await loop.run_in_executor(self._light, work, request)
        if isinstance(admitted, _Refusal):
            challenge = [_CHALLENGE] if admitted.status == 401 else []
            await plain(send, admitted.status, f"{admitted.text}\n", challenge)
            return
        kind = "advertisement" if request.advertise else "result"
        headers = [(b"content-type", f"application/x-{request.service}-{kind}".encode())]
        if isinstance(admitted, bytes):
            await whole(send, admitted, [*headers, *_NO_CACHE])
            return
        repository, pusher = admitted
        idle = self._limits.idle_seconds
        limit = None if request.write else self._limits.request_bytes
        await stream(
            self._work(request, repository, pusher),
            executor=self._threads,
            body=Body(receive, gzip=request.gzip, limit=limit, idle=idle),
            idle=idle,
            send=send,
            headers=[*headers, *_NO_CACHE],
        )

    def close(self) -> None:
        """End the worker threads, after the requests in work."""
        self._light.shutdown()
        self._threads.shutdown()

    # --- in a thread ------------------------------------------------------------------------------

    def _greet(self, request: _Request) -> bytes | _Refusal:
        """Let a client in and answer its first request, which has no body, in one go."""
        admitted = self._admit(request)
        if isinstance(admitted, _Refusal):
            return admitted
        out = io.BytesIO()
        try:
            self._advertise(request, admitted[0], out)
        except GitStoreError as error:
            return packet(b"ERR " + error.detail.encode("utf-8", "replace"))
        return out.getvalue()

    def _admit(self, request: _Request) -> tuple[Repository, Pusher] | _Refusal:
        owner, name = request.owner, request.name
        missing = f"There is no repository {owner}/{name}, or you may not see it."
        access = self._authenticate(request.authorization, owner, name, write=request.write)
        if access.verdict is Verdict.NEEDS_CREDENTIALS:
            return _Refusal(401, access.message)
        if access.verdict is Verdict.FORBIDDEN:
            return _Refusal(403, access.message)
        if access.verdict is Verdict.NOT_THERE:
            return _Refusal(404, access.message or missing)
        try:
            return self._store.repositories.get(owner, name), access.pusher
        except RepoNotFound:
            return _Refusal(404, missing)
        except StorageFailed:
            return _Refusal(503, StorageFailed.__doc__ or "")

    def _work(
        self, request: _Request, repository: Repository, pusher: Pusher
    ) -> Callable[[Body, Answer], None]:
        def work(body: Body, answer: Answer) -> None:
            try:
                if request.write:
                    receiver = Receiver(self._store.pushes, self._limits)
                    receiver.serve(repository, pusher, PacketReader(body.read), answer)
                else:
                    self._upload(request, repository, PacketReader(body.read), answer)
            except GitStoreError as error:
                if answer.started:
                    raise
                answer.discard()
                answer.write(packet(b"ERR " + error.detail.encode("utf-8", "replace")))

        return work

    def _advertise(self, request: _Request, repository: Repository, answer: Out) -> None:
        if request.service == _UPLOAD and request.version == 2:
            advertise_version_2(answer)
            return
        refs = self._store.refs.all(repository.id)
        if request.write:
            advertise_receive(refs, request.version, answer)
        else:
            advertise_upload(refs, repository.default_branch, request.version, answer)

    def _upload(
        self, request: _Request, repository: Repository, reader: PacketReader, answer: Answer
    ) -> None:
        if request.version < 2:
            self._fetcher(repository).upload(reader, answer)
            return
        command, arguments = _read_command(reader)
        if command == b"ls-refs":
            refs = self._store.refs.all(repository.id, ref_prefixes(arguments))
            branch = repository.default_branch
            name = f"refs/heads/{branch}"
            listed = (ref for ref in refs if ref.name == name)
            head = next(listed, None) or self._store.refs.get(repository.id, name)
            list_refs(refs, head, branch, arguments, answer)
        elif command == b"fetch":
            self._fetcher(repository).fetch(arguments, answer)
        elif command is not None:
            raise ProtocolError(f"unknown command {command[:100]!r}")

    def _fetcher(self, repository: Repository) -> Fetcher:
        refs = self._store.refs.all(repository.id)  # before the packs: see Fetcher
        objects = self._store.objects(repository.id)
        return Fetcher(
            refs,
            objects,
            limits=self._limits,
            heavy=self._store.heavy,
            apart=self._store.pack_processes,
        )


def _read_command(reader: PacketReader) -> tuple[bytes | None, list[bytes]]:
    """A request of protocol version 2: the command, capabilities, a delimiter, arguments."""
    command: bytes | None = None
    arguments: list[bytes] = []
    delimited = False
    while (line := reader.line()) not in (Mark.FLUSH, Mark.END):
        if not isinstance(line, bytes):
            delimited = True
        elif delimited:
            arguments.append(line.removesuffix(b"\n"))
        elif line.startswith(b"command="):
            command = line.removesuffix(b"\n").removeprefix(b"command=")
        elif line.startswith(b"object-format=") and line.rstrip() != b"object-format=sha1":
            raise ProtocolError("this server keeps sha1 repositories only")
        if len(arguments) > _ARGUMENTS_MAX:
            raise ProtocolError(f"more than {_ARGUMENTS_MAX} arguments in one request")
    return command, arguments


def _parse(scope: Scope) -> _Request | _Refusal:
    found = _PATH.fullmatch(scope["path"])
    if found is None:
        return _Refusal(404, "This is not the address of a git repository.")
    owner, name, operation = found.groups()
    headers: dict[bytes, bytes] = dict(scope["headers"])
    advertise = operation == "info/refs"
    service = operation
    if advertise:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        service = query.get("service", [""])[0]
    if scope["method"] != ("GET" if advertise else "POST"):
        return _Refusal(405, "git uses GET for info/refs and POST for the rest.")
    if service not in (_UPLOAD, _RECEIVE):
        return _Refusal(403, "Only the smart HTTP protocol is spoken here: use git 1.6.6 or newer.")
    expected = f"application/x-{service}-request".encode()
    if not advertise and headers.get(b"content-type") != expected:
        return _Refusal(415, f"The content type must be {expected.decode()}.")
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding not in (b"identity", b"gzip", b"x-gzip"):
        return _Refusal(415, "The content encoding must be gzip or none.")
    authorization = headers.get(b"authorization")
    return _Request(
        owner=owner,
        name=name,
        service=service,
        advertise=advertise,
        version=_version(headers.get(b"git-protocol", b"")),
        gzip=encoding != b"identity",
        authorization=None if authorization is None else authorization.decode("latin-1"),
    )


def _version(header: bytes) -> int:
    """The newest protocol version both sides speak."""
    known = {b"version=1": 1, b"version=2": 2}
    return max((known.get(word.strip(), 0) for word in header.split(b":")), default=0)
