"""The composition root: real parts put into all places, and one ASGI application over them.

A sandbox and a runner are started only when something asks for them, so that a command line call
pays for neither. Nothing else makes these parts. The processes around them are in server.
"""

from __future__ import annotations

import hmac
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import obstore.store
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from ci_platform.api import create_api
from ci_platform.api.reading import Reading
from ci_platform.capabilities import (
    FilesHandler,
    Granted,
    KvHandler,
    LocalShelf,
    ObjectShelf,
    SqlDatabases,
    SqlHandler,
    StorageLimits,
)
from ci_platform.commands import Commands, Limits, Parts
from ci_platform.commands.asked import RunsHandler
from ci_platform.config import Config
from ci_platform.endpoint import PREFIX as FETCH
from ci_platform.endpoint import Endpoint
from ci_platform.errors import InvalidRequest, SluiceError
from ci_platform.git_door import PushListener, git_door, record
from ci_platform.identity import Identity, Sessions
from ci_platform.keys import derive, master_secret
from ci_platform.live import Live
from ci_platform.metrics import CONTENT_TYPE, AsgiApp, Metrics, Receive, Scope, Send
from ci_platform.model import (
    Actor,
    Broke,
    Description,
    Outcome,
    Raised,
    SourceFiles,
)
from ci_platform.objects import open_objects
from ci_platform.outgoing import Outgoing
from ci_platform.ports import Clock, Store
from ci_platform.ports.granting import AskHost, WebRequest, WebResponse
from ci_platform.ports.sandbox import Activation, ActivationHost, Sandbox
from ci_platform.queries import Queries
from ci_platform.runner import RunnerLimits, SandboxRunner, UnsandboxedRunner
from ci_platform.runner.artifacts import StoredArtifacts
from ci_platform.runner.by_image import ByImage
from ci_platform.runner.container import ContainerRunner, find_engine
from ci_platform.runner.sandboxed import server_python
from ci_platform.runner.services import Services
from ci_platform.sandbox import SandboxLimits, WasmSandbox
from ci_platform.scheduling import RunLimits
from ci_platform.server.data_lock import make_directory
from ci_platform.shell import MemoLimits, Trees
from ci_platform.source import GitPushes, GitRepositories, GitSource, GitTrees
from ci_platform.store import SqlStore, open_store, sqlite_url
from ci_platform.webhooks import Errands, create_webhooks
from ci_platform.worker.beside import StoreDesk
from git_store import GitHttp, GitStore
from git_store import Limits as GitLimits
from git_store.tables import metadata as git_tables
from web import create_web

FETCH_WALL_FACTOR = 3  # of what a request may take, by its processor time
Made = TypeVar("Made", bound="Closing")


class Closing(Protocol):
    def close(self) -> None: ...


class Lazy(Generic[Made]):
    """Something that is made when it is first used."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: Made | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Make it now, so that its first use does not wait for it."""
        self._get()

    def close(self) -> None:
        """End it. One that is being made is left alone: that may take a build, and it is no use
        to anyone when this process ends."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._made is not None:
                self._made.close()
                self._made = None
        finally:
            self._lock.release()

    def _get(self) -> Made:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


class LazySandbox(Lazy[Sandbox]):
    """A Sandbox that is made when it is first used."""

    def describe(self, source: SourceFiles) -> Description:
        return self._get().describe(source)

    def activate(self, activation: Activation, host: ActivationHost) -> Outcome:
        return self._get().activate(activation, host)


class LazyFetchSandbox(Lazy[WasmSandbox]):
    """The sandbox of repositories' endpoints, which most deployments never need."""

    def fetch(
        self, source: SourceFiles, request: WebRequest, host: AskHost
    ) -> WebResponse | Raised | Broke:
        return self._get().fetch(source, request, host)


@dataclass(frozen=True, slots=True)
class Platform:
    """One deployment, opened by this process."""

    config: Config
    clock: Clock
    store: Store
    git: GitStore
    source: GitSource
    repositories: GitRepositories
    sandbox: LazySandbox
    fetch_sandbox: LazyFetchSandbox
    identity: Identity
    commands: Commands
    queries: Queries
    live: Live
    errands: Errands
    objects: obstore.store.ObjectStore
    databases: SqlDatabases
    capabilities: Granted

    def close(self) -> None:
        self.databases.close()
        self.errands.close()
        self.live.close()
        self.sandbox.close()
        self.fetch_sandbox.close()
        self.git.close()
        self.store.close()


def open_platform(
    config: Config, *, sandboxes: int = 1, clock: Clock | None = None, migrate: bool = False
) -> Platform:
    """Open the deployment's database, objects and keys; `sandboxes` is the most ever started.

    `clock` is the database's own unless a test drives one. `migrate` an older SQLite database: only
    who holds the data directory alone may say so.
    """
    make_directory(config.data)
    secret = master_secret(config.data, config.secret_key)
    objects = _objects(config)
    store = open_store(
        database_url(config),
        clock=clock,
        bell_dir=config.data.resolve() / "bells",
        key=derive(secret, "stored secrets"),
        limits=RunLimits(config.runs_max_per_repository, config.runs_max),
        objects=objects,
        beside=[git_tables],
        migrate=migrate,
        memo_limits=MemoLimits(count=config.cache_entries, size=config.cache_bytes),
    )
    clock = store.clock
    git = _git_store(config, store, objects)
    source = GitSource(
        git, bytes_max=config.source_bytes, allow_private_remotes=config.private_remotes
    )
    repositories = GitRepositories(git, allow_private_remotes=config.private_remotes)
    sandbox = LazySandbox(lambda: _sandbox(config, sandboxes))
    databases = _databases(config, store, objects)
    parts = Parts(
        store=store,
        source=source,
        repositories=repositories,
        outbox=GitPushes(git),
        describe=sandbox.describe,
        forget_storage=databases.remove,
        clock=clock,
        base_url=config.base_url,
        mirrors=store.mirrors,
        notices=store.notices,
        post=Outgoing(config.private_remotes),
        limits=Limits(value_bytes=config.value_bytes, body_bytes=config.body_bytes),
    )
    commands = Commands.over(parts)
    git.listen(PushListener(commands))
    queries = Queries(store, source, repositories, clock, StoredArtifacts(objects), store.mirrors)
    reading = Reading(queries, config.base_url)
    return Platform(
        config=config,
        clock=clock,
        store=store,
        git=git,
        source=source,
        repositories=repositories,
        sandbox=sandbox,
        fetch_sandbox=LazyFetchSandbox(lambda: _fetch_sandbox(config)),
        identity=Identity(store.identity, Sessions(derive(secret, "sessions"), clock), clock),
        commands=commands,
        queries=queries,
        live=Live(store.bell),
        errands=Errands(commands),
        objects=objects,
        databases=databases,
        capabilities=Granted(
            {
                "files": FilesHandler(repositories, source),
                "runs": RunsHandler(commands.runs, reading.status, reading.read),
                "storage.kv": KvHandler(databases),
                "storage.sql": SqlHandler(databases),
            }
        ),
    )


def _databases(config: Config, store: Store, objects: obstore.store.ObjectStore) -> SqlDatabases:
    """The repositories' own databases, `self.env.storage`: files here, or objects if those are
    elsewhere, where several machines reach them."""
    limits = StorageLimits(database_bytes=config.storage_bytes, value_bytes=config.value_bytes)
    if config.objects_url is None:
        return SqlDatabases(LocalShelf(config.data.resolve() / "storage"), limits)
    return SqlDatabases(ObjectShelf(store.shelves, objects), limits)


def database_url(config: Config) -> str:
    """Where the deployment's database is."""
    return config.database_url or sqlite_url(config.data.resolve() / "sluice.db")


def _objects(config: Config) -> obstore.store.ObjectStore:
    if config.objects_url is None:
        return obstore.store.LocalStore(config.data.resolve() / "objects", mkdir=True)
    return open_objects(config.objects_url)


def _fetch_sandbox(config: Config) -> WasmSandbox:
    """Of requests to repositories' endpoints: apart, so that they hold up no push and no run."""
    limits = SandboxLimits(
        processes=config.fetch_sandboxes_max,
        memory_bytes=config.sandbox_memory_bytes,
        cpu_seconds=config.fetch_cpu_seconds,
        wall_seconds=config.fetch_cpu_seconds * FETCH_WALL_FACTOR,
        uses_max=config.sandbox_uses_max,
        rss_bytes=config.sandbox_rss_bytes,
    )
    return WasmSandbox(limits, config.cache)


def _sandbox(config: Config, processes: int) -> Sandbox:
    limits = SandboxLimits(
        processes=processes,
        value_bytes=config.value_bytes,
        memory_bytes=config.sandbox_memory_bytes,
        cpu_seconds=config.sandbox_cpu_seconds,
        uses_max=config.sandbox_uses_max,
        rss_bytes=config.sandbox_rss_bytes,
    )
    return WasmSandbox(limits, config.cache)


def runner_of(
    platform: Platform, trees: Trees | None = None
) -> SandboxRunner | UnsandboxedRunner | ByImage:
    """What runs commands here, on the commits of the git store unless `trees` says otherwise."""
    config = platform.config
    trees = trees or GitTrees(platform.git)
    limits = RunnerLimits(
        memory_bytes=config.command_memory_bytes,
        disk_bytes=config.command_disk_bytes,
        output_bytes=config.command_output_bytes,
        pids=config.command_pids,
        files=config.command_files,
        cpu_seconds=config.command_cpu_seconds,
        open_files=config.command_open_files,
        network_bytes=config.command_network_bytes,
        free_bytes=config.command_free_bytes,
        priority=config.command_priority,
        cache_bytes=config.command_cache_bytes,
        artifacts=config.command_artifacts,
        artifact_bytes=config.command_artifact_bytes,
    )
    if config.command_runner == "unsandboxed":
        return UnsandboxedRunner(
            trees=trees,
            objects=platform.objects,
            work_dir=config.data.resolve() / "work" / "commands",
            limits=limits,
            env=os.environ,
            desk=_desk(platform),
        )
    sandbox = _command_sandbox(platform, trees, limits)
    containers = _containers(platform, trees, limits, sandbox.services)
    return sandbox if containers is None else ByImage(sandbox, containers)


def _command_sandbox(platform: Platform, trees: Trees, limits: RunnerLimits) -> SandboxRunner:
    config = platform.config
    tools = [Path(one) for one in config.command_tools.split(os.pathsep) if one]
    try:
        return SandboxRunner(
            trees=trees,
            objects=platform.objects,
            work_dir=config.data.resolve() / "work" / "commands",
            limits=limits,
            extra_ro=[*tools, *server_python()],
            network=_network(config),
            private_networks=_listed(config.command_private_networks),
            overlay=config.command_overlay,
            desk=_desk(platform),
        )
    except ValueError as error:  # a host or a network that is none
        names = "SLUICE_COMMAND_HOSTS, SLUICE_COMMAND_PRIVATE_NETWORKS"
        raise InvalidRequest(f"{names}: {error}") from error


def _containers(
    platform: Platform, trees: Trees, limits: RunnerLimits, services: Services
) -> ContainerRunner | None:
    """None where no image may be named, or no engine is installed; a command that names one is
    then told so."""
    config = platform.config
    images = _listed(config.command_images)
    work_dir = config.data.resolve() / "work" / "containers"
    engine = find_engine(work_dir) if images else None
    if engine is None:
        return None
    return ContainerRunner(
        trees=trees,
        objects=platform.objects,
        work_dir=work_dir,
        engine=replace(engine, runtime=config.command_image_runtime or None),
        images=images,
        limits=limits,
        network=_network(config),
        private_networks=_listed(config.command_private_networks),
        services=services,
    )


def _network(config: Config) -> bool | Sequence[str]:
    """Whether commands may name hosts to reach, or the only ones they may name."""
    return config.command_network and (_listed(config.command_hosts) or True)


def _desk(platform: Platform) -> StoreDesk:
    return StoreDesk(platform.store, platform.clock, log_bytes=platform.config.log_bytes)


def _listed(text: str) -> list[str]:
    """What a setting lists, separated by commas."""
    return [one.strip() for one in text.split(",") if one.strip()]


def _git_store(config: Config, store: SqlStore, objects: obstore.store.ObjectStore) -> GitStore:
    found = shutil.which(config.git_binary) if config.git_binary else None
    return GitStore(
        store.engine,
        objects,
        config.data / "work" / "git",
        clock=store.clock.now_ms,
        limits=GitLimits(
            push_bytes=config.push_bytes,
            blob_bytes=config.blob_bytes,
            repository_bytes=config.repository_bytes,
        ),
        git=None if found is None else Path(found).resolve(),
        record=record,
    )


# --- the application ------------------------------------------------------------------------------


def create_asgi(platform: Platform, *, acting_as: Actor | None = None) -> Front:
    """Everything under one address: git, API, webhooks, pages, health and metrics.

    `acting_as` is for this process alone: whoever can call the application without a network. A
    server never passes it, and nothing in a request can.
    """
    git = git_door(platform.git, platform.identity)
    api = create_api(
        platform.commands,
        platform.queries,
        platform.identity,
        platform.live,
        body_bytes=platform.config.body_bytes,
        acting_as=acting_as,
        way="api" if acting_as is None else "cli",
    )
    api.include_router(create_webhooks(platform.commands, platform.errands))
    pages = create_web(
        platform.commands,
        platform.queries,
        platform.identity,
        live_streams=platform.live,
        base_url=platform.config.base_url,
    )
    endpoint = Endpoint(
        platform.commands.runs.parts,
        platform.identity,
        platform.fetch_sandbox,
        platform.capabilities,
    )
    return Front(platform, git=git, api=api, pages=pages, endpoint=endpoint)


class Front:
    """Sends each request to the part it is for, by its path."""

    def __init__(
        self,
        platform: Platform,
        *,
        git: GitHttp,
        api: AsgiApp,
        pages: AsgiApp,
        endpoint: AsgiApp,
    ) -> None:
        self._platform = platform
        self._git = git
        self._areas: dict[str, AsgiApp] = {"api": api, "hooks": api, "pages": pages, "git": git}
        self._areas["fetch"] = endpoint
        self._metrics = Metrics(platform.store.runs, platform.clock)
        self._own: dict[str, Callable[[Scope], Response]] = {
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._show_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        own = self._own.get(scope["path"])
        if own is not None:
            answer = await run_in_threadpool(own, scope)
            await answer(scope, receive, send)
            return
        area = self._area(scope["path"])
        await self._metrics.measure(area, self._areas[area], scope, receive, send)

    def close(self) -> None:
        """Let the git requests in work end. The platform stays its owner's."""
        self._git.close()

    def _area(self, path: str) -> str:
        if path.startswith("/api/v1/") or path == "/api/v1":
            return "api"
        if path.startswith(FETCH):
            return "fetch"
        if path.startswith("/hooks/"):
            return "hooks"
        return "git" if GitHttp.handles(path) else "pages"

    def _health(self, scope: Scope) -> Response:
        return PlainTextResponse("ok\n")

    def _ready(self, scope: Scope) -> Response:
        try:
            self._platform.store.runs.next_ready_ms()
        except SluiceError as error:
            return PlainTextResponse(f"{error.detail}\n", status_code=503)
        return PlainTextResponse("ready\n")

    def _show_metrics(self, scope: Scope) -> Response:
        wanted = self._platform.config.metrics_token
        if wanted is not None:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {wanted}".encode()):
                return PlainTextResponse(
                    "a bearer token is needed\n", 401, {"WWW-Authenticate": "Bearer"}
                )
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)


def setup_url(platform: Platform) -> str | None:
    secret = platform.identity.setup_link()
    return None if secret is None else f"{platform.config.base_url}/setup/{secret}"
