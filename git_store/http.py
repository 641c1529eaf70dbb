"""Smart HTTP: one plain ASGI app over a GitStore.

Serves /{owner}/{name}.git/{info/refs,git-upload-pack,git-receive-pack} and nothing else. A request
changes threads once; access and the repository are settled before a body that is not small is
read. git prints the text of an error only in answer to its first request (info/refs), as
`remote: ...`; later ones travel inside the protocol.
"""

from __future__ import annotations

import io
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol
from urllib.parse import parse_qs

from git_store.advertise import (
    advertise_receive,
    advertise_upload,
    advertise_version_2,
    list_refs,
    ref_prefixes,
)
from git_store.bridge import (
    BEGINNING_BYTES,
    TOO_LATE,
    Answer,
    Body,
    ClientGone,
    Headers,
    Receive,
    Refusal,
    Scope,
    Send,
    Work,
    exchange,
    in_thread,
    refuse,
    whole,
)
from git_store.errors import GitStoreError, ProtocolError, StorageFailed
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
_USUAL = {f"service={service}".encode(): service for service in (_UPLOAD, _RECEIVE)}
_NO_CACHE = (
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
)
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
    """Decides who may read or write a repository. Called in a thread, may block. Called also for
    names that do not exist: `repository` is then None."""

    def __call__(
        self,
        authorization: str | None,
        owner: str,
        name: str,
        *,
        repository: Repository | None,
        write: bool,
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
    small: bool  # what its body says of itself
    authorization: str | None

    @property
    def write(self) -> bool:
        return self.service == _RECEIVE


class GitHttp:
    """The ASGI app. Mount it at the root, before other routes, for the paths `handles` says."""

    def __init__(
        self,
        store: GitStore,
        *,
        authenticate: Authenticate,
        strangers: Access | None = None,
        listener: PushListener | None = None,
    ) -> None:
        """Who sends no credentials, as git's first request does, is told `strangers` at once, where
        that is the same for all; None leaves it to `authenticate`. A `listener` given here is
        handed to `store.listen`."""
        if listener is not None:
            store.listen(listener)
        sys.setswitchinterval(min(_SWITCH_SECONDS, sys.getswitchinterval()))
        self._store = store
        self._authenticate = authenticate
        self._strangers = None if strangers is None else _refusal(strangers, "")
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
        if isinstance(request, Refusal):
            await refuse(send, request)
        elif request.authorization is None and self._strangers is not None:
            await refuse(send, self._strangers)
        elif request.advertise:
            await self._begin(request, send)
        else:
            await self._go_on(request, receive, send)

    async def _begin(self, request: _Request, send: Send) -> None:
        """The first request of a client, which has no body."""
        greeting = await in_thread(self._light, partial(self._greet, request))
        if isinstance(greeting, Refusal):
            await refuse(send, greeting)
        else:
            await whole(send, greeting, _headers(request, "advertisement"))

    async def _go_on(self, request: _Request, receive: Receive, send: Send) -> None:
        """A later request. Its body is read by the thread that does the work."""
        idle = self._limits.idle_seconds
        body = Body(
            receive,
            gzip=request.gzip,
            limit=None if request.write else self._limits.request_bytes,
            idle=idle,
        )
        work: Work = partial(self._serve, request)
        if not request.small:
            admitted = await in_thread(self._light, partial(self._admit, request))
            if isinstance(admitted, Refusal):
                await refuse(send, admitted)
                return
            work = partial(self._work, request, *admitted)
        try:
            await body.begin()
        except ClientGone:
            await refuse(send, TOO_LATE)
            return
        await exchange(
            work,
            executor=self._threads,
            body=body,
            idle=idle,
            send=send,
            headers=_headers(request, "result"),
        )

    def close(self) -> None:
        """End the worker threads, after the requests in work."""
        self._light.shutdown()
        self._threads.shutdown()

    # --- in a thread ------------------------------------------------------------------------------

    def _greet(self, request: _Request) -> bytes | Refusal:
        """Let a client in and answer its first request, in one go."""
        admitted = self._admit(request)
        if isinstance(admitted, Refusal):
            return admitted
        out = io.BytesIO()
        try:
            self._advertise(request, admitted[0], out)
        except GitStoreError as error:
            return packet(b"ERR " + error.detail.encode("utf-8", "replace"))
        return out.getvalue()

    def _admit(self, request: _Request) -> tuple[Repository, Pusher] | Refusal:
        owner, name = request.owner, request.name
        try:
            repository = self._store.repositories.find(owner, name)
        except StorageFailed:
            return Refusal(503, StorageFailed.__doc__ or "")
        access = self._authenticate(
            request.authorization, owner, name, repository=repository, write=request.write
        )
        missing = f"There is no repository {owner}/{name}, or you may not see it."
        refusal = _refusal(access, missing)
        if refusal is not None:
            return refusal
        return Refusal(404, missing) if repository is None else (repository, access.pusher)

    def _serve(self, request: _Request, body: Body, answer: Answer) -> Refusal | None:
        """Let a client in and do what it asks for, in one go."""
        admitted = self._admit(request)
        if isinstance(admitted, Refusal):
            return admitted
        self._work(request, *admitted, body, answer)
        return None

    def _work(
        self, request: _Request, repository: Repository, pusher: Pusher, body: Body, answer: Answer
    ) -> None:
        try:
            if request.write:
                receiver = Receiver(self._store.pushes, self._limits)
                receiver.serve(repository, pusher, PacketReader(body.read), answer)
            else:
                self._upload(request, repository, PacketReader(body.read), answer)
        except GitStoreError as error:
            if answer.started:
                raise
            answer.take()  # and does not go out
            answer.write(packet(b"ERR " + error.detail.encode("utf-8", "replace")))

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


def _refusal(access: Access, missing: str) -> Refusal | None:
    """What somebody is told who may not; None: they may."""
    match access.verdict:
        case Verdict.ALLOWED:
            return None
        case Verdict.NEEDS_CREDENTIALS:
            return Refusal(401, access.message)
        case Verdict.FORBIDDEN:
            return Refusal(403, access.message)
        case Verdict.NOT_THERE:
            return Refusal(404, access.message or missing)


def _headers(request: _Request, kind: str) -> Headers:
    return [(b"content-type", f"application/x-{request.service}-{kind}".encode()), *_NO_CACHE]


def _parse(scope: Scope) -> _Request | Refusal:
    found = _PATH.fullmatch(scope["path"])
    if found is None:
        return Refusal(404, "This is not the address of a git repository.")
    owner, name, operation = found.groups()
    headers: dict[bytes, bytes] = dict(scope["headers"])
    advertise = operation == "info/refs"
    service = operation
    if advertise:
        query: bytes = scope["query_string"]
        service = _USUAL.get(query) or parse_qs(query.decode("latin-1")).get("service", [""])[0]
    if scope["method"] != ("GET" if advertise else "POST"):
        return Refusal(405, "git uses GET for info/refs and POST for the rest.")
    if service not in (_UPLOAD, _RECEIVE):
        return Refusal(403, "Only the smart HTTP protocol is spoken here: use git 1.6.6 or newer.")
    expected = f"application/x-{service}-request".encode()
    if not advertise and headers.get(b"content-type") != expected:
        return Refusal(415, f"The content type must be {expected.decode()}.")
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding not in (b"identity", b"gzip", b"x-gzip"):
        return Refusal(415, "The content encoding must be gzip or none.")
    authorization = headers.get(b"authorization")
    return _Request(
        owner=owner,
        name=name,
        service=service,
        advertise=advertise,
        version=_version(headers.get(b"git-protocol", b"")),
        gzip=encoding != b"identity",
        small=int(headers.get(b"content-length", BEGINNING_BYTES + 1)) <= BEGINNING_BYTES,
        authorization=None if authorization is None else authorization.decode("latin-1"),
    )


def _version(header: bytes) -> int:
    """The newest protocol version both sides speak."""
    words = [word.strip() for word in header.split(b":")]
    return 2 if b"version=2" in words else 1 if b"version=1" in words else 0
