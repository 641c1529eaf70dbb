"""What templates do to values: times, durations, commits, log text. Pure.

Owns no wording of pages; escapes whatever it marks safe. Registered by render.py.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from urllib.parse import quote

from markupsafe import Markup, escape

from ci_platform.model import Json, StepKey

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000


def duration(ms: int | None) -> str:
    """Say how long something took in at most two units: `840 ms`, `1m 04s`, `3d 02h`."""
    if ms is None:
        return "–"
    ms = max(0, ms)
    if ms < _SECOND:
        return f"{ms} ms"
    if ms < 10 * _SECOND:
        return f"{ms / _SECOND:.1f}s"
    if ms < _MINUTE:
        return f"{ms // _SECOND}s"
    if ms < _HOUR:
        return f"{ms // _MINUTE}m {ms % _MINUTE // _SECOND:02d}s"
    if ms < _DAY:
        return f"{ms // _HOUR}h {ms % _HOUR // _MINUTE:02d}m"
    return f"{ms // _DAY}d {ms % _DAY // _HOUR:02d}h"


def relative(at_ms: int, now_ms: int) -> str:
    """Say an instant as people do: `just now`, `4 minutes ago`, `in 3 days`."""
    distance = abs(now_ms - at_ms)
    if distance < 10 * _SECOND:
        return "just now"
    for unit_ms, word, below_ms in (
        (_SECOND, "second", _MINUTE),
        (_MINUTE, "minute", _HOUR),
        (_HOUR, "hour", 2 * _DAY),
        (_DAY, "day", 60 * _DAY),
        (30 * _DAY, "month", 730 * _DAY),
        (365 * _DAY, "year", 1 << 62),
    ):
        if distance < below_ms:
            # the past is floored, as ages are; what comes is rounded, so 7 days say 7 days
            count = (distance + (unit_ms // 2 if at_ms > now_ms else 0)) // unit_ms
            text = f"{count} {word}{'' if count == 1 else 's'}"
            return f"in {text}" if at_ms > now_ms else f"{text} ago"
    raise AssertionError(distance)


def period(ms: int) -> str:
    """Say how often something comes back, as what follows "every": `hour`, `90 minutes`."""
    for unit_ms, word in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if ms % unit_ms == 0:
            return word if ms == unit_ms else f"{ms // unit_ms} {word}s"
    return f"{ms / _SECOND:g} seconds"


def iso(ms: int) -> str:
    """Write an instant as ISO 8601 in UTC, to the millisecond."""
    text = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def absolute(ms: int) -> str:
    """Write an instant for people: `2026-11-02 03:51:07 UTC`."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(at_ms: int | None, now_ms: int) -> Markup:
    """Make a `<time>`: relative to people, absolute in its title, exact to machines."""
    if at_ms is None:
        return Markup("–")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        iso(at_ms), absolute(at_ms), relative(at_ms, now_ms)
    )


def short_sha(commit: str | None) -> str:
    return (commit or "")[:8]


def short_ref(ref: str) -> str:
    """`refs/heads/main` -> `main`; other refs stay whole."""
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]


def step_path(key: StepKey | str) -> str:
    """Write a step into a URL as one segment: `/`, `#` and dots in its name lead nowhere."""
    return quote(str(key), safe=":")


def pretty(value: Json) -> str:
    """Indent JSON for reading. The template escapes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)


def compact(value: Json, limit: int = 120) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def count(number: int, word: str) -> str:
    """`1 run`, `2 runs`; thousands separated."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# --- ANSI ----------------------------------------------------------------------------------------

# A whole escape: CSI (kept: only `m`), OSC with either terminator, or any other two-byte one.
# An unfinished one at the end of a line is dropped too, and so are other control characters.
_ESCAPE = re.compile(
    r"\x1b\[([0-?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b\[[0-?]*$"
    r"|\x1b[ -/]+.?|\x1b.?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]"
)
# Marks that reorder text could make a log line say what it does not; shown as their code point.
_REORDER = re.compile("[\u202a-\u202e\u2066-\u2069]")
_STYLES = {1: "bold", 2: "dim", 3: "italic", 4: "underline", 9: "strike"}
_ENDS = {22: ("bold", "dim"), 23: ("italic",), 24: ("underline",), 29: ("strike",)}
_COLOURS = 16
_ANSI_RGB = (
    (0, 0, 0), (170, 0, 0), (0, 170, 0), (170, 85, 0),
    (0, 0, 170), (170, 0, 170), (0, 170, 170), (170, 170, 170),
    (85, 85, 85), (255, 85, 85), (85, 255, 85), (255, 255, 85),
    (85, 85, 255), (255, 85, 255), (85, 255, 255), (255, 255, 255),
)  # fmt: skip
LINE_CHARS_MAX = 20_000  # a longer line is cut on screen; the raw log has all of it


def ansi(text: str) -> Markup:
    """Escape a log line, then turn its colours into classes `fg0`…`fg15`, `bg0`…, `bold`….

    256 and true colours become the nearest of the sixteen, which every theme shows with enough
    contrast. A carriage return rewrites the line, as a progress bar means it to.
    """
    text = text.rstrip("\r").rsplit("\r", 1)[-1]
    cut = len(text) > LINE_CHARS_MAX
    style: dict[str, str] = {}
    out: list[str] = []
    at = 0
    text = text[:LINE_CHARS_MAX]
    for escape_found in _ESCAPE.finditer(text):
        out.append(_piece(text[at : escape_found.start()], style))
        at = escape_found.end()
        if escape_found.group(2) == "m":
            _apply(style, escape_found.group(1))
    out.append(_piece(text[at:], style))
    if cut:
        out.append('<span class="cut">… line cut, see the raw log</span>')
    return Markup("".join(out))


def _piece(text: str, style: dict[str, str]) -> str:
    if not text:
        return ""
    html = str(escape(_REORDER.sub(lambda mark: f"<U+{ord(mark.group()):04X}>", text)))
    return f'<span class="{" ".join(style.values())}">{html}</span>' if style else html


def _apply(style: dict[str, str], parameters: str) -> None:
    """Apply one SGR sequence to the style in force."""
    try:
        codes = [int(code or 0) for code in re.split("[;:]", parameters)]
    except ValueError:  # private parameters such as `?25`: not a colour
        return
    while codes:
        code = codes.pop(0)
        if code == 0:
            style.clear()
        elif code in _STYLES:
            style[_STYLES[code]] = _STYLES[code]
        elif code in _ENDS:
            for name in _ENDS[code]:
                style.pop(name, None)
        elif code in (38, 48):
            colour = _extended(codes)
            if colour is not None:
                style["fg" if code == 38 else "bg"] = f"{'fg' if code == 38 else 'bg'}{colour}"
        elif code in (39, 49):
            style.pop("fg" if code == 39 else "bg", None)
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style["fg"] = f"fg{code - 30 if code < 90 else code - 82}"
        elif 40 <= code <= 47 or 100 <= code <= 107:
            style["bg"] = f"bg{code - 40 if code < 100 else code - 92}"


def _extended(codes: list[int]) -> int | None:
    """Take `5;n` or `2;r;g;b` from codes: the nearest of the sixteen colours."""
    if len(codes) >= 2 and codes[0] == 5:
        number = codes[1]
        del codes[:2]
        return _nearest(_rgb_of(number)) if number >= _COLOURS else max(0, number)
    if len(codes) >= 4 and codes[0] == 2:
        red, green, blue = codes[1:4]
        del codes[:4]
        return _nearest((red, green, blue))
    codes.clear()
    return None


def _rgb_of(number: int) -> tuple[int, int, int]:
    """The colour cube and the grey ramp of 256-colour terminals."""
    if number >= 232:
        grey = 8 + 10 * (min(number, 255) - 232)
        return grey, grey, grey
    number -= 16
    levels = (0, 95, 135, 175, 215, 255)
    return levels[number // 36], levels[number // 6 % 6], levels[number % 6]


def _nearest(rgb: tuple[int, int, int]) -> int:
    def distance(index: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(rgb, _ANSI_RGB[index], strict=True))

    return min(range(_COLOURS), key=distance)
