"""What may be removed: runs past their retention, and what no run refers to any more.

Answers questions; `runs.py` deletes. Notes the workspace layers of each journal as it is written,
so that a sweep asks an index instead of reading every journal.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.model import Entry, EntryKind, Json, RepositoryId, RunId, StepKind
from ci_platform.ports.housekeeping import OldRun, OldRuns
from ci_platform.store.codec import commit_key
from ci_platform.store.packing import unpack
from ci_platform.store.tables import ENTRIES, MEMOS, RUN_LAYERS, RUNS

NAMES_PER_QUERY = 500  # in one IN (...)

_WINDOW = (
    select(
        RUNS.c.n,
        RUNS.c.id,
        RUNS.c.repository_id,
        RUNS.c.pipeline,
        RUNS.c.number,
        RUNS.c.commit,
        RUNS.c.created_ms,
        RUNS.c.ended_ms,
        ENTRIES.c.data,
    )
    .join(ENTRIES, and_(ENTRIES.c.run_n == RUNS.c.n, ENTRIES.c.seq == 1))
    .where(RUNS.c.n > bindparam("after"))
    .order_by(RUNS.c.n)
    .limit(bindparam("count"))
)
_NEWEST_KEPT = (
    select(RUNS.c.number)
    .where(
        RUNS.c.repository_id == bindparam("repository_id"),
        RUNS.c.pipeline == bindparam("pipeline"),
        RUNS.c.ended_ms.is_not(None),
    )
    .order_by(RUNS.c.number.desc())
    .limit(1)
    .offset(bindparam("keep"))
)
_COMMITS = (
    select(RUNS.c.commit)
    .where(
        RUNS.c.commit_key.in_(bindparam("keys", expanding=True)),
        RUNS.c.commit.in_(bindparam("commits", expanding=True)),
        # Not the bare column: SQLite would think its index the better one.
        RUNS.c.repository_id.concat("") == bindparam("repository_id"),
    )
    .distinct()
)
_LAYERS = (
    select(RUN_LAYERS.c.digest)
    .where(RUN_LAYERS.c.digest.in_(bindparam("digests", expanding=True)))
    .distinct()
)
_CACHES = (
    select(MEMOS.c.digest)
    .where(MEMOS.c.digest.in_(bindparam("digests", expanding=True)))
    .distinct()
)
_COMMAND = StepKind.SH.value
_REFERRING = frozenset({EntryKind.STEP_PASSED.value, EntryKind.STEP_FAILED.value})
_NOTE_LAYER = {
    "sqlite": sqlite.insert(RUN_LAYERS).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(RUN_LAYERS).on_conflict_do_nothing(),
}


def old(connection: Connection, *, before_ms: int, keep: int, after: int, limit: int) -> OldRuns:
    """Walks runs in the order of their creation, so that no index has to be kept for it."""
    rows = connection.execute(_WINDOW, {"after": after, "count": limit}).all()
    found: list[OldRun] = []
    newest_gone: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.created_ms >= before_ms:
            return OldRuns(found, 0)  # those behind it are younger still
        if row.ended_ms is None or row.ended_ms >= before_ms:
            continue
        pipeline = (row.repository_id, row.pipeline)
        if pipeline not in newest_gone:
            asked = {"repository_id": pipeline[0], "pipeline": pipeline[1], "keep": keep}
            newest_gone[pipeline] = connection.execute(_NEWEST_KEPT, asked).scalar() or 0
        if row.number <= newest_gone[pipeline]:
            commits = {row.commit, str(unpack(row.data)["commit"])}
            found.append(OldRun(RunId(row.id), RepositoryId(row.repository_id), sorted(commits)))
    return OldRuns(found, rows[-1].n if len(rows) == limit else 0)


def commits_used(
    repository_id: RepositoryId, commits: Sequence[str], connection: Connection
) -> set[str]:
    keys = [commit_key(repository_id, commit) for commit in commits]
    asked = {"repository_id": repository_id, "commits": list(commits), "keys": keys}
    return set(connection.execute(_COMMITS, asked).scalars())


def layers_used(digests: Sequence[str], connection: Connection) -> set[str]:
    used: set[str] = set()
    for start in range(0, len(digests), NAMES_PER_QUERY):
        part = {"digests": list(digests[start : start + NAMES_PER_QUERY])}
        used.update(connection.execute(_LAYERS, part).scalars())
        used.update(connection.execute(_CACHES, part).scalars())
    return used


def note_layers(connection: Connection, rows: Sequence[dict[str, object]]) -> None:
    """Note the layers and objects that entries, about to be committed, refer to."""
    found = []
    for row in rows:
        data = row["data"]
        if row["kind"] not in _REFERRING or row["step_kind"] != _COMMAND:
            continue
        if isinstance(data, bytes):
            digests = _digests(unpack(data))
            found += [{"digest": digest, "run_n": row["run_n"]} for digest in digests]
    if found:
        connection.execute(_NOTE_LAYER[connection.dialect.name], found)


def note_objects(connection: Connection, run_n: int, digests: Sequence[str]) -> None:
    """Note what a run refers to beside its journal."""
    rows = [{"digest": digest, "run_n": run_n} for digest in digests]
    connection.execute(_NOTE_LAYER[connection.dialect.name], rows)


def layers_of(entry: Entry) -> set[str]:
    """The layers and objects that an entry refers to."""
    if entry.kind.value not in _REFERRING or entry.key is None:
        return set()
    return _digests(entry.data) if entry.key.kind is StepKind.SH else set()


def _digests(data: Json) -> set[str]:
    """Of a command's result: its layer, and its artifacts, also those of a failure. Directories it
    leaves for later runs belong to their memos, so that these may go before the run does."""
    value = data.get("value") or (data.get("error") or {}).get("data") or {}
    if not isinstance(value, dict):
        return set()
    found = [value.get("layer")]
    found += [one.get("sha256") for one in value.get("artifacts") or ()]
    return {digest for digest in found if isinstance(digest, str)}
