"""Inbound webhooks: `POST /hooks/{hook_id}`, answered in milliseconds, finished by errands.py.

The router belongs into the API's app, which gives it its errors and its limit on bodies:
`api.include_router(create_webhooks(commands, errands))`.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ci_platform.commands import Commands
from ci_platform.webhooks.errands import Errands

__all__ = ["Errands", "create_webhooks"]


class Receipt(BaseModel):
    status: str  # accepted, ping, repeated, ignored
    detail: str


def create_webhooks(commands: Commands, errands: Errands) -> APIRouter:
    """The router. `errands` is told of each delivery that is to be finished."""
    router = APIRouter(tags=["webhooks"])

    @router.post("/hooks/{hook_id}", status_code=202, openapi_extra={"security": []})
    async def receive(hook_id: str, request: Request, response: Response) -> Receipt:
        """A delivery of a forge: verified, kept, and answered before its work is done."""
        body = await request.body()
        headers = {name.lower(): value for name, value in request.headers.items()}
        receipt = await run_in_threadpool(commands.hooks.receive, hook_id, headers, body)
        if receipt.status == "accepted":
            errands.ring()
        else:
            response.status_code = 200
        return Receipt(status=receipt.status, detail=receipt.detail)

    return router
