"""Turns page contexts into HTML: the Jinja environment, the frame around every page, static files.

Knows no page by itself and no store. Everything is escaped; only our own macros, `filters.ansi`
and the icons of `static/icons.svg` are markup.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ci_platform.model import Actor
from web import filters

HERE = Path(__file__).parent
STATIC = HERE / "static"
# Of the favicon, which no style sheet reaches; the same words and hues as in app.css.
ICON_COLOURS = {
    "sluice": "#0b7285", "queued": "#6b7880", "running": "#2f7de1", "waiting": "#c27c0e",
    "paused": "#c27c0e", "passed": "#2a9d4a", "failed": "#d8373d", "errored": "#8b4fd0",
    "cancelled": "#6b7880",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """What every page is told besides its own context."""

    actor: Actor | None  # None: nobody is signed in
    csrf: str
    now_ms: int
    may_read_system: bool = False
    banners: Sequence[str] = ()


class Renderer:
    """One per application; safe to use from many threads."""

    def __init__(self) -> None:
        self._versions = {path.name: _version(path) for path in STATIC.iterdir()}
        self.sprite = Markup((STATIC / "icons.svg").read_text(encoding="utf-8"))
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for function in (
            filters.absolute, filters.ago, filters.ansi, filters.compact, filters.count,
            filters.duration, filters.first_line, filters.iso, filters.pretty,
            filters.short_ref, filters.short_sha, filters.step_path,
        ):  # fmt: skip
            self._environment.filters[function.__name__] = function
        self._environment.globals["static"] = self.static
        self._environment.globals["sprite"] = self.sprite

    def static(self, name: str) -> str:
        """Address a static file by its content, so that browsers may keep it for good."""
        return f"/static/{name}?v={self._versions[name]}"

    def page(self, template: str, page: object, frame: Frame) -> str:
        return self._environment.get_template(template).render(page=page, frame=frame)

    def part(self, macro: str, frame: Frame, *arguments: object) -> str:
        """Render one macro of _partials.html, for the event streams."""
        template = self._environment.get_template("_partials.html")
        module = template.make_module({"frame": frame})
        return str(getattr(module, macro)(*arguments))

    def icon(self, name: str) -> str | None:
        """One icon as a file of its own, for the favicon; None if there is none of this name."""
        colour = ICON_COLOURS.get(name)
        start = self.sprite.find(f'id="icon-{name}"')
        if colour is None or start < 0:
            return None
        body = self.sprite[
            self.sprite.index(">", start) + 1 : self.sprite.index("</symbol>", start)
        ]
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" '
            f'color="{colour}">{body}</svg>'
        )


def _version(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
