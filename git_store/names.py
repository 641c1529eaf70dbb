"""Which names are acceptable: owners, repositories, refs, paths inside a tree."""

from __future__ import annotations

import re

from dulwich.refs import Ref, check_ref_format

from git_store.errors import BadName

HIDDEN = "refs/sluice/"  # refs of the platform: not listed, not fetched, not pushed
KEEP = HIDDEN + "keep/"

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA = re.compile(r"[0-9a-f]{40}")


def is_part(value: str) -> bool:
    """False for what can be no owner's and no repository's name."""
    return _PART.fullmatch(value) is not None


def check_part(value: str, field: str) -> None:
    """Refuse a bad owner or repository name."""
    if not _PART.fullmatch(value):
        raise BadName(
            f"{field} {value[:120]!r} is not acceptable: 1 to 100 letters, digits, '.', '_' or '-',"
            " starting with a letter or digit",
            field=field,
        )
    if ".." in value or value.endswith((".git", ".lock", ".")):
        raise BadName(
            f"{field} {value!r} is not acceptable: no '..', and no '.git', '.lock' or '.' at"
            " the end",
            field=field,
        )


def is_sha(value: str) -> bool:
    return _SHA.fullmatch(value) is not None


def ref_problem(name: str, ref_bytes: int) -> str | None:
    """What is wrong with a full ref name, or None."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > ref_bytes:
        return f"ref name longer than {ref_bytes} bytes"
    if not name.startswith("refs/") or not check_ref_format(Ref(raw)):
        return "funny refname"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "funny refname: not UTF-8"
    return None


def check_branch(branch: str, field: str = "branch", ref_bytes: int = 512) -> str:
    """The full ref of a branch name. Raises BadName."""
    ref = f"refs/heads/{branch}"
    problem = ref_problem(ref, ref_bytes)
    if problem or branch.startswith("-") or branch == "HEAD":
        raise BadName(f"{field} {branch[:120]!r} is not a branch name git accepts", field=field)
    return ref
