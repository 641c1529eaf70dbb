"""The only place where errors become responses: `application/problem+json` (RFC 9457).

Every error of the API and the webhooks goes through here, also those of the framework: bad JSON, a
wrong method, an unknown path, a bug of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ci_platform.errors import (
    InternalError,
    InvalidRequest,
    NotSignedIn,
    PipelineError,
    RequestError,
    SandboxUnavailable,
    SluiceError,
    StoreUnavailable,
)
from ci_platform.model import Json

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "2"  # when the database is away for a moment
DETAIL_MAX = 2000  # characters; an error may quote what was sent

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Make an app answer its errors as problem documents."""
    app.add_exception_handler(SluiceError, _sluice_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def problem(
    status: int, kind: str, detail: str, field: str | None = None, **headers: str
) -> JSONResponse:
    """A problem document. `kind` is a stable word to match on, `detail` a sentence for people."""
    body: dict[str, Json] = {
        "type": f"urn:sluice:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail[:DETAIL_MAX].encode(errors="replace").decode(),
    }
    if field is not None:
        body["field"] = field[:256].encode(errors="replace").decode()
    # Said here too: a bug is answered outside of all middleware.
    named = {"Cache-Control": "no-store"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(body, status, named, MEDIA_TYPE)


def of_error(error: SluiceError) -> JSONResponse:
    """The response for an error of ours."""
    kind = _kind(type(error).__name__)
    if isinstance(error, NotSignedIn):
        return problem(error.status, kind, error.detail, WWW_Authenticate="Bearer")
    if isinstance(error, InvalidRequest):
        return problem(error.status, kind, error.detail, error.field)
    if isinstance(error, RequestError):
        return problem(error.status, kind, error.detail)
    if isinstance(error, PipelineError):
        return problem(422, kind, error.detail)
    log.error("request failed: %s", error.detail, exc_info=error)
    if isinstance(error, SandboxUnavailable):
        return problem(503, kind, error.detail)
    if isinstance(error, StoreUnavailable):  # the detail names hosts and files: it is logged
        public = f"{type(error).__doc__} Try again; a change may have been made."
        return problem(503, kind, public, Retry_After=RETRY_SECONDS)
    return problem(500, kind, InternalError.__doc__ or "")


def _kind(name: str) -> str:
    """RunNotFound -> run-not-found."""
    return "".join(f"-{char.lower()}" if char.isupper() else char for char in name).lstrip("-")


async def _sluice_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SluiceError)
    return of_error(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = _field(first["loc"])
    match first["type"]:
        case "json_invalid":
            reason = str(first.get("ctx", {}).get("error", "")).lower()
            return problem(400, "invalid-request", f"the body is not JSON: {reason}")
        case "extra_forbidden":
            return problem(400, "invalid-request", f"there is no field {field}", field)
        case "missing" if first["loc"] == ("body",):
            detail = "a JSON object is needed as the body"
            return problem(400, "invalid-request", detail)
        case "model_attributes_type" | "dict_type" if first["loc"] == ("body",):
            detail = "the body must be a JSON object, sent as application/json"
            return problem(400, "invalid-request", detail)
    detail = f"{field or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return problem(400, "invalid-request", detail, field)


def _field(where: Sequence[int | str]) -> str | None:
    """`changes.0.path` of ("body", "changes", 0, "path")."""
    return ".".join(str(part) for part in where[1:]) or None


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _kind(HTTPStatus(error.status_code).phrase.title().replace(" ", ""))
    found = problem(error.status_code, kind, str(error.detail))
    found.headers.update(error.headers or {})
    return found


async def _bug(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "internal-error", InternalError.__doc__ or "")
