"""Log lines, in compressed chunks. Reads are bounded in lines and in bytes.

How much a step may write is its runner's business; here a line and a batch have limits, so that
one chunk can always be held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from obstore.store import ObjectStore
from sqlalchemy import Connection, Select, and_, bindparam, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.errors import InvalidRequest, LeaseLost, RunNotFound, SluiceError, TooLarge
from ci_platform.model import Json, LogLine, OperationState, RunId
from ci_platform.ports.logs import Held
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.log_chunks import Chunk, chunks, unpacked
from ci_platform.store.sealed_logs import SealedLogs
from ci_platform.store.tables import LOG_CHUNKS, LOGS, OPERATIONS, RUNS
from ci_platform.store.unsealed import unsealed
from ci_platform.store.writer import GroupCommit

LINES_MAX = 10_000  # of one append or one read
LINE_CHARACTERS_MAX = 1 << 20
READ_BYTES_MAX = 8 << 20  # before compression, of one read; at least one chunk is returned

_RUN = select(RUNS.c.n).where(RUNS.c.id == bindparam("run_id")).scalar_subquery()
# Their rows before those of their logs, as whoever deletes a run has them.
_NUMBERS = (
    select(RUNS.c.id, RUNS.c.n)
    .where(RUNS.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(RUNS.c.n)
    .with_for_update(read=True, key_share=True)
)
_LAST = select(LOGS.c.last).where(LOGS.c.run_n == _RUN, LOGS.c.step == bindparam("step"))
_STEPS = select(LOGS.c.step, LOGS.c.last).where(LOGS.c.run_n == _RUN).order_by(LOGS.c.step)
_OF_LOG = and_(LOG_CHUNKS.c.run_n == _RUN, LOG_CHUNKS.c.step == bindparam("step"))
_INDEX = select(LOG_CHUNKS.c.first, LOG_CHUNKS.c.last, LOG_CHUNKS.c.size).where(_OF_LOG)
_AFTER = (
    _INDEX.where(LOG_CHUNKS.c.last > bindparam("after"))
    .order_by(LOG_CHUNKS.c.first)
    .limit(bindparam("count"))
)
_TAIL = _INDEX.order_by(LOG_CHUNKS.c.first.desc()).limit(bindparam("count"))
_LINES = (
    select(LOG_CHUNKS.c.lines, LOG_CHUNKS.c.size)
    .where(_OF_LOG, LOG_CHUNKS.c.first.between(bindparam("lowest"), bindparam("highest")))
    .order_by(LOG_CHUNKS.c.first)
)
_ADD_CHUNKS = LOG_CHUNKS.insert()
_MOVE_LOG = (
    LOGS.update()
    .where(LOGS.c.run_n == bindparam("of_run"), LOGS.c.step == bindparam("of_step"))
    .values(last=bindparam("to"), hot=LOGS.c.hot + bindparam("more"))
)
_HOLDERS = select(OPERATIONS.c.id, OPERATIONS.c.fence).where(
    OPERATIONS.c.id.in_(bindparam("ids", expanding=True)),
    OPERATIONS.c.state == OperationState.RUNNING.value,
)


@dataclass(frozen=True, slots=True)
class _Lines:
    run_id: RunId
    step: str
    lines: Sequence[LogLine]
    packed: Sequence[Chunk]  # the same, done before anybody else has to wait for it
    held: Held | None
    shared: bool


class SqlLogStore:
    def __init__(
        self, database: Database, ring: Callable[[], None], objects: ObjectStore | None = None
    ) -> None:
        self._database = database
        self._sealed = SealedLogs(database, objects)
        # What a power cut takes of a log was written by a command that it ends, too; and the entry
        # that ends a step is durable, and with it all that was written before.
        self._appends = GroupCommit(database, _append, committed=lambda _: ring(), durable=False)

    def append(
        self,
        run_id: RunId,
        step: str,
        lines: Sequence[LogLine],
        *,
        held: Held | None = None,
        shared: bool = False,
    ) -> None:
        if not lines:
            return
        plain(step, "step")
        check_lines(lines)
        size = sum(len(line.text) for line in lines)
        one = _Lines(run_id, step, lines, list(chunks(lines)), held, shared)
        self._appends.submit(one, size=size)

    def read(self, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
        """The next lines; fewer than `limit` when they are long, none only at the end."""
        check_limit(limit)
        found = self._rows(run_id, step, after=after, limit=limit)
        if found and found[0].number == after + 1:
            return found
        # In an object, or gone into one since. Asked in this order, lines are in one of the two.
        sealed = self._sealed.find(run_id, step)
        if sealed is not None and after < sealed.last:
            return self._sealed.read(sealed, after=after, limit=limit)
        return found

    def tail(self, run_id: RunId, step: str, *, limit: int = 1000) -> list[LogLine]:
        """The last lines, in order; fewer than `limit` when they are long."""
        check_limit(limit)
        asked = {"run_id": run_id, "step": step, "count": limit}
        found = self._database.read(lambda connection: _read(connection, _TAIL, asked))[-limit:]
        if len(found) == limit or (found and found[0].number == 1):
            return found
        sealed = self._sealed.find(run_id, step)
        if sealed is None or (found and found[0].number > sealed.last + 1):
            return found
        first = found[0].number if found else sealed.last + 1
        older = self._sealed.tail(sealed, limit=limit)
        return [*(line for line in older if line.number < first), *found][-limit:]

    def seal(self, run_id: RunId, step: str) -> bool:
        def rows(after: int) -> Sequence[LogLine]:
            return self._rows(run_id, step, after=after, limit=LINES_MAX)

        return self._sealed.seal(run_id, step, rows)

    def _rows(self, run_id: RunId, step: str, *, after: int, limit: int) -> list[LogLine]:
        asked = {"run_id": run_id, "step": step, "after": after, "count": limit}
        found = self._database.read(lambda connection: _read(connection, _AFTER, asked))
        return [line for line in found if line.number > after][:limit]

    def unsealed(self, *, limit: int = 100) -> Sequence[tuple[RunId, str]]:
        return self._database.read(lambda connection: unsealed(connection, limit))

    def last(self, run_id: RunId, step: str) -> int:
        asked = {"run_id": run_id, "step": step}
        found = self._database.read(lambda connection: connection.execute(_LAST, asked).scalar())
        return found or 0

    def steps(self, run_id: RunId) -> Mapping[str, int]:
        asked = {"run_id": run_id}
        rows = self._database.read(lambda connection: connection.execute(_STEPS, asked).all())
        return {row.step: row.last for row in rows}


def check_lines(lines: Sequence[LogLine]) -> None:
    """Raises InvalidRequest, TooLarge."""
    if len(lines) > LINES_MAX:
        raise TooLarge(f"{len(lines)} lines at once: at most {LINES_MAX}", field="lines")
    number = 0
    for line in lines:
        if line.number <= number:
            raise InvalidRequest(
                f"line {line.number} follows line {number}: numbers must ascend from 1",
                field="lines",
            )
        number = line.number
        if len(line.text) > LINE_CHARACTERS_MAX:
            raise TooLarge(
                f"line {number} has {len(line.text)} characters: at most {LINE_CHARACTERS_MAX}",
                field="lines",
            )


def unwritten(lines: Sequence[LogLine], last: int, *, shared: bool) -> Sequence[LogLine]:
    """Those of some lines that a log does not have, whose last one is `last`; of a shared one all,
    under numbers that are free."""
    if not lines or lines[0].number > last:
        return lines
    if not shared:
        return [line for line in lines if line.number > last]
    by = last + 1 - lines[0].number
    return [replace(line, number=line.number + by) for line in lines]


def check_limit(limit: int) -> None:
    if not 1 <= limit <= LINES_MAX:
        raise InvalidRequest(f"limit is {limit}: expected 1 to {LINES_MAX}", field="limit")


def _append(connection: Connection, batch: Sequence[_Lines]) -> list[None | SluiceError]:
    """A batch of the group commit. Lines up to the last one known are there already."""
    ids = sorted({one.run_id for one in batch})
    numbers = {row.id: row.n for row in connection.execute(_NUMBERS, {"ids": ids})}
    wanted = sorted({(numbers[one.run_id], one.step) for one in batch if one.run_id in numbers})
    lasts = _lock_logs(connection, wanted)
    holders = _holders(connection, batch)
    rows: list[dict[str, object]] = []
    grown: dict[tuple[int, str], int] = {}  # by how many bytes
    answers: list[None | SluiceError] = []
    for one in batch:
        run_n = numbers.get(one.run_id)
        if run_n is None:
            answers.append(RunNotFound(f"no run has the id {one.run_id}"))
            continue
        if one.held is not None and holders.get(one.held.operation_id) != one.held.fence:
            answers.append(LeaseLost(f"{one.held.operation_id}: another worker has this command"))
            continue
        log = (run_n, one.step)
        new = unwritten(one.lines, lasts[log], shared=one.shared)
        if new:
            packed = one.packed if new is one.lines else list(chunks(new))
            rows += [_row(run_n, one.step, chunk) for chunk in packed]
            lasts[log] = new[-1].number
            grown[log] = grown.get(log, 0) + sum(chunk.size for chunk in packed)
        answers.append(None)
    if rows:
        connection.execute(_ADD_CHUNKS, rows)
        connection.execute(
            _MOVE_LOG,
            [
                {"of_run": n, "of_step": step, "to": lasts[n, step], "more": more}
                for (n, step), more in grown.items()
            ],
        )
    return answers


def _holders(connection: Connection, batch: Sequence[_Lines]) -> Mapping[str, int]:
    """Under which fence each of the commands is held that say they are."""
    ids = sorted({one.held.operation_id for one in batch if one.held is not None})
    if not ids:
        return {}
    return {row.id: row.fence for row in connection.execute(_HOLDERS, {"ids": ids})}


def _row(run_n: int, step: str, chunk: Chunk) -> dict[str, object]:
    own = {"first": chunk.first, "last": chunk.last, "size": chunk.size, "lines": chunk.data}
    return {"run_n": run_n, "step": step, **own}


def _lock_logs(
    connection: Connection, wanted: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], int]:
    """The last line of each log, its row locked; 0 where it has just begun."""
    found = _read_locked(connection, wanted)
    new = [log for log in wanted if log not in found]
    if new:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(
            insert(LOGS).on_conflict_do_nothing(),
            [{"run_n": run_n, "step": step, "last": 0} for run_n, step in new],
        )
        found = _read_locked(connection, wanted)
    return found


def _read_locked(
    connection: Connection, wanted: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], int]:
    if not wanted:
        return {}
    logs = [and_(LOGS.c.run_n == run_n, LOGS.c.step == step) for run_n, step in wanted]
    locked = select(LOGS).where(or_(*logs)).order_by(LOGS.c.run_n, LOGS.c.step).with_for_update()
    return {(row.run_n, row.step): row.last for row in connection.execute(locked)}


def _read(
    connection: Connection, index: Select[tuple[int, int, int]], asked: Mapping[str, Json]
) -> list[LogLine]:
    """All lines of the chunks that are needed for so many lines, as far as bytes allow."""
    firsts: list[int] = []
    lines = size = 0
    for chunk in connection.execute(index, asked):
        size += chunk.size
        if firsts and size > READ_BYTES_MAX:
            break
        firsts.append(chunk.first)
        # A chunk may begin before the line that is read from.
        lines += chunk.last - max(chunk.first - 1, asked.get("after", 0))
        if lines >= asked["count"]:
            break
    if not firsts:
        return []
    log = {"run_id": asked["run_id"], "step": asked["step"]}
    return _lines(connection, {**log, "lowest": min(firsts), "highest": max(firsts)})


def _lines(connection: Connection, asked: Mapping[str, Json]) -> list[LogLine]:
    found = connection.execute(_LINES, asked)
    return [line for data, size in found for line in unpacked(data, size)]
