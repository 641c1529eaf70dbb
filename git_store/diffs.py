"""What differs between two trees: which files, and as unified text that `git apply` understands.

Comparing lines may be slow for hostile files, so each of them and all together are limited; what is
over is listed without its text. Called through `Files`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from git_store.errors import BadPack, OverLimit
from git_store.limits import Limits
from git_store.objects import Objects
from git_store.packfile import DIRECTORY, GITLINK, TREE, entries

_FORMAT = 0o170000
_DEPTH = 512  # directories inside directories
_CONTEXT = 3  # lines around a change
_SNIFF_BYTES = 8000  # a NUL in these makes a file binary, as in git
_RENAME_PAIRS = 10_000  # of deleted and created files that are compared
_RENAME_PERCENT = 50
_PLAIN = frozenset(range(32, 127)) - {ord('"'), ord("\\")}
_ESCAPES = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r", 34: '"', 92: "\\"}

Side = tuple[int, bytes]  # mode and raw name


@dataclass(frozen=True, slots=True)
class FileDiff:
    status: str  # added, deleted, modified, renamed
    path: str  # of a deleted file: what it was; not UTF-8: surrogate escapes
    old_path: str | None  # of a renamed file
    old_mode: int | None
    new_mode: int | None
    old_sha: str | None
    new_sha: str | None
    binary: bool
    additions: int
    deletions: int
    text: bytes | None  # with its `diff --git` header; None: over a limit


@dataclass(frozen=True, slots=True)
class _Change:
    path: bytes
    old: Side | None
    new: Side | None
    old_path: bytes | None = None
    percent: int = 100  # how alike a renamed file is


def tree_changes(
    objects: Objects, old: bytes | None, new: bytes | None
) -> Iterator[tuple[bytes, Side | None, Side | None]]:
    """Paths of files that differ, with both sides; equal trees are not looked into."""
    yield from _between(objects, b"", old, new)


def _between(
    objects: Objects, parent: bytes, old: bytes | None, new: bytes | None
) -> Iterator[tuple[bytes, Side | None, Side | None]]:
    if parent.count(b"/") > _DEPTH:
        raise OverLimit(f"directories are nested deeper than {_DEPTH}", limit="depth")
    before, after = _sides(objects, old), _sides(objects, new)
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name), after.get(name)
        if one == two:
            continue
        path = parent + name
        if _file(one) or _file(two):
            yield path, _file(one), _file(two)
        if _tree(one) or _tree(two):
            yield from _between(objects, path + b"/", _tree(one), _tree(two))


def _sides(objects: Objects, tree: bytes | None) -> dict[bytes, Side]:
    if tree is None:
        return {}
    kind, content = objects.get(tree)
    if kind != TREE:
        raise BadPack(f"{tree.hex()} should be a tree")
    return {name: (mode, bytes.fromhex(sha.decode())) for name, mode, sha in entries(content)}


def _file(side: Side | None) -> Side | None:
    return None if side is None or side[0] & _FORMAT == DIRECTORY else side


def _tree(side: Side | None) -> bytes | None:
    return None if side is None or side[0] & _FORMAT != DIRECTORY else side[1]


class Differ:
    """One comparison: it counts what it has used of the limits."""

    def __init__(self, objects: Objects, limits: Limits) -> None:
        self._objects = objects
        self._limits = limits
        self._lines = limits.diff_lines
        self._bytes = limits.diff_bytes

    def files(self, old: bytes | None, new: bytes) -> tuple[Sequence[FileDiff], bool]:
        """By path; and whether there are more than `Limits.diff_files`."""
        changes: list[_Change] = []
        for path, before, after in tree_changes(self._objects, old, new):
            if len(changes) > self._limits.diff_files:
                break
            if before and after and before[0] & _FORMAT != after[0] & _FORMAT:
                changes += [_Change(path, before, None), _Change(path, None, after)]
            else:
                changes.append(_Change(path, before, after))
        more = len(changes) > self._limits.diff_files
        found = self._renamed(changes[: self._limits.diff_files])
        return [self._diff(change) for change in sorted(found, key=lambda one: one.path)], more

    # --- renames ----------------------------------------------------------------------------------

    def _renamed(self, changes: Sequence[_Change]) -> list[_Change]:
        """Pair what was deleted with what was created and is the same, or nearly."""
        gone = [one for one in changes if one.new is None]
        came = [one for one in changes if one.old is None]
        pairs: dict[bytes, _Change] = {}  # by the path of the new one
        used: set[bytes] = set()
        for score, source, target in self._alike(gone, came):
            if source.path not in used and target.path not in pairs:
                used.add(source.path)
                pairs[target.path] = replace(
                    target, old=source.old, old_path=source.path, percent=score
                )
        left = [one for one in changes if not (one.new is None and one.path in used)]
        return [pairs.get(one.path, one) if one.old is None else one for one in left]

    def _alike(
        self, gone: Sequence[_Change], came: Sequence[_Change]
    ) -> list[tuple[int, _Change, _Change]]:
        """Pairs that may be renames, the most alike first."""
        compare = len(gone) * len(came) <= _RENAME_PAIRS
        found: list[tuple[int, _Change, _Change]] = []
        seen: dict[bytes, Counter[bytes] | None] = {}
        for source in gone:
            for target in came:
                assert source.old is not None and target.new is not None
                if source.old[0] & _FORMAT != target.new[0] & _FORMAT:
                    continue
                if source.old[1] == target.new[1]:
                    found.append((100, source, target))
                elif compare and source.old[0] & _FORMAT != GITLINK:
                    score = _score(
                        self._counted(source.old[1], seen), self._counted(target.new[1], seen)
                    )
                    if score >= _RENAME_PERCENT:
                        found.append((min(score, 99), source, target))
        return sorted(found, key=lambda one: (-one[0], one[1].path, one[2].path))

    def _counted(
        self, blob: bytes, seen: dict[bytes, Counter[bytes] | None]
    ) -> Counter[bytes] | None:
        if blob not in seen:
            content = self._content((0o100644, blob))
            seen[blob] = None if content is None else Counter(_split(content))
        return seen[blob]

    # --- text -------------------------------------------------------------------------------------

    def _diff(self, change: _Change) -> FileDiff:
        old, new = self._text(change.old), self._text(change.new)
        binary = _is_binary(old) or _is_binary(new)
        hunks: bytes | None = b""
        added = removed = 0
        if change.old and change.new and change.old[1] == change.new[1]:
            binary = False
        elif old is None or new is None:
            hunks = None
        elif not binary:
            hunks, added, removed = self._hunks(_split(old), _split(new))
        text = None
        if hunks is not None:
            text = _header(change, hunks, binary=binary) + hunks
            self._bytes -= len(text)
            text = text if self._bytes >= 0 else None
        return FileDiff(
            status=_status(change),
            path=os.fsdecode(change.path),
            old_path=None if change.old_path is None else os.fsdecode(change.old_path),
            old_mode=None if change.old is None else change.old[0],
            new_mode=None if change.new is None else change.new[0],
            old_sha=None if change.old is None else change.old[1].hex(),
            new_sha=None if change.new is None else change.new[1].hex(),
            binary=binary,
            additions=added,
            deletions=removed,
            text=text,
        )

    def _text(self, side: Side | None) -> bytes | None:
        """A side's content, empty where there is none; None if it is too large."""
        return b"" if side is None else self._content(side)

    def _content(self, side: Side) -> bytes | None:
        mode, name = side
        if mode & _FORMAT == GITLINK:
            return b"Subproject commit %s\n" % name.hex().encode()
        about = self._objects.info(name)
        if about is None or about[1] > self._limits.diff_file_bytes:
            return None
        return self._objects.get(name)[1]

    def _hunks(self, old: Sequence[bytes], new: Sequence[bytes]) -> tuple[bytes | None, int, int]:
        """Unified text, lines added and lines removed; no text if it is over a limit."""
        start, end = _common(old, new)
        kept = slice(max(0, start - _CONTEXT), None)
        count = len(old) + len(new) - 2 * (start + end)
        self._lines -= count
        if count > self._limits.diff_file_lines or self._lines < 0:
            return None, 0, 0
        tail = max(0, end - _CONTEXT)
        before = old[kept][: len(old) - kept.start - tail]
        after = new[kept][: len(new) - kept.start - tail]
        matcher = SequenceMatcher(None, before, after)
        pieces: list[bytes] = []
        added = removed = 0
        for group in matcher.get_grouped_opcodes(_CONTEXT):
            first, last = group[0], group[-1]
            pieces.append(
                b"@@ -%s +%s @@\n"
                % (
                    _range(first[1] + kept.start, last[2] - first[1]),
                    _range(first[3] + kept.start, last[4] - first[3]),
                )
            )
            for tag, one, two, three, four in group:
                if tag == "equal":
                    pieces += [_line(b" ", line) for line in before[one:two]]
                    continue
                pieces += [_line(b"-", line) for line in before[one:two]]
                pieces += [_line(b"+", line) for line in after[three:four]]
                removed += two - one
                added += four - three
        return b"".join(pieces), added, removed


def _score(one: Counter[bytes] | None, two: Counter[bytes] | None) -> int:
    """How much of the larger file is in the other, in percent of its bytes."""
    if not one or not two:
        return 0
    size = max(sum(len(line) * count for line, count in side.items()) for side in (one, two))
    shared = sum(len(line) * count for line, count in (one & two).items())
    return shared * 100 // max(size, 1)


def _common(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[int, int]:
    """How many lines are the same at the start, and at the end."""
    shorter = min(len(old), len(new))
    start = 0
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return start, end


def _split(content: bytes) -> list[bytes]:
    """Lines with their ends; only a line feed ends one."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _line(sign: bytes, line: bytes) -> bytes:
    return sign + line + (b"" if line.endswith(b"\n") else b"\n\\ No newline at end of file\n")


def _range(start: int, length: int) -> bytes:
    begin = start + 1 if length else start
    return b"%d" % begin if length == 1 else b"%d,%d" % (begin, length)


def _is_binary(content: bytes | None) -> bool:
    return content is not None and b"\0" in content[:_SNIFF_BYTES]


def _status(change: _Change) -> str:
    if change.old_path is not None:
        return "renamed"
    if change.old is None:
        return "added"
    return "deleted" if change.new is None else "modified"


def _header(change: _Change, hunks: bytes, *, binary: bool) -> bytes:
    """What git writes before the hunks of a file."""
    before, after = change.old_path or change.path, change.path
    old_name, new_name = _quoted(b"a/" + before), _quoted(b"b/" + after)
    lines = [f"diff --git {old_name} {new_name}"]
    old, new = change.old, change.new
    if old is None and new is not None:
        lines.append(f"new file mode {new[0]:06o}")
    elif new is None and old is not None:
        lines.append(f"deleted file mode {old[0]:06o}")
    elif old is not None and new is not None and old[0] != new[0]:
        lines += [f"old mode {old[0]:06o}", f"new mode {new[0]:06o}"]
    if change.old_path is not None:
        lines.append(f"similarity index {change.percent}%")
        lines += [f"rename from {_quoted(before)}", f"rename to {_quoted(after)}"]
    names = [("0" * 40 if side is None else side[1].hex()) for side in (old, new)]
    if names[0] != names[1]:
        mode = f" {old[0]:06o}" if old is not None and new is not None and old[0] == new[0] else ""
        lines.append(f"index {names[0]}..{names[1]}{mode}")
    shown = ("/dev/null" if old is None else old_name, "/dev/null" if new is None else new_name)
    if binary:
        lines.append(f"Binary files {shown[0]} and {shown[1]} differ")
    elif hunks:
        # A name with a space gets a tab after it, as in git: so that it is seen where it ends.
        ends = ["\t" if " " in name and name[0] != '"' else "" for name in shown]
        lines += [f"--- {shown[0]}{ends[0]}", f"+++ {shown[1]}{ends[1]}"]
    return "".join(f"{line}\n" for line in lines).encode()


def _quoted(path: bytes) -> str:
    """A path as git writes it where it is not plain: in quotes, with octal bytes."""
    if all(byte in _PLAIN for byte in path):
        return path.decode("ascii")
    letters = [
        chr(byte) if byte in _PLAIN else "\\" + _ESCAPES.get(byte, f"{byte:03o}") for byte in path
    ]
    return '"' + "".join(letters) + '"'
