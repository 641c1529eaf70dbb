"""Reading pages as a browser would, with the standard library: elements, text, links, forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"br", "hr", "input", "link", "meta", "use", "rect", "circle", "path"})

INLINE = frozenset({"a", "code", "small", "span", "strong", "time"})


@dataclass(slots=True)
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def get(self, name: str) -> str:
        return self.attributes.get(name, "")

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    @property
    def text(self) -> str:
        """All text below, with runs of white space made one."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                apart = "" if child.tag in INLINE else " "
                yield apart
                yield from child._texts()
                yield apart

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Elements below of this tag, with these attributes (`class_`, `data_state` …)."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self.walk()
            if (not tag or element.tag == tag)
            and all(
                value in element.get(name).split()
                if name == "class"
                else element.get(name) == value
                for name, value in wanted.items()
            )
        ]

    def one(self, tag: str = "", **attributes: str) -> Element:
        found = self.all(tag, **attributes)
        assert len(found) == 1, f"{len(found)} of {tag} {attributes} on the page"
        return found[0]


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("#", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self._open[-1].tag == tag, f"<{self._open[-1].tag}> is closed by </{tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


@dataclass(frozen=True, slots=True)
class Form:
    """A form as a browser would send it untouched."""

    action: str
    method: str
    fields: dict[str, str]
    buttons: dict[str, tuple[str, str]]  # what it says -> what it sends


class Page:
    """A parsed page. Parsing fails on elements that are not closed in order."""

    def __init__(self, html: str) -> None:
        builder = _Builder()
        builder.feed(html)
        builder.close()
        assert len(builder._open) == 1, f"<{builder._open[-1].tag}> is not closed"
        self.root = builder.root
        self.html = html

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        return self.root.all(tag, **attributes)

    def one(self, tag: str = "", **attributes: str) -> Element:
        return self.root.one(tag, **attributes)

    @property
    def title(self) -> str:
        return self.one("title").text

    @property
    def heading(self) -> str:
        return self.one("h1").text

    @property
    def text(self) -> str:
        return self.one("main").text

    @property
    def links(self) -> list[str]:
        return [one.get("href") for one in self.all("a") if one.get("href")]

    def form(self, action: str) -> Form:
        """The form with this action, and what it would send."""
        found = [one for one in self.all("form") if one.get("action") == action]
        assert found, f"no form for {action}: {[one.get('action') for one in self.all('form')]}"
        form = found[0]
        fields: dict[str, str] = {}
        for element in form.walk():
            name = element.get("name")
            if element.tag == "input" and name:
                kind = element.get("type")
                if kind != "checkbox" or "checked" in element.attributes:
                    fields[name] = element.get("value")
            elif element.tag == "textarea" and name:
                fields[name] = element.text
            elif element.tag == "select" and name:
                options = element.all("option")
                chosen = [one for one in options if "selected" in one.attributes] or options
                if chosen:
                    fields[name] = chosen[0].attributes.get("value", chosen[0].text)
        buttons = {one.text: (one.get("name"), one.get("value")) for one in form.all("button")}
        return Form(action, form.get("method") or "get", fields, buttons)
