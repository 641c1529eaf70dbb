"""One frozen Config. Read from `SLUICE_…` variables and the command line, nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ci_platform.errors import InvalidRequest
from ci_platform.model import Json

MIB = 1 << 20
PREFIX = "SLUICE_"
SECRETS = frozenset({"secret_key", "metrics_token"})  # never shown
MASK = "***"
_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")  # in a URL


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluice"


class Config(BaseSettings):
    """Every setting, with its default, its unit in its name, and what it is for."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    data: Path = Path(".sluice")  # the deployment's directory: database, objects, keys
    cache: Path = Field(default_factory=_cache_dir)  # the built sandbox guest; safe to delete
    database_url: str | None = None  # postgresql://… ; none: DATA/sluice.db (SQLite)
    objects_url: str | None = None  # s3://…, gs://…, az://… ; none: DATA/objects
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)  # 0: a free one
    url: str | None = None  # the address people use, if not http://HOST:PORT
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=0, le=256)  # processes
    drain_seconds: float = Field(default=30.0, ge=0)  # from SIGTERM to SIGKILL
    secret_key: str | None = None  # encrypts secrets, signs sessions; none: DATA/secret.key
    metrics_token: str | None = None  # bearer token of /metrics; none: open to all who reach it
    log_json: bool = False  # True: the server's own log as JSON lines

    lease_seconds: int = 30  # a worker silent for so long loses its runs
    poll_seconds: float = 1.0  # the slow net below the bell
    activations_max: int = 10  # runs of one worker in a sandbox; 3 in 4 of one repository
    sandboxes_max: int = 5  # sandbox processes of one worker; 3 in 4 of one repository
    operations_max: int = Field(default=4, ge=1, le=256)  # commands one worker runs at once
    labels: str = ""  # what this machine's workers have, for commands that ask for it: gpu,arm64
    cache_bytes: int = 10_240 * MIB  # memoised results and cache directories of one repository
    cache_entries: int = Field(default=1_000, ge=1)  # likewise; what was used longest ago goes

    runs_max: int = Field(default=0, ge=0)  # executing at once, of all repositories; 0: any number
    runs_max_per_repository: int = Field(default=0, ge=0)  # likewise of each; 0: any number

    sandbox_memory_bytes: int = 256 * MIB
    sandbox_cpu_seconds: float = 30.0  # per activation
    sandbox_uses_max: int = 1000  # activations until a sandbox process is replaced
    sandbox_rss_bytes: int = 512 * MIB  # resident size at which it is replaced earlier
    source_bytes: int = 64 * MIB  # the .ci files of one commit
    value_bytes: int = MIB  # params, event payload, step result
    steps_max: int = 10_000  # per run
    log_bytes: int = 1024 * MIB  # per step
    push_bytes: int = 2048 * MIB
    blob_bytes: int = 1024 * MIB
    repository_bytes: int = 10 * 1024 * MIB  # the quota of one repository
    git_binary: str = "git"  # large pushes and fetches; empty or missing: done without
    fetch_sandboxes_max: int = Field(default=3, ge=1, le=64)  # of repositories' endpoints
    fetch_cpu_seconds: float = Field(default=10.0, gt=0, le=60)  # per request to one
    storage_bytes: int = Field(
        default=64 * MIB, ge=65_536
    )  # env.storage of a repository, each part
    body_bytes: int = 25 * MIB  # of an API or webhook request
    private_remotes: bool = False  # True: webhooks may fetch from this machine and its networks

    command_memory_bytes: int = 4096 * MIB
    command_disk_bytes: int = 4096 * MIB  # growth of the workspace in one command
    command_output_bytes: int = 1024 * MIB
    command_pids: int = 1024
    command_files: int = 500_000  # in its workspace
    command_cpu_seconds: int = 14_400  # of all its processes together
    command_open_files: int = 4096  # of one process
    command_network_bytes: int = 10 * 1024 * MIB  # through the proxy, both ways
    command_free_bytes: int = 512 * MIB  # with less on its disk, a worker starts no command
    command_priority: Literal["idle", "low", "normal"] = "idle"  # idle: what nobody else wants
    command_cache_bytes: int = 2048 * MIB  # of one directory of cache_dirs
    command_artifacts: int = 1000  # files one command keeps for people
    command_artifact_bytes: int = 1024 * MIB  # all of them together
    command_network: bool = False  # True: commands may name hosts they want to reach
    command_hosts: str = ""  # the only hosts they may name: pypi.org,*.npmjs.org; none: any
    command_private_networks: str = ""  # inner networks such hosts may be in: 10.1.0.0/16,…
    command_tools: str = ""  # directories commands may read, as in PATH, beside the server's Python
    command_images: str = ""  # images commands may name: docker.io/library/python:*; none: none
    command_image_runtime: str = ""  # of podman or docker: crun, runc, runsc; none: its own choice
    command_overlay: bool = True  # False: checkouts are copies, in which directories can be renamed
    command_runner: str = "sandbox"  # sandbox | unsandboxed (this machine's owner only)

    retention_days: int = Field(default=30, ge=1, le=36_500)  # of finished runs
    kept_runs: int = Field(default=50, ge=0)  # finished ones of each pipeline that stay anyway
    hibernate: str = "auto"  # testing: "always" drops the sandbox at every await

    @property
    def base_url(self) -> str:
        """The address people use, without a slash at the end."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")

    def shown(self) -> dict[str, Json]:
        """Effective values for people, secrets masked."""
        values: dict[str, Json] = self.model_dump(mode="json")
        for name, value in values.items():
            if name in SECRETS and value is not None:
                values[name] = MASK
            elif name.endswith("_url") and value is not None:
                values[name] = _PASSWORD.sub(MASK, value)
        return values


def read_config(**given: Json) -> Config:
    """What is given, else the environment, else the default. Raises InvalidRequest."""
    try:
        return Config(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{PREFIX}{name.upper()}: {first['msg']}") from error
