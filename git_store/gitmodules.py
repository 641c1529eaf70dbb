"""What `.gitmodules` may be and say: the rules of git's own fsck, as `receive.fsckObjects` holds
pushes to.

A clone that brings its submodules along acts on this file, so names that lead out of `.git/modules`
and values that a command would take for an option have run other people's commands. What cannot be
parsed is let through, as git does; what stands before that is checked. treecheck.py finds the
files, quarantine.py has them read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes, urlsplit

from git_store.aliases import Aliases
from git_store.errors import BadPack

BYTES_MAX = 4 << 20  # of one file

_ALIASES = Aliases(".gitmodules", short="gi7eba")
_BLANK = re.compile(r"(?:\s|[#;][^\n]*)*")
_SECTION = re.compile(r'\[([A-Za-z0-9.-]+)(?:[ \t]+"((?:[^"\\\n]|\\[^\n])*)")?\]')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*")
_VALUE = re.compile(
    r'=[ \t]*((?:[^"\\\n#;]|\\[\ntbn"\\]|"(?:[^"\\\n]|\\[\ntbn"\\])*")*)(?:[#;][^\n]*)?(?:\n|\Z)'
)
_PIECE = re.compile(r'\\([\ntbn"\\])|"', re.DOTALL)
_ESCAPED = {"\n": "", "t": "\t", "b": "\b", "n": "\n"}
_RELATIVE = re.compile(r"\.\.?[/\\]")
_UPWARD = re.compile(r"(?:\.[/\\])*\.\.[/\\](?:\.\.?[/\\])*[:/\\]")
_WEB = re.compile(
    r"(?:(?:https?|ftps?)::)?((?:https?|ftps?)://.*)|(?:https?|ftps?)::(.*)", re.DOTALL
)


def is_gitmodules(name: bytes) -> bool:
    """True for names that some system opens as `.gitmodules`."""
    parts = name.split(b"\\")
    ends = (b"\\".join(parts[at:]) for at in range(len(parts)))
    return any(map(_ALIASES.on_windows, ends)) or _ALIASES.on_macos(name)


def check_gitmodules(content: bytes) -> None:
    """Raises BadPack for a name, url, path or update that git refuses."""
    for name, key, value in _settings(content.decode("utf-8", "surrogateescape")):
        if not name or ".." in re.split(r"[/\\]", name):
            raise _refused("name", name)
        bad = (
            (key == "url" and not _is_url(value))
            or (key == "path" and value.startswith("-"))
            or (key == "update" and value.startswith("!"))
        )
        if bad:
            raise _refused(key, value)


def _refused(what: str, value: str) -> BadPack:
    return BadPack(
        f".gitmodules has a submodule with the {what} {value[:200]!r}, which git refuses"
    )


def _settings(text: str) -> Iterator[tuple[str, str, str]]:
    """(submodule, key, value) of each setting of one; up to where it cannot be parsed."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    section: str | None = None
    at = 0
    while (at := _end(_BLANK.match(text, at))) < len(text):
        if (head := _SECTION.match(text, at)) is not None:
            section, at = _submodule(head), head.end()
            continue
        key = _KEY.match(text, at)
        if key is None:
            return
        at, value = key.end(), ""
        if text[at : at + 1] == "=":
            found = _VALUE.match(text, at)
            if found is None:
                return
            at = found.end()
            value = _PIECE.sub(_plain, found[1].rstrip(" \t"))
        elif at < len(text) and text[at] not in "\n#;":
            return
        if section is not None:
            yield section, key[1].lower(), value


def _submodule(head: re.Match[str]) -> str | None:
    """Which submodule a section is of; None for other sections."""
    kind, _, dotted = head[1].lower().partition(".")
    if kind != "submodule" or (head[2] is None and not dotted):
        return None
    quoted = re.sub(r"\\(.)", r"\1", head[2] or "")
    return f"{dotted}.{quoted}" if dotted and head[2] is not None else dotted or quoted


def _plain(piece: re.Match[str]) -> str:
    return "" if piece[1] is None else _ESCAPED.get(piece[1], piece[1])


def _end(blank: re.Match[str] | None) -> int:
    assert blank is not None  # it matches nothing, too
    return blank.end()


def _is_url(url: str) -> bool:
    """False for what git takes for an option, for another host, or for two lines."""
    if url.startswith("-"):
        return False
    if _RELATIVE.match(url) or url.startswith("git://"):
        return b"\n" not in unquote_to_bytes(_bytes(url)) and _UPWARD.match(url) is None
    web = _WEB.fullmatch(url)
    if web is None:
        return True
    try:
        host = urlsplit(web[1] or web[2]).hostname
    except ValueError:
        return False
    return bool(host) and b"\n" not in unquote_to_bytes(_bytes(url))


def _bytes(url: str) -> bytes:
    return url.encode("utf-8", "surrogateescape")
