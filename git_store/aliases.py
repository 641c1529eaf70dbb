"""Under which names some system opens a file of git's: as Windows shortens or macOS reads them.

git's own tables, which its fsck goes by. treecheck.py asks.
"""

from __future__ import annotations

import re

from dulwich.index import HFS_IGNORABLE_CHARS


class Aliases:
    """Of one file, whose name begins with `.git`."""

    def __init__(self, name: str, *, short: str) -> None:
        """`short` is what Windows makes of the name when four others begin like it."""
        self._name = name
        first = re.escape(name[1:7].encode())
        numbered = "|".join(
            f"{re.escape(short[:kept])}~[1-9]" + (f"\\d{{{6 - kept}}}" if kept < 6 else "")
            for kept in range(7)
        )
        self._ntfs = re.compile(
            rb"(?:%s|%s~[1-4]|%s)[ .]*(?::.*)?"
            % (re.escape(name.encode()), first, numbered.encode()),
            re.IGNORECASE | re.DOTALL,
        )

    def on_windows(self, name: bytes) -> bool:
        return self._ntfs.fullmatch(name) is not None

    def on_macos(self, name: bytes) -> bool:
        if name.isascii():
            return name.lower() == self._name.encode()
        text = name.decode("utf-8", "replace")
        seen = "".join(each for each in text if ord(each) not in HFS_IGNORABLE_CHARS)
        return seen.lower() == self._name


def may_be_alias(name: bytes) -> bool:
    """False for most names, which are no alias of anything."""
    return name[:1] in b".gG~" or b"\\" in name or not name.isascii()
