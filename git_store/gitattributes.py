"""What `.gitattributes` may be: the bounds of git's own fsck.

git reads the file for every path it looks at, and has overflown on long lines and on large files.
treecheck.py finds the files, quarantine.py has them read.
"""

from __future__ import annotations

from collections.abc import Iterable

from git_store.aliases import Aliases
from git_store.errors import BadPack

BYTES_MAX = 100 << 20  # of one file
LINE_MAX = 2048  # bytes, its end not counted; git takes none of just so many
_ALIASES = Aliases(".gitattributes", short="gi7d29")


def is_gitattributes(name: bytes) -> bool:
    """True for names that some system opens as `.gitattributes`."""
    return _ALIASES.on_windows(name) or _ALIASES.on_macos(name)


def check_gitattributes(slices: Iterable[bytes]) -> None:
    """Raises BadPack for lines longer than git reads. It reads up to a NUL."""
    length = 0
    for piece in slices:
        text, ended, _ = piece.partition(b"\0")
        lines = text.split(b"\n")
        lengths = [length + len(lines[0]), *map(len, lines[1:])]
        if max(lengths) >= LINE_MAX:
            raise BadPack(f"a .gitattributes has a line of {LINE_MAX} bytes or more")
        length = lengths[-1]
        if ended:
            return
