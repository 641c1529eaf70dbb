"""The deployment as its owner reaches it: at the machine's console, without a network or a token.

Whoever can read the data directory may do everything, so nothing is asked of them; but it goes
through the API like everything else. Called by the command line, the demo and local runs.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from ci_platform.app import Platform, create_asgi, open_platform, setup_url
from ci_platform.cli.client import Client
from ci_platform.config import Config
from ci_platform.identity import console
from ci_platform.model import Actor
from ci_platform.server.data_lock import running_url


def beside_server(config: Config) -> Config:
    """The config, with the address of the server that uses the same directory now, if any."""
    if config.url is not None:
        return config
    return config.model_copy(update={"url": running_url(config.data)})


@contextmanager
def local_client(config: Config) -> Iterator[Client]:
    """The API of a deployment whose files are ours, acting as their owner."""
    platform = open_platform(beside_server(config))
    try:
        with client_of(platform) as client:
            yield client
    finally:
        platform.close()


def client_of(platform: Platform, *, acting_as: Actor | None = None) -> Client:
    """The API of an open platform, without a network in between; acts as the machine's owner."""
    application = create_asgi(platform, acting_as=acting_as or console(owner_name()))
    return Client.local(httpx.ASGITransport(app=application), platform.config.base_url)


def owner_name() -> str:
    """How whoever uses this machine's console is called in journals."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def setup_link(config: Config) -> str | None:
    """A new one-time link for the first admin; None once there is one."""
    platform = open_platform(beside_server(config))
    try:
        return setup_url(platform)
    finally:
        platform.close()
