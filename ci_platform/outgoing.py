"""HTTP to addresses that users name: only public ones, unless the deployment allows its own.

The checks are those of the git store's remotes. Given to commands by app.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import urllib3

from ci_platform.errors import InvalidRequest
from ci_platform.ports.telling import Posted
from git_store import GitStoreError
from git_store.remote_http import Allowance, GuardedPools, parse_url

ANSWER_BYTES = 2000  # kept of an answer
SECONDS = 20.0  # one request, start to end
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """telling.Post."""

    allow_private: bool = False

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Posted:
        try:
            address = parse_url(url, allow_private=self.allow_private)
            if address.scheme == "file":
                raise InvalidRequest("a file is no address to send to", field="url")
            allowance = Allowance(ANSWER_BYTES, SECONDS)
            with closing(GuardedPools(address, allowance)) as pools:
                answer = pools.urlopen(
                    "POST",
                    url,
                    redirect=False,
                    body=body,
                    headers=dict(headers),
                    preload_content=False,
                    retries=False,
                    timeout=_TIMEOUT,
                )
                text = answer.read(ANSWER_BYTES)
        except (GitStoreError, urllib3.exceptions.HTTPError, OSError) as error:
            detail = getattr(error, "detail", None) or f"{type(error).__name__}: {error}"
            raise InvalidRequest(f"no answer: {detail}", field="url") from error
        return Posted(answer.status, text.decode("utf-8", "replace"))
