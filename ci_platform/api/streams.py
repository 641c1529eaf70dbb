"""Server-sent events: a run's journal, and a log, as they grow.

An event's id is the entry's or line's number, so a client that comes back with Last-Event-ID misses
and repeats nothing. Streams wait on the process's one bell, see live.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from ci_platform.api import answers, requests
from ci_platform.api.desk import Caller, From
from ci_platform.api.entries import EntryAnswer
from ci_platform.model import (
    RUN_LOG,
    Actor,
    Entry,
    EntryKind,
    LogLine,
    Run,
    RunId,
    StepKey,
)

router = APIRouter(tags=["live"])

POLL_S = 2.0  # the slow net below the bell
LOG_POLL_S = 0.3  # lines ring no bell of their own
STREAM_S_MAX = 3600.0  # then the client reconnects where it was
ASK_AGAIN_S = 30.0  # how old the answer to "who is this, and may they?" may be
PAGE = 1000

LastEventId = Annotated[int, Header(ge=0, alias="Last-Event-ID")]
STEP_ENDS = (EntryKind.STEP_PASSED, EntryKind.STEP_FAILED, EntryKind.STEP_CANCELLED)


@dataclass(slots=True)
class Reader:
    """One client's view of one run, in the thread pool."""

    caller: Caller
    run_id: RunId
    actor: Actor
    asked: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)

    def actor_now(self) -> Actor:
        """Look again now and then: a token may have been revoked since."""
        if time.monotonic() - self.asked > ASK_AGAIN_S:
            self.actor, self.asked = self.caller.actor(), time.monotonic()
        return self.actor

    @property
    def over(self) -> bool:
        return time.monotonic() - self.since > STREAM_S_MAX

    async def run(self) -> Run:
        return await run_in_threadpool(
            lambda: self.caller.desk.queries.run(self.actor_now(), self.run_id)
        )

    async def entries(self, after: int) -> list[Entry]:
        found = await run_in_threadpool(
            lambda: self.caller.desk.queries.journal(
                self.actor_now(), self.run_id, after=after, limit=PAGE
            )
        )
        return list(found)

    async def lines(self, step: str, after: int) -> list[LogLine]:
        return await run_in_threadpool(
            lambda: self.caller.desk.queries.log(
                self.actor_now(), self.run_id, step, after=after, limit=PAGE
            )
        )


async def until_ended(caller: Caller, run_id: RunId, *, seconds: float) -> None:
    """Return when the run has ended, or after so long."""
    reader = await run_in_threadpool(_reader, caller, run_id)
    until = time.monotonic() + seconds
    with caller.desk.live.listen() as bell:
        while not (await reader.run()).state.terminal:
            left = until - time.monotonic()
            if left <= 0:
                return
            await bell.wait(min(left, POLL_S))


def _reader(caller: From, run_id: str) -> Reader:
    """Refuse before the stream begins, while there can still be a problem document."""
    actor = caller.actor()
    caller.desk.queries.run(actor, RunId(run_id))
    caller.desk.live.check_room()
    return Reader(caller, RunId(run_id), actor)


def _log_reader(
    reader: Annotated[Reader, Depends(_reader)], page: Annotated[requests.Follow, Query()]
) -> Reader:
    reader.caller.desk.queries.log(reader.actor, reader.run_id, page.step, limit=1)
    return reader


@router.get("/runs/{run_id}/events", response_class=EventSourceResponse)
async def follow_run(
    reader: Annotated[Reader, Depends(_reader)],
    page: Annotated[requests.JournalFrom, Query()],
    last_event_id: LastEventId = 0,
) -> AsyncIterator[ServerSentEvent]:
    """The journal as it grows: one event per entry, named by its kind; `end` after the last. With
    `type` and `step`, which may be given several times, those entries alone."""
    seq, which = max(last_event_id, page.after), page.filter()
    with reader.caller.desk.live.listen() as bell:
        while not reader.over:
            entries = await reader.entries(seq)
            for entry in entries:
                seq = entry.seq
                if not which.wants(entry):
                    continue
                shown = EntryAnswer.of(entry)
                yield ServerSentEvent(id=str(seq), event=entry.kind, data=shown)
            if entries:
                continue
            run = await reader.run()
            if run.state.terminal and run.last_seq <= seq:
                yield ServerSentEvent(event="end", data={"state": run.state})
                return
            await bell.wait(POLL_S)


@router.get("/runs/{run_id}/logs/follow", response_class=EventSourceResponse)
async def follow_log(
    reader: Annotated[Reader, Depends(_log_reader)],
    page: Annotated[requests.Follow, Query()],
    last_event_id: LastEventId = 0,
) -> AsyncIterator[ServerSentEvent]:
    """A log as it grows: one event per line; `end` when its step, or the run, has ended."""
    number, end = max(last_event_id, page.after), _End(page.step)
    with reader.caller.desk.live.listen() as bell:
        while not reader.over:
            # Asked before the lines: what was written before the end is then among them.
            ended = await end.reached(reader)
            lines = await reader.lines(page.step, number)
            for line in lines:
                number = line.number
                shown = answers.LineAnswer.of(line)
                yield ServerSentEvent(id=str(number), event="line", data=shown)
            if lines:
                continue
            if ended:
                yield ServerSentEvent(event="end", data={"lines": number})
                return
            await bell.wait(LOG_POLL_S)


class _End:
    """Whether a log can still grow; reads each entry of the journal once."""

    def __init__(self, step: str) -> None:
        self._key = None if step == RUN_LOG else StepKey.parse(step)
        self._seq = 0
        self._ended = False

    async def reached(self, reader: Reader) -> bool:
        run = await reader.run()
        if run.state.terminal:
            return True
        while self._key is not None and not self._ended and run.last_seq > self._seq:
            entries = await reader.entries(self._seq)
            if not entries:
                break
            self._seq = entries[-1].seq
            self._ended = any(
                entry.key == self._key and entry.kind in STEP_ENDS for entry in entries
            )
        return self._ended
