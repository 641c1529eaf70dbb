"""Opening the deployment's object store by its address: a directory, S3, GCS or Azure.

Credentials and endpoints come from the environment, by the names their own tools use. One that
fails is asked a few times more, then its caller is told. Called by app.py.
"""

from __future__ import annotations

from datetime import timedelta

import obstore.store
from obstore.exceptions import BaseError

from ci_platform.errors import InvalidRequest

RETRIES_MAX = 5  # of one request that fails in a way that may pass
RETRY_SECONDS = 15  # from the first try on; whoever pushes or reads waits meanwhile
CONNECT_SECONDS = 5
REQUEST_SECONDS = 300  # of one request with its answer, which may be a whole large object
_LOCAL = ("file:", "memory:")


def open_objects(url: str) -> obstore.store.ObjectStore:
    """Raises InvalidRequest for an address that is none."""
    try:
        if url.startswith(_LOCAL):
            return obstore.store.from_url(url)
        return obstore.store.from_url(
            url,
            client_options={
                "allow_http": True,  # where the operator's own endpoint says so
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            retry_config={
                "max_retries": RETRIES_MAX,
                "retry_timeout": timedelta(seconds=RETRY_SECONDS),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
        )
    except (ValueError, BaseError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidRequest(f"SLUICE_OBJECTS_URL cannot be used: {reason}") from error
