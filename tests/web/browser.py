"""A person's browser, as far as tests need one: it keeps cookies and sends forms untouched."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import httpx
from starlette.types import ASGIApp

from tests.web.html import Form, Page

PASSWORD = "correct horse"


@dataclass(slots=True)
class Answer:
    """What came back."""

    response: httpx.Response

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def location(self) -> str:
        return str(self.response.headers.get("location", ""))

    @property
    def page(self) -> Page:
        assert self.response.headers["content-type"].startswith("text/html"), self.response
        return Page(self.response.text)


class Browser:
    """One person's browser. Redirects are not followed: tests look at them."""

    def __init__(self, app: ASGIApp) -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://ci.example")

    async def __aenter__(self) -> Browser:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.aclose()

    async def get(self, path: str, **headers: str) -> Answer:
        return Answer(await self.client.get(path, headers=headers))

    async def post(self, path: str, fields: dict[str, str]) -> Answer:
        return Answer(await self.client.post(path, data=fields))

    async def send(self, form: Form, button: str = "", **fields: str) -> Answer:
        """Press a button of a form, with some fields filled in."""
        sent = form.fields | fields
        if button:
            name, value = form.buttons[button]
            sent |= {name: value} if name else {}
        return await self.post(form.action, sent)

    async def sign_in(self, name: str = "ana", password: str = PASSWORD) -> Answer:
        form = (await self.get("/sign-in")).page.form("/sign-in")
        return await self.send(form, name=name, password=password)
