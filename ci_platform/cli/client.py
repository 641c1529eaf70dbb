"""The API's client for the command line: the same calls over HTTP or in this process.

With a URL it speaks HTTP with a token. Without one the application itself is given as an ASGI app,
so that there is one code path and no command that only works locally. Knows paths and problem
documents, not what to print. Called by main.py, demo.py, local.py and watch.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import httpx

from ci_platform.errors import SluiceError
from ci_platform.model import Json

TIMEOUT_SECONDS = 60.0
PAGE = 100
STEPS_PAGE = 5_000  # of a run


class ClientError(SluiceError):
    """The server refused the request, or could not be reached."""

    def __init__(self, detail: str, *, status: int, problem: Mapping[str, Json]) -> None:
        super().__init__(detail)
        self.status = status  # 0: no answer at all
        self.problem = problem

    @property
    def exit_code(self) -> int:
        """2: asked wrongly, 3: not found or not allowed, 4: the platform failed."""
        if self.status in (401, 403, 404):
            return 3
        return 2 if 400 <= self.status < 500 else 4


class Client:
    """One deployment. Blocking; not for several threads."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._loop = asyncio.Runner()

    @classmethod
    def remote(cls, url: str, token: str | None) -> Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return cls(httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS))

    @classmethod
    def local(cls, transport: httpx.ASGITransport, url: str) -> Client:
        return cls(httpx.AsyncClient(transport=transport, base_url=url, timeout=None))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run(self._http.aclose())
        self._loop.close()

    def get(self, path: str, **query: Json) -> Json:
        return self._send("GET", path, query=query)

    def post(
        self, path: str, body: Json = None, *, seconds: float | None = None, **query: Json
    ) -> Json:
        """`seconds`: how long to wait for an answer, where the usual time is too short."""
        return self._send("POST", path, query=query, body=body, seconds=seconds)

    def put(self, path: str, body: Json) -> Json:
        return self._send("PUT", path, body=body)

    def delete(self, path: str) -> Json:
        return self._send("DELETE", path)

    def download(self, path: str, into: Path, *, bytes_max: int) -> None:
        """Write an answer to a file that is not there yet, piece by piece."""
        self._loop.run(self._download(path, into, bytes_max))

    async def _download(self, path: str, into: Path, bytes_max: int) -> None:
        size = 0
        try:
            async with self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise _refused(answer)
                with into.open("xb") as file:
                    async for piece in answer.aiter_bytes():
                        size += len(piece)
                        if size > bytes_max:
                            detail = f"{path} has more than {bytes_max:,} bytes; that is the limit"
                            raise ClientError(detail, status=0, problem={})
                        file.write(piece)
        except httpx.HTTPError as error:
            raise self._unanswered(error) from error

    def _unanswered(self, error: httpx.HTTPError) -> ClientError:
        detail = f"no answer from {self._http.base_url}: {str(error) or type(error).__name__}"
        return ClientError(detail, status=0, problem={})

    def pages(self, path: str, items: str, *, limit: int, **query: Json) -> Iterator[Json]:
        """Items of a listing, over as many pages as it takes."""
        cursor: str | None = None
        while limit > 0:
            page = self.get(path, cursor=cursor, limit=min(limit, PAGE), **query)
            yield from page[items]
            limit -= len(page[items])
            cursor = page.get("cursor")
            if cursor is None:
                return

    def run(self, run_id: str) -> Json:
        """A run with all of its steps, over as many pages as it takes."""
        path, run = run_path(run_id), None
        while True:
            after = 0 if run is None else run["steps_cursor"]
            page = self.get(path, steps=STEPS_PAGE, steps_after=after)
            if run is not None:
                page["steps"] = [*run["steps"], *page["steps"]]
            run = page
            if run["steps_cursor"] is None:
                return run

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Json] | None = None,
        body: Json = None,
        seconds: float | None = None,
    ) -> Json:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        timeout = self._http.timeout if seconds is None else httpx.Timeout(seconds)
        request = self._http.build_request(method, path, params=given, json=body, timeout=timeout)
        try:
            answer = self._loop.run(self._http.send(request))
        except httpx.HTTPError as error:
            raise self._unanswered(error) from error
        if answer.is_success:
            return answer.json() if answer.content else None
        raise _refused(answer)


def _refused(answer: httpx.Response) -> ClientError:
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    detail = str(problem.get("detail") or problem.get("title") or answer.reason_phrase)
    if problem.get("field"):
        detail = f"{problem['field']}: {detail}"
    return ClientError(detail, status=answer.status_code, problem=problem)


def repo_path(full_name: str) -> str:
    """`/api/v1/repos/OWNER/NAME`."""
    return "/api/v1/repos/" + quote(full_name)


def run_path(run_id: str) -> str:
    return "/api/v1/runs/" + segment(run_id)


def segment(text: str) -> str:
    """Any text as one segment of a path."""
    return quote(text, safe="")
