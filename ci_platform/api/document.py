"""The OpenAPI document: what FastAPI derives, plus how errors look and how to sign in."""

from __future__ import annotations

from fastapi import FastAPI

from ci_platform.api.problems import MEDIA_TYPE
from ci_platform.model import Json

PROBLEM: dict[str, Json] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "urn:sluice:problem:… ; stable"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "a sentence for people"},
        "field": {"type": "string", "description": "the field to blame, if it is one"},
    },
}


def describe_errors(app: FastAPI) -> None:
    """Make the app's document say that every error is a problem document."""
    derive = app.openapi

    def document() -> dict[str, Json]:
        found = derive()
        components = found.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = PROBLEM
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        error = {
            "description": "A problem document (RFC 9457).",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["4XX"] = error
                operation["responses"]["5XX"] = error
        return found

    app.openapi = document  # type: ignore[method-assign]
