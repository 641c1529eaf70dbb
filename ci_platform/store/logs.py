"""Log lines, in compressed chunks. Reads are bounded in lines and in bytes.

How much a step may write is its runner's business; here a line and a batch have limits, so that
one chunk can always be held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import zstandard
from sqlalchemy import Connection, Select, and_, bindparam, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from ci_platform.errors import InvalidRequest, RunNotFound, SluiceError, TooLarge
from ci_platform.model import Json, LogLine, RunId
from ci_platform.store.codec import plain
from ci_platform.store.database import Database
from ci_platform.store.tables import LOG_CHUNKS, LOGS, RUNS
from ci_platform.store.writer import GroupCommit

LINES_MAX = 10_000  # of one append or one read
LINE_CHARACTERS_MAX = 1 << 20
CHUNK_LINES_MAX = 1000
CHUNK_BYTES_MAX = 256 << 10  # before compression; a longer line has a chunk of its own
READ_BYTES_MAX = 8 << 20  # before compression, of one read; at least one chunk is returned

_RUN = select(RUNS.c.n).where(RUNS.c.id == bindparam("run_id")).scalar_subquery()
_NUMBERS = select(RUNS.c.id, RUNS.c.n).where(RUNS.c.id.in_(bindparam("ids", expanding=True)))
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
    .values(last=bindparam("to"))
)


@dataclass(frozen=True, slots=True)
class _Lines:
    run_id: RunId
    step: str
    lines: Sequence[LogLine]


class SqlLogStore:
    def __init__(self, database: Database, ring: Callable[[], None]) -> None:
        self._database = database
        self._appends = GroupCommit(database, _append, committed=lambda _: ring())

    def append(self, run_id: RunId, step: str, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        plain(step, "step")
        check_lines(lines)
        size = sum(len(line.text) for line in lines)
        self._appends.submit(_Lines(run_id, step, lines), size=size)

    def read(self, run_id: RunId, step: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
        """The next lines; fewer than `limit` when they are long, none only at the end."""
        check_limit(limit)
        asked = {"run_id": run_id, "step": step, "after": after, "count": limit}
        found = self._database.read(lambda connection: _read(connection, _AFTER, asked))
        return [line for line in found if line.number > after][:limit]

    def tail(self, run_id: RunId, step: str, *, limit: int = 1000) -> list[LogLine]:
        """The last lines, in order; fewer than `limit` when they are long."""
        check_limit(limit)
        asked = {"run_id": run_id, "step": step, "count": limit}
        return self._database.read(lambda connection: _read(connection, _TAIL, asked))[-limit:]

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


def check_limit(limit: int) -> None:
    if not 1 <= limit <= LINES_MAX:
        raise InvalidRequest(f"limit is {limit}: expected 1 to {LINES_MAX}", field="limit")


def _append(connection: Connection, batch: Sequence[_Lines]) -> list[None | SluiceError]:
    """A batch of the group commit. Lines up to the last one known are there already."""
    ids = sorted({one.run_id for one in batch})
    numbers = {row.id: row.n for row in connection.execute(_NUMBERS, {"ids": ids})}
    wanted = sorted({(numbers[one.run_id], one.step) for one in batch if one.run_id in numbers})
    lasts = _lock_logs(connection, wanted)
    chunks: list[dict[str, object]] = []
    grown: set[tuple[int, str]] = set()
    answers: list[None | SluiceError] = []
    for one in batch:
        run_n = numbers.get(one.run_id)
        if run_n is None:
            answers.append(RunNotFound(f"no run has the id {one.run_id}"))
            continue
        log = (run_n, one.step)
        new = [line for line in one.lines if line.number > lasts[log]]
        if new:
            chunks += [{"run_n": run_n, "step": one.step, **_chunk(part)} for part in _parts(new)]
            lasts[log] = new[-1].number
            grown.add(log)
        answers.append(None)
    if chunks:
        connection.execute(_ADD_CHUNKS, chunks)
        connection.execute(
            _MOVE_LOG, [{"of_run": n, "of_step": step, "to": lasts[n, step]} for n, step in grown]
        )
    return answers


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


def _parts(lines: Sequence[LogLine]) -> Iterator[list[LogLine]]:
    """Cut into runs of lines that make one chunk each."""
    part: list[LogLine] = []
    size = 0
    for line in lines:
        size += len(line.text)
        if part and (len(part) >= CHUNK_LINES_MAX or size > CHUNK_BYTES_MAX):
            yield part
            part, size = [], len(line.text)
        part.append(line)
    yield part


def _chunk(lines: Sequence[LogLine]) -> dict[str, object]:
    """Lines of one moment and stream share them: [[at_ms, stream, first number, [text, ...]]]."""
    groups = []
    numbered = [(line.number - index, line) for index, line in enumerate(lines)]
    for (_, at_ms, stream), group in groupby(
        numbered, key=lambda item: (item[0], item[1].at_ms, item[1].stream)
    ):
        own = [line for _, line in group]
        groups.append([at_ms, stream, own[0].number, [line.text for line in own]])
    data = json.dumps(groups, separators=(",", ":")).encode()
    return {
        "first": lines[0].number,
        "last": lines[-1].number,
        "size": len(data),
        "lines": zstandard.ZstdCompressor(level=1).compress(data),
    }


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
    lines: list[LogLine] = []
    for data, size in connection.execute(_LINES, asked):
        text = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        for at_ms, stream, first, texts in json.loads(text):
            lines += [
                LogLine(number, at_ms, stream, one) for number, one in enumerate(texts, first)
            ]
    return lines
